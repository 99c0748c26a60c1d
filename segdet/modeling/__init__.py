"""Models and their parts; `build_model(cfg)` is the entrance."""

from segdet.layers import ShapeSpec
from segdet.modeling.backbones import FPN, Backbone, ResNet
from segdet.modeling.build import build_backbone, build_model
from segdet.modeling.compiling import compile_model
from segdet.modeling.from_config import (
    CascadeROIHeads,
    GeneralizedRCNN,
    Res5ROIHeads,
    StandardROIHeads,
    build_anchor_generator,
    build_box_head,
    build_keypoint_head,
    build_mask_head,
    build_proposal_generator,
    build_resnet_backbone,
    build_resnet_fpn_backbone,
    build_retinanet_resnet_fpn_backbone,
    build_roi_heads,
    build_sem_seg_head,
)
from segdet.modeling.meta_arch import (
    SYSTEMS,
    PanopticFPN,
    ProposalNetwork,
    RetinaNet,
    SemanticSegmentor,
)
from segdet.modeling.postprocessing import detector_postprocess, sem_seg_postprocess
from segdet.modeling.registries import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_KEYPOINT_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    RPN_HEAD_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
)
from segdet.modeling.test_time_augmentation import DatasetMapperTTA, GeneralizedRCNNWithTTA

__all__ = [
    "ANCHOR_GENERATOR_REGISTRY",
    "BACKBONE_REGISTRY",
    "FPN",
    "META_ARCH_REGISTRY",
    "PROPOSAL_GENERATOR_REGISTRY",
    "ROI_BOX_HEAD_REGISTRY",
    "ROI_HEADS_REGISTRY",
    "ROI_KEYPOINT_HEAD_REGISTRY",
    "ROI_MASK_HEAD_REGISTRY",
    "RPN_HEAD_REGISTRY",
    "SEM_SEG_HEADS_REGISTRY",
    "SYSTEMS",
    "Backbone",
    "CascadeROIHeads",
    "DatasetMapperTTA",
    "GeneralizedRCNN",
    "GeneralizedRCNNWithTTA",
    "PanopticFPN",
    "ProposalNetwork",
    "Res5ROIHeads",
    "ResNet",
    "RetinaNet",
    "SemanticSegmentor",
    "ShapeSpec",
    "StandardROIHeads",
    "build_anchor_generator",
    "build_backbone",
    "build_box_head",
    "build_keypoint_head",
    "build_mask_head",
    "build_model",
    "build_proposal_generator",
    "build_resnet_backbone",
    "build_resnet_fpn_backbone",
    "build_retinanet_resnet_fpn_backbone",
    "build_roi_heads",
    "build_sem_seg_head",
    "compile_model",
    "detector_postprocess",
    "sem_seg_postprocess",
]
