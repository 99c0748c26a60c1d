"""Models and their parts; `build_model(cfg)` is the entrance."""

from segdet.modeling.build import build_backbone, build_model
from segdet.modeling.meta_arch import SYSTEMS

__all__ = ["SYSTEMS", "build_backbone", "build_model"]
