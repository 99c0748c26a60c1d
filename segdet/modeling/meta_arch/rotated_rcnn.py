"""Faster R-CNN with rotated boxes, detectron2's variant (after RRPN, arXiv:1703.01086)."""

from __future__ import annotations

from dataclasses import dataclass

from segdet.errors import ConfigError
from segdet.modeling.backbones import Backbone
from segdet.modeling.backbones.backbone import pyramid
from segdet.modeling.box_kind import ROTATED
from segdet.modeling.meta_arch.mask_rcnn import MaskRCNNConfig
from segdet.modeling.roi_heads import StandardROIHeads
from segdet.modeling.system import System


@dataclass(frozen=True, kw_only=True)
class RotatedRCNNConfig(MaskRCNNConfig):
    """MODEL, as the rotated variant reads it; targets and detections have `RotatedBoxes`."""

    def build(self) -> System:
        """The model with random weights."""
        self._check()
        return super().build()

    def build_roi_heads(self, backbone: Backbone) -> StandardROIHeads:
        """The second stage on the backbone's maps, for rotated boxes."""
        strides, channels = pyramid(backbone, self.roi_heads.in_features, "ROI_HEADS.IN_FEATURES")
        box_head = self.roi_box_head.build(channels)
        return StandardROIHeads(
            self.roi_heads.in_features,
            sampler=self.roi_heads.build_sampler(ROTATED),
            box_pooler=self.roi_box_head.build_pooler(strides),
            box_head=box_head,
            box_predictor=self.build_box_predictor(box_head.out_features, kind=ROTATED),
        )

    def _check(self) -> None:
        wanted = {
            "PROPOSAL_GENERATOR.NAME": (self.proposal_generator.name, "RRPN"),
            "ROI_BOX_HEAD.POOLER_TYPE": (self.roi_box_head.pooler_type, "ROIAlignRotated"),
            "ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": (self.roi_box_head.train_on_pred_boxes, False),
            "MASK_ON": (self.mask_on, False),
            "KEYPOINT_ON": (self.keypoint_on, False),
        }
        for key, (value, needed) in wanted.items():
            if value != needed:
                raise ConfigError(f"RROIHeads need {key} = {needed}, it is {value}")
