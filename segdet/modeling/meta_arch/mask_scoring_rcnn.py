"""Mask Scoring R-CNN (Huang et al. 2019, arXiv:1903.00241): Mask R-CNN that grades its masks.

A further head predicts the IoU of each mask with its object. Masks are ranked by `mask_scores`,
class score times that IoU; boxes keep their `scores`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from segdet.config.ranges import NonNegativeFloat
from segdet.errors import ConfigError
from segdet.layers import Losses
from segdet.modeling.backbones import Backbone
from segdet.modeling.backbones.backbone import pyramid
from segdet.modeling.maskiou_head import (
    MaskIoUHead,
    MaskIoUHeadConfig,
    attach_scored_masks,
    scored_mask_losses,
)
from segdet.modeling.meta_arch.mask_rcnn import MaskRCNNConfig
from segdet.modeling.roi_heads import StandardROIHeads
from segdet.structures import Detections, Proposals, Targets


@dataclass(frozen=True, kw_only=True)
class MaskScoringRCNNConfig(MaskRCNNConfig):
    """MODEL, as Mask Scoring R-CNN reads it."""

    maskiou_on: bool = False  # what tells its files from Mask R-CNN's
    maskiou_loss_weight: NonNegativeFloat = 1.0
    roi_maskiou_head: MaskIoUHeadConfig = field(default_factory=MaskIoUHeadConfig)

    def build_roi_heads(self, backbone: Backbone) -> MaskScoringROIHeads:
        """The second stage on the backbone's maps."""
        if not self.mask_on or not self.maskiou_on:
            raise ConfigError("Mask Scoring R-CNN needs MASK_ON and MASKIOU_ON: True")
        strides, channels = pyramid(backbone, self.roi_heads.in_features, "ROI_HEADS.IN_FEATURES")
        num_classes, nominal = self.roi_heads.num_classes, self.roi_heads.nominal_foreground
        box_head = self.roi_box_head.build(channels)
        mask, keypoint = self.roi_mask_head, self.roi_keypoint_head
        return MaskScoringROIHeads(
            self.roi_heads.in_features,
            sampler=self.roi_heads.build_sampler(),
            box_pooler=self.roi_box_head.build_pooler(strides),
            box_head=box_head,
            box_predictor=self.build_box_predictor(box_head.out_features),
            train_on_pred_boxes=self.roi_box_head.train_on_pred_boxes,
            mask_pooler=mask.build_pooler(strides),
            mask_head=mask.build(channels, num_classes),
            maskiou_head=self.roi_maskiou_head.build(
                channels, num_classes, side=mask.pooler_resolution
            ),
            maskiou_loss_weight=self.maskiou_loss_weight,
            keypoint_pooler=keypoint.build_pooler(strides) if self.keypoint_on else None,
            keypoint_head=keypoint.build(channels, nominal) if self.keypoint_on else None,
        )


class MaskScoringROIHeads(StandardROIHeads):
    """Standard heads, and one that predicts the IoU of each mask with its object.

    Args:
        in_features: names of the pooled feature maps.
        maskiou_head: works on what the mask head was given and what it made of it.
        maskiou_loss_weight: of its loss.
        others: as in the base class.
    """

    def __init__(
        self,
        in_features: Sequence[str],
        *,
        maskiou_head: MaskIoUHead,
        maskiou_loss_weight: float,
        **others: Any,
    ) -> None:
        super().__init__(in_features, **others)
        self.maskiou_head = maskiou_head
        self.maskiou_loss_weight = maskiou_loss_weight

    def _mask_losses(
        self, maps: Sequence[Tensor], fg: Sequence[Proposals], targets: Sequence[Targets]
    ) -> Losses:
        """`loss_mask` and `loss_maskiou`."""
        if self.mask_pooler is None or self.mask_head is None:
            return Losses()
        pooled = self.mask_pooler(maps, [p.proposal_boxes.tensor for p in fg])
        return scored_mask_losses(
            self.mask_head,
            self.maskiou_head,
            pooled,
            fg,
            targets,
            weight=self.maskiou_loss_weight,
        )

    def predict_masks(
        self, features: dict[str, Tensor], detections: list[Detections]
    ) -> list[Detections]:
        """The detections with `pred_masks` and `mask_scores`; unchanged without a mask head."""
        if self.mask_pooler is None or self.mask_head is None:
            return detections
        maps = [features[name] for name in self.in_features]
        pooled = self.mask_pooler(maps, [d.pred_boxes.tensor for d in detections])
        return attach_scored_masks(self.mask_head, self.maskiou_head, pooled, detections)
