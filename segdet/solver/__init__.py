"""Optimizers and learning-rate schedules."""

from segdet.solver.build import (
    ClipGradientsConfig,
    SolverConfig,
    build_lr_scheduler,
    build_optimizer,
    get_default_optimizer_params,
    maybe_add_gradient_clipping,
)
from segdet.solver.ema import ModelEMA, ModelEMAConfig, build_model_ema
from segdet.solver.lr_scheduler import (
    CosineParamScheduler,
    LRMultiplier,
    MultiStepParamScheduler,
    WarmupParamScheduler,
)

__all__ = [
    "ClipGradientsConfig",
    "CosineParamScheduler",
    "LRMultiplier",
    "ModelEMA",
    "ModelEMAConfig",
    "MultiStepParamScheduler",
    "SolverConfig",
    "WarmupParamScheduler",
    "build_lr_scheduler",
    "build_model_ema",
    "build_optimizer",
    "get_default_optimizer_params",
    "maybe_add_gradient_clipping",
]
