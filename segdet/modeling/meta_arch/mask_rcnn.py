"""Mask R-CNN (He et al. 2017, arXiv:1703.06870): Faster R-CNN with a mask branch.

Without MODEL.MASK_ON it is Faster R-CNN (arXiv:1506.01497) on a feature pyramid or a single map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from segdet.errors import ConfigError
from segdet.layers import Losses
from segdet.modeling.anchors import AnchorGeneratorConfig
from segdet.modeling.backbones import Backbone
from segdet.modeling.backbones.backbone import known
from segdet.modeling.box_head import BoxHeadConfig, FastRCNNOutputLayers
from segdet.modeling.mask_head import MaskHeadConfig
from segdet.modeling.roi_heads import ROIHeads, ROIHeadsConfig, StandardROIHeads
from segdet.modeling.rpn import RPN, ProposalGeneratorConfig, RPNConfig
from segdet.modeling.system import System, SystemConfig
from segdet.structures import Detections, ImageList, Targets


@dataclass(frozen=True, kw_only=True)
class MaskRCNNConfig(SystemConfig):
    """MODEL, as Mask R-CNN reads it."""

    mask_on: bool = False
    proposal_generator: ProposalGeneratorConfig = field(default_factory=ProposalGeneratorConfig)
    anchor_generator: AnchorGeneratorConfig = field(default_factory=AnchorGeneratorConfig)
    rpn: RPNConfig = field(default_factory=RPNConfig)
    roi_heads: ROIHeadsConfig = field(default_factory=ROIHeadsConfig)
    roi_box_head: BoxHeadConfig = field(default_factory=BoxHeadConfig)
    roi_mask_head: MaskHeadConfig = field(default_factory=MaskHeadConfig)
    detections_per_image: int = field(default=100, metadata={"key": "TEST.DETECTIONS_PER_IMAGE"})

    def build(self) -> MaskRCNN:
        """The model with random weights."""
        backbone = self.build_backbone()
        strides, channels = pyramid(backbone, self.roi_heads.in_features, "ROI_HEADS.IN_FEATURES")
        box_head = self.roi_box_head.build(channels)
        mask_pooler = mask_head = None
        if self.mask_on:
            mask_pooler = self.roi_mask_head.build_pooler(strides)
            mask_head = self.roi_mask_head.build(channels, self.roi_heads.num_classes)
        return MaskRCNN(
            backbone,
            proposal_generator=self.build_proposal_generator(backbone),
            roi_heads=StandardROIHeads(
                self.roi_heads.in_features,
                sampler=self.roi_heads.build_sampler(),
                box_pooler=self.roi_box_head.build_pooler(strides),
                box_head=box_head,
                box_predictor=self.build_box_predictor(box_head.out_features),
                train_on_pred_boxes=self.roi_box_head.train_on_pred_boxes,
                mask_pooler=mask_pooler,
                mask_head=mask_head,
            ),
            pixel_mean=self.pixel_mean,
            pixel_std=self.pixel_std,
        )

    def build_proposal_generator(self, backbone: Backbone) -> RPN:
        """The RPN on the backbone's maps."""
        strides, channels = pyramid(backbone, self.rpn.in_features, "RPN.IN_FEATURES")
        return self.rpn.build(
            channels,
            self.anchor_generator.build(strides),
            min_size=self.proposal_generator.min_size,
        )

    def build_box_predictor(self, in_features: int) -> FastRCNNOutputLayers:
        """Scores and boxes from vectors of length `in_features`."""
        return self.roi_box_head.build_predictor(
            in_features,
            num_classes=self.roi_heads.num_classes,
            score_thresh=self.roi_heads.score_thresh_test,
            nms_thresh=self.roi_heads.nms_thresh_test,
            detections_per_image=self.detections_per_image,
        )


class MaskRCNN(System):
    """Two stages: proposals, then a class, a box and a mask for each.

    Args:
        backbone: images to feature maps.
        proposal_generator: feature maps to boxes that may hold an object.
        roi_heads: those boxes to detections.
        pixel_mean: one value a channel, subtracted from the images.
        pixel_std: one value a channel, divides them after that.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        proposal_generator: RPN,
        roi_heads: ROIHeads,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__(backbone, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads

    def losses(self, images: ImageList, targets: list[Targets]) -> Losses:
        """RPN, box and mask losses."""
        features = self.backbone(images.tensor)  # level name -> (B, C, H / stride, W / stride)
        proposals, rpn_losses = self.proposal_generator.losses(images, features, targets)
        return rpn_losses | self.roi_heads.losses(features, proposals, targets)

    def predict(self, images: ImageList) -> list[Detections]:
        """Per image, the best detections; masks are (N, 1, M, M) probabilities."""
        features = self.backbone(images.tensor)
        proposals = self.proposal_generator.predict(images, features)
        return self.roi_heads.predict(features, proposals)


def pyramid(backbone: Backbone, names: Sequence[str], key: str) -> tuple[list[int], int]:
    """Strides and the common channel count of named feature maps.

    Raises:
        ConfigError: the backbone has no such map, or their channels differ.
    """
    shapes = backbone.output_shape()
    for name in names:
        if name not in shapes:
            raise ConfigError(f"{key}: no feature {name!r}; the backbone gives {list(shapes)}")
    channels = {known(shapes[name].channels) for name in names}
    if len(channels) != 1:
        raise ConfigError(f"{key}: {list(names)} differ in channels: {sorted(channels)}")
    return [known(shapes[name].stride) for name in names], channels.pop()
