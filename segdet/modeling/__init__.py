"""Models and their parts; `build_model(cfg)` is the entrance."""

from segdet.layers import ShapeSpec
from segdet.modeling.backbones import FPN, Backbone, ResNet
from segdet.modeling.build import build_backbone, build_model
from segdet.modeling.meta_arch import SYSTEMS
from segdet.modeling.postprocessing import detector_postprocess
from segdet.modeling.registries import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    RPN_HEAD_REGISTRY,
)
from segdet.modeling.test_time_augmentation import DatasetMapperTTA, GeneralizedRCNNWithTTA

__all__ = [
    "BACKBONE_REGISTRY",
    "FPN",
    "META_ARCH_REGISTRY",
    "PROPOSAL_GENERATOR_REGISTRY",
    "ROI_BOX_HEAD_REGISTRY",
    "ROI_HEADS_REGISTRY",
    "ROI_MASK_HEAD_REGISTRY",
    "RPN_HEAD_REGISTRY",
    "SYSTEMS",
    "Backbone",
    "DatasetMapperTTA",
    "GeneralizedRCNNWithTTA",
    "ResNet",
    "ShapeSpec",
    "build_backbone",
    "build_model",
    "detector_postprocess",
]
