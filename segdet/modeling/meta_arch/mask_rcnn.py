"""Mask R-CNN (He et al. 2017, arXiv:1703.06870): Faster R-CNN with a mask branch.

Without MODEL.MASK_ON it is Faster R-CNN (arXiv:1506.01497) on a feature pyramid or a single map;
with MODEL.KEYPOINT_ON it finds keypoints too (section 5); with proposals from files instead of
an RPN it is Fast R-CNN (arXiv:1504.08083).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from segdet.config.ranges import PositiveInt
from segdet.errors import ConfigError
from segdet.layers import Losses
from segdet.modeling.backbones import Backbone
from segdet.modeling.backbones.backbone import pyramid
from segdet.modeling.box_coder import Box2BoxTransform
from segdet.modeling.box_head import BoxHeadConfig, FastRCNNOutputLayers
from segdet.modeling.box_kind import UPRIGHT, BoxKind
from segdet.modeling.keypoint_head import KeypointHeadConfig
from segdet.modeling.mask_head import MaskHeadConfig
from segdet.modeling.meta_arch.proposal_network import PRECOMPUTED, ProposalNetworkConfig
from segdet.modeling.proposals import PrecomputedProposals, ProposalGenerator
from segdet.modeling.roi_heads import ROIHeads, ROIHeadsConfig, StandardROIHeads
from segdet.modeling.system import Needs, System
from segdet.structures import Detections, ImageList, Targets


@dataclass(frozen=True, kw_only=True)
class MaskRCNNConfig(ProposalNetworkConfig):
    """MODEL, as Mask R-CNN reads it."""

    needs: ClassVar[Needs] = Needs(labels={"annotations": "MODEL.ROI_HEADS.NUM_CLASSES"})

    mask_on: bool = False
    keypoint_on: bool = False
    load_proposals: bool = False  # the inputs bring them, for PrecomputedProposals
    roi_heads: ROIHeadsConfig = field(default_factory=ROIHeadsConfig)
    roi_box_head: BoxHeadConfig = field(default_factory=BoxHeadConfig)
    roi_mask_head: MaskHeadConfig = field(default_factory=MaskHeadConfig)
    roi_keypoint_head: KeypointHeadConfig = field(default_factory=KeypointHeadConfig)
    detections_per_image: PositiveInt = field(
        default=100, metadata={"key": "TEST.DETECTIONS_PER_IMAGE"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.proposal_generator.name == PRECOMPUTED and not self.load_proposals:
            raise ConfigError(
                "PROPOSAL_GENERATOR.NAME PrecomputedProposals needs LOAD_PROPOSALS: True, and "
                "DATASETS.PROPOSAL_FILES_TRAIN and _TEST"
            )

    def build(self) -> System:
        """The model with random weights."""
        backbone = self.build_backbone()
        return MaskRCNN(
            backbone,
            proposal_generator=self.build_proposal_generator(backbone),
            roi_heads=self.build_roi_heads(backbone),
            pixel_mean=self.pixel_mean,
            pixel_std=self.pixel_std,
        )

    def build_roi_heads(self, backbone: Backbone) -> ROIHeads:
        """The second stage on the backbone's maps."""
        strides, channels = pyramid(backbone, self.roi_heads.in_features, "ROI_HEADS.IN_FEATURES")
        num_classes, nominal = self.roi_heads.num_classes, self.roi_heads.nominal_foreground
        box_head = self.roi_box_head.build(channels)
        mask, keypoint = self.roi_mask_head, self.roi_keypoint_head
        return StandardROIHeads(
            self.roi_heads.in_features,
            sampler=self.roi_heads.build_sampler(),
            box_pooler=self.roi_box_head.build_pooler(strides),
            box_head=box_head,
            box_predictor=self.build_box_predictor(box_head.out_features),
            train_on_pred_boxes=self.roi_box_head.train_on_pred_boxes,
            mask_pooler=mask.build_pooler(strides) if self.mask_on else None,
            mask_head=mask.build(channels, num_classes) if self.mask_on else None,
            keypoint_pooler=keypoint.build_pooler(strides) if self.keypoint_on else None,
            keypoint_head=keypoint.build(channels, nominal) if self.keypoint_on else None,
        )

    def build_box_predictor(
        self,
        in_features: int,
        box_transform: Box2BoxTransform | None = None,
        kind: BoxKind = UPRIGHT,
    ) -> FastRCNNOutputLayers:
        """Scores and boxes from vectors of length `in_features`."""
        if self.proposal_generator.name == "FCOS":
            raise ConfigError(
                "PROPOSAL_GENERATOR.NAME FCOS finds detections, which a box head cannot refine; "
                "use RPN, or heads without one"
            )
        return self.roi_box_head.build_predictor(
            in_features,
            num_classes=self.roi_heads.num_classes,
            score_thresh=self.roi_heads.score_thresh_test,
            nms_thresh=self.roi_heads.nms_thresh_test,
            detections_per_image=self.detections_per_image,
            box_transform=box_transform,
            kind=kind,
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
        proposal_generator: ProposalGenerator,
        roi_heads: ROIHeads,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__(backbone, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:  # noqa: D102
        images = super().preprocess_image(batched_inputs)
        if isinstance(self.proposal_generator, PrecomputedProposals):
            return self.proposal_generator.read(images, batched_inputs)
        return images

    def losses(self, images: ImageList, targets: list[Targets]) -> Losses:
        """The losses of the RPN and of the heads."""
        features = self.backbone(images.tensor)  # level name -> (B, C, H / stride, W / stride)
        proposals, rpn_losses = self.proposal_generator.losses(images, features, targets)
        return rpn_losses | self.roi_heads.losses(features, proposals, targets)

    def predict(self, images: ImageList) -> list[Detections]:
        """Per image, the best detections; masks are (N, 1, M, M) probabilities."""
        features = self.backbone(images.tensor)
        proposals = self.proposal_generator.predict(images, features)
        return self.roi_heads.predict(features, proposals)
