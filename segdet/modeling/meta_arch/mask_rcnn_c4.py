"""Mask R-CNN on a single C4 map (He et al. 2017, arXiv:1703.06870, figure 4, left).

The heads share a copy of ResNet's last stage, applied to each pooled proposal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from segdet.errors import ConfigError
from segdet.layers import Losses
from segdet.modeling.backbones import Backbone, BasicBlock, BottleneckBlock
from segdet.modeling.backbones.backbone import pyramid
from segdet.modeling.box_head import FastRCNNOutputLayers
from segdet.modeling.mask_head import MaskRCNNConvUpsampleHead
from segdet.modeling.meta_arch.mask_rcnn import MaskRCNNConfig
from segdet.modeling.roi_heads import (
    ProposalSampler,
    ROIHeads,
    attach_masks_of,
    mask_losses,
    select_foreground,
)
from segdet.modeling.roi_pooler import ROIPooler
from segdet.structures import Detections, Proposals, Targets


@dataclass(frozen=True, kw_only=True)
class MaskRCNNC4Config(MaskRCNNConfig):
    """MODEL, as the C4 variant reads it."""

    def build_roi_heads(self, backbone: Backbone) -> Res5ROIHeads:
        """The second stage on the backbone's map."""
        if self.roi_box_head.train_on_pred_boxes:
            raise ConfigError("ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES does not work with Res5ROIHeads")
        if self.keypoint_on:
            raise ConfigError("KEYPOINT_ON does not work with Res5ROIHeads; use StandardROIHeads")
        strides, channels = pyramid(backbone, self.roi_heads.in_features, "ROI_HEADS.IN_FEATURES")
        res5 = self.resnets.build_res5(channels)
        res5_channels = cast(BasicBlock | BottleneckBlock, res5[-1]).out_channels
        mask_head = None
        if self.mask_on:
            mask_head = self.roi_mask_head.build(res5_channels, self.roi_heads.num_classes)
        return Res5ROIHeads(
            self.roi_heads.in_features[0],
            sampler=self.roi_heads.build_sampler(),
            pooler=self.roi_box_head.build_pooler(strides),
            res5=res5,
            box_predictor=self.build_box_predictor(res5_channels),
            mask_head=mask_head,
        )


class Res5ROIHeads(ROIHeads):
    """Box and mask heads on the output of a shared `res5` stage.

    Args:
        in_feature: name of the pooled map.
        sampler: chooses training proposals.
        pooler: its output feeds `res5`.
        res5: ResNet's last stage, stride 2.
        box_predictor: works on the mean of res5's output over its cells.
        mask_head: works on res5's output; None without masks.
    """

    def __init__(
        self,
        in_feature: str,
        *,
        sampler: ProposalSampler,
        pooler: ROIPooler,
        res5: nn.Sequential,
        box_predictor: FastRCNNOutputLayers,
        mask_head: MaskRCNNConvUpsampleHead | None = None,
    ) -> None:
        super().__init__()
        self.in_feature = in_feature
        self.sampler = sampler
        self.pooler = pooler
        self.res5 = res5
        self.box_predictor = box_predictor
        self.mask_head = mask_head

    def box_features(self, features: dict[str, Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """(R, C, S, S) output of res5 for per-image (N_i, 4) boxes."""
        return self.res5(self.pooler([features[self.in_feature]], boxes))

    def losses(
        self,
        features: dict[str, Tensor],
        proposals: Sequence[Proposals],
        targets: Sequence[Targets],
    ) -> Losses:
        """`loss_cls`, `loss_box_reg` and, with a mask head, `loss_mask`."""
        sampled, metrics = self.sampler(proposals, targets)
        x = self.box_features(features, [p.proposal_boxes.tensor for p in sampled])
        logits, deltas = self.box_predictor(x.mean(dim=(2, 3)))
        losses = Losses({}, metrics) | self.box_predictor.losses(logits, deltas, sampled)
        if self.mask_head is None:
            return losses
        fg = select_foreground(sampled, self.sampler.num_classes)
        classes = torch.cat([p.gt_classes for p in sampled])
        own = x[(classes >= 0) & (classes < self.sampler.num_classes)]
        return losses | mask_losses(self.mask_head, own, fg, targets)

    def predict(
        self, features: dict[str, Tensor], proposals: Sequence[Proposals]
    ) -> list[Detections]:
        """Per image, detections in network input pixels; masks are (N, 1, M, M) probabilities."""
        x = self.box_features(features, [p.proposal_boxes.tensor for p in proposals])
        logits, deltas = self.box_predictor(x.mean(dim=(2, 3)))
        detections = self.box_predictor.predict(logits, deltas, proposals)
        return self.predict_masks(features, detections)

    def predict_masks(
        self, features: dict[str, Tensor], detections: list[Detections]
    ) -> list[Detections]:
        """The detections with `pred_masks` added; unchanged where there is no mask head."""
        if self.mask_head is None:
            return detections
        x = self.box_features(features, [d.pred_boxes.tensor for d in detections])
        return attach_masks_of(self.mask_head, x, detections)
