"""Models and their parts; `build_model(cfg)` is the entrance."""

from segdet.modeling.build import build_backbone, build_model
from segdet.modeling.meta_arch import SYSTEMS
from segdet.modeling.test_time_augmentation import DatasetMapperTTA, GeneralizedRCNNWithTTA

__all__ = [
    "SYSTEMS",
    "DatasetMapperTTA",
    "GeneralizedRCNNWithTTA",
    "build_backbone",
    "build_model",
]
