"""CenterMask (Lee and Park 2020, arXiv:1911.06667): a mask for each box that FCOS finds.

The second stage has no box head. Its masks attend to the cells that matter, are pooled from the
level that fits the box's share of the image, and are ranked by `mask_scores`, the box's score times
a predicted IoU. This is CenterMask2, on detectron2's boxes and pooling.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor

from segdet.config.ranges import NonNegativeFloat
from segdet.errors import ConfigError
from segdet.layers import Losses, c2_msra_fill
from segdet.modeling.backbones import Backbone
from segdet.modeling.backbones.backbone import pyramid
from segdet.modeling.fcos import FCOS
from segdet.modeling.keypoint_head import KeypointHeadConfig, KRCNNConvDeconvUpsampleHead
from segdet.modeling.mask_head import MaskHeadConfig, MaskRCNNConvUpsampleHead
from segdet.modeling.maskiou_head import (
    MaskIoUHead,
    MaskIoUHeadConfig,
    attach_scored_masks,
    outline_shares,
    scored_mask_losses,
)
from segdet.modeling.meta_arch.mask_rcnn import MaskRCNNConfig
from segdet.modeling.meta_arch.panoptic_fpn import PanopticFPNConfig
from segdet.modeling.roi_heads import (
    ProposalSampler,
    ROIHeads,
    attach_keypoints,
    attach_masks_of,
    keypoint_losses,
    mask_losses,
    select_foreground,
)
from segdet.modeling.roi_pooler import ROIPooler
from segdet.structures import Detections, Instances, Proposals, Targets


@dataclass(frozen=True, kw_only=True)
class CenterMaskHeadConfig(MaskHeadConfig):
    """MODEL.ROI_MASK_HEAD with CenterMask2's further key."""

    assign_criterion: str = "area"  # what chooses a box's level; its files say "ratio"


@dataclass(frozen=True, kw_only=True)
class CenterKeypointHeadConfig(KeypointHeadConfig):
    """MODEL.ROI_KEYPOINT_HEAD with CenterMask2's further keys."""

    in_features: tuple[str, ...] = ("p2", "p3", "p4", "p5")
    assign_criterion: str = "ratio"


@dataclass(frozen=True, kw_only=True)
class CenterMaskConfig(MaskRCNNConfig):
    """MODEL, as CenterMask reads it."""

    maskiou_on: bool = False
    maskiou_loss_weight: NonNegativeFloat = 1.0
    roi_mask_head: CenterMaskHeadConfig = field(default_factory=CenterMaskHeadConfig)
    roi_maskiou_head: MaskIoUHeadConfig = field(default_factory=MaskIoUHeadConfig)
    roi_keypoint_head: CenterKeypointHeadConfig = field(default_factory=CenterKeypointHeadConfig)

    @property
    def build_proposal_generator(self) -> Callable[[Backbone], FCOS]:
        """FCOS; with FCOS.USE_DEFORMABLE, all of its box tower is deformable and nothing else."""
        self._check()
        return functools.partial(self.fcos.build, deformable=(0, 0, self.fcos.num_box_convs))

    def build_roi_heads(self, backbone: Backbone) -> CenterROIHeads:
        """The second stage on the backbone's maps."""
        strides, channels = pyramid(backbone, self.roi_heads.in_features, "ROI_HEADS.IN_FEATURES")
        num_classes, mask = self.roi_heads.num_classes, self.roi_mask_head
        maskiou_head = None
        if self.maskiou_on:
            maskiou_head = self.roi_maskiou_head.build(
                channels, num_classes, side=mask.pooler_resolution, fill=c2_msra_fill
            )
        return CenterROIHeads(
            self.roi_heads.in_features,
            sampler=self.roi_heads.build_sampler(),
            mask_pooler=mask.build_pooler(strides, mask.assign_criterion) if self.mask_on else None,
            mask_head=mask.build(channels, num_classes) if self.mask_on else None,
            maskiou_head=maskiou_head,
            maskiou_loss_weight=self.maskiou_loss_weight,
            **self._keypoint_parts(backbone),
        )

    def _check(self) -> None:
        if self.proposal_generator.name != "FCOS":
            raise ConfigError(
                "CenterROIHeads take the boxes that FCOS finds: PROPOSAL_GENERATOR.NAME must be "
                f"FCOS, is {self.proposal_generator.name!r}"
            )
        if self.fcos.num_classes != self.roi_heads.num_classes:
            raise ConfigError(
                f"FCOS.NUM_CLASSES and ROI_HEADS.NUM_CLASSES must be equal, are "
                f"{self.fcos.num_classes} and {self.roi_heads.num_classes}"
            )
        if self.maskiou_on and not self.mask_on:
            raise ConfigError("MASKIOU_ON grades masks: set MASK_ON to True, or it to False")

    def _keypoint_parts(self, backbone: Backbone) -> dict[str, Any]:
        if not self.keypoint_on:
            return {}
        keypoint, nominal = self.roi_keypoint_head, self.roi_heads.nominal_foreground
        names = keypoint.in_features
        strides, channels = pyramid(backbone, names, "ROI_KEYPOINT_HEAD.IN_FEATURES")
        return {
            "keypoint_in_features": names,
            "keypoint_pooler": keypoint.build_pooler(strides, keypoint.assign_criterion),
            "keypoint_head": keypoint.build(channels, nominal),
        }


@dataclass(frozen=True, kw_only=True)
class PanopticCenterMaskConfig(CenterMaskConfig, PanopticFPNConfig):
    """MODEL, as Panoptic FPN with CenterMask's boxes and masks reads it."""


class CenterROIHeads(ROIHeads):
    """Masks, their predicted IoUs and keypoints of boxes that are detections already.

    Args:
        in_features: names of the feature maps that masks are pooled from.
        sampler: chooses training proposals, of which the foreground is used.
        mask_pooler: its output is the mask head's input; None without masks.
        mask_head: None without masks.
        maskiou_head: predicts how well the masks fit; None leaves `mask_scores` out.
        maskiou_loss_weight: of its loss.
        keypoint_in_features: names of the feature maps that keypoints are pooled from.
        keypoint_pooler: None without keypoints.
        keypoint_head: None without keypoints.
    """

    def __init__(
        self,
        in_features: Sequence[str],
        *,
        sampler: ProposalSampler,
        mask_pooler: ROIPooler | None = None,
        mask_head: MaskRCNNConvUpsampleHead | None = None,
        maskiou_head: MaskIoUHead | None = None,
        maskiou_loss_weight: float = 1.0,
        keypoint_in_features: Sequence[str] = (),
        keypoint_pooler: ROIPooler | None = None,
        keypoint_head: KRCNNConvDeconvUpsampleHead | None = None,
    ) -> None:
        super().__init__()
        self.in_features = tuple(in_features)
        self.sampler = sampler
        self.mask_pooler = mask_pooler
        self.mask_head = mask_head
        self.maskiou_head = maskiou_head
        self.maskiou_loss_weight = maskiou_loss_weight
        self.keypoint_in_features = tuple(keypoint_in_features)
        self.keypoint_pooler = keypoint_pooler
        self.keypoint_head = keypoint_head

    def losses(
        self,
        features: dict[str, Tensor],
        proposals: Sequence[Proposals],
        targets: Sequence[Targets],
    ) -> Losses:
        """`loss_mask`, `loss_maskiou` and `loss_keypoint`, as far as there are such heads."""
        sampled, metrics = self.sampler(proposals, targets)
        fg = select_foreground(sampled, self.sampler.num_classes)
        losses = Losses({}, metrics) | self._mask_losses(features, fg, targets)
        return losses | self._keypoint_losses(features, fg, targets)

    def _mask_losses(
        self, features: dict[str, Tensor], fg: Sequence[Proposals], targets: Sequence[Targets]
    ) -> Losses:
        if self.mask_pooler is None or self.mask_head is None:
            return Losses()
        pooled = self.mask_pooler(
            [features[name] for name in self.in_features],
            [p.proposal_boxes.tensor for p in fg],
            [p.image_size for p in fg],
        )
        if self.maskiou_head is None:
            return mask_losses(self.mask_head, pooled, fg, targets)
        return scored_mask_losses(
            self.mask_head,
            self.maskiou_head,
            pooled,
            fg,
            targets,
            weight=self.maskiou_loss_weight,
            polygon_shares=outline_shares,
        )

    def _keypoint_losses(
        self, features: dict[str, Tensor], fg: Sequence[Proposals], targets: Sequence[Targets]
    ) -> Losses:
        if self.keypoint_pooler is None or self.keypoint_head is None:
            return Losses()
        maps = [features[name] for name in self.keypoint_in_features]
        return keypoint_losses(self.keypoint_pooler, self.keypoint_head, maps, fg, targets)

    def predict(
        self, features: dict[str, Tensor], proposals: Sequence[Instances]
    ) -> list[Detections]:
        """FCOS's detections with masks and keypoints; masks are (N, 1, M, M) probabilities."""
        detections = cast("list[Detections]", list(proposals))  # of FCOS
        return self._predict_keypoints(features, self.predict_masks(features, detections))

    def predict_masks(
        self, features: dict[str, Tensor], detections: list[Detections]
    ) -> list[Detections]:
        """The detections with `pred_masks` and `mask_scores`; unchanged without a mask head.

        Boxes that leave the image are pooled as they are, but pasted into what of them is inside,
        as in the official code.
        """
        if self.mask_pooler is None or self.mask_head is None:
            return detections
        pooled = self.mask_pooler(
            [features[name] for name in self.in_features],
            [d.pred_boxes.tensor for d in detections],
            [d.image_size for d in detections],
        )
        if self.maskiou_head is None:
            return attach_masks_of(self.mask_head, pooled, detections)
        return attach_scored_masks(self.mask_head, self.maskiou_head, pooled, detections)

    def _predict_keypoints(
        self, features: dict[str, Tensor], detections: list[Detections]
    ) -> list[Detections]:
        if self.keypoint_pooler is None or self.keypoint_head is None:
            return detections
        pooled = self.keypoint_pooler(
            [features[name] for name in self.keypoint_in_features],
            [d.pred_boxes.tensor for d in detections],
            [d.image_size for d in detections],
        )
        return attach_keypoints(self.keypoint_head(pooled), detections)
