"""SOLVER: the optimizer, its parameter groups, gradient clipping and the learning-rate schedule."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from torch import nn
from torch.optim import Optimizer

from segdet.config.ranges import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Range,
)
from segdet.config.reader import read_section
from segdet.errors import ConfigError
from segdet.solver.lr_scheduler import (
    CosineParamScheduler,
    LRMultiplier,
    MultiStepParamScheduler,
    Schedule,
    WarmupParamScheduler,
)
from segdet.solver.sgd import SGD
from segdet.utils.mixed_precision import AMPConfig

_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


@dataclass(frozen=True, kw_only=True)
class ClipGradientsConfig:
    """SOLVER.CLIP_GRADIENTS; defaults are detectron2's."""

    enabled: bool = False
    clip_type: str = "value"  # or "norm": of each parameter by itself
    clip_value: PositiveFloat = 1.0
    norm_type: Annotated[float, Range(0, math.inf, open_low=True)] = 2.0

    def __post_init__(self) -> None:
        if self.clip_type not in ("value", "norm"):
            raise ConfigError(f'CLIP_TYPE must be "value" or "norm", is "{self.clip_type}"')

    def clip(self, parameters: list[nn.Parameter]) -> None:
        """Clip the gradients of `parameters` in place."""
        if self.clip_type == "value":
            nn.utils.clip_grad_value_(parameters, self.clip_value)
        else:
            for parameter in parameters:
                nn.utils.clip_grad_norm_(parameter, self.clip_value, norm_type=self.norm_type)


@dataclass(frozen=True, kw_only=True)
class SolverConfig:
    """SOLVER; defaults are detectron2's."""

    lr_scheduler_name: str = "WarmupMultiStepLR"
    max_iter: PositiveInt = 40000
    base_lr: PositiveFloat = 0.001
    base_lr_end: NonNegativeFloat = 0.0  # of WarmupCosineLR
    momentum: Annotated[float, Range(0, 1, open_high=True)] = 0.9
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 0.0001
    weight_decay_norm: NonNegativeFloat = 0.0
    weight_decay_bias: NonNegativeFloat | None = None  # None: as any other parameter
    bias_lr_factor: NonNegativeFloat = 1.0
    gamma: NonNegativeFloat = 0.1
    steps: tuple[PositiveInt, ...] = (30000,)
    num_decays: PositiveInt = 3  # of WarmupStepWithFixedGammaLR
    warmup_factor: Fraction = 0.001
    warmup_iters: NonNegativeInt = 1000
    warmup_method: str = "linear"
    rescale_interval: bool = False
    checkpoint_period: PositiveInt = 5000
    checkpoints_kept: NonNegativeInt = 0  # of those saved at the period; 0 keeps all
    resume_changed: bool = False  # whether a run may be resumed with other settings
    nonfinite: str = "stop"  # or "skip", "rollback": at a loss or gradient that is not finite
    ims_per_batch: PositiveInt = 16  # over all processes
    accumulate: PositiveInt = 1  # the parts that each process computes its share of the batch in
    reference_world_size: NonNegativeInt = 0  # 0: never scale the recipe to the number of processes
    clip_gradients: ClipGradientsConfig = field(default_factory=ClipGradientsConfig)
    amp: AMPConfig = field(default_factory=AMPConfig)

    def __post_init__(self) -> None:
        if self.lr_scheduler_name not in LR_SCHEDULES:
            raise ConfigError(
                f"LR_SCHEDULER_NAME must be one of {', '.join(LR_SCHEDULES)}, "
                f'is "{self.lr_scheduler_name}"'
            )
        if self.warmup_method not in ("linear", "constant"):
            raise ConfigError(
                f'WARMUP_METHOD must be "linear" or "constant", is "{self.warmup_method}"'
            )
        if self.nonfinite not in ("stop", "skip", "rollback"):
            raise ConfigError(
                f'NONFINITE must be "stop", "skip" or "rollback", is "{self.nonfinite}"'
            )
        if self.base_lr_end > self.base_lr:
            raise ConfigError(
                f"BASE_LR_END must be at most BASE_LR = {self.base_lr}, is {self.base_lr_end}"
            )
        if list(self.steps) != sorted(set(self.steps)):
            raise ConfigError(f"STEPS must be ascending, are {self.steps}")

    def build_optimizer(self, model: nn.Module) -> Optimizer:
        """SGD over the trainable parameters of `model`, grouped by their weight decay and lr."""
        groups = get_default_optimizer_params(
            model,
            base_lr=self.base_lr,
            weight_decay_norm=self.weight_decay_norm,
            bias_lr_factor=self.bias_lr_factor,
            weight_decay_bias=self.weight_decay_bias,
        )
        # One kernel for all that happens to a value. It takes a gradient scaler's scale off by
        # itself, after clipping.
        fused = not (self.amp.enabled or self.clip_gradients.enabled)
        optimizer = SGD(
            groups,
            lr=self.base_lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            fused=fused,
            foreach=not fused,
        )
        return self.add_clipping(optimizer)

    def add_clipping(self, optimizer: Optimizer) -> Optimizer:
        """Clip inside `optimizer.step`: there AMP has already taken its scale off the gradients."""
        if self.clip_gradients.enabled:

            def clip(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
                for group in optimizer.param_groups:
                    self.clip_gradients.clip(group["params"])

            optimizer.register_step_pre_hook(clip)
        return optimizer

    def build_lr_scheduler(self, optimizer: Optimizer) -> LRMultiplier:
        """The named schedule, its warm-up included."""
        schedule = LR_SCHEDULES[self.lr_scheduler_name](self)
        return LRMultiplier(optimizer, schedule, self.max_iter)

    def warmed_up(self, schedule: Schedule) -> Schedule:
        """A schedule behind the warm-up that WARMUP_FACTOR, _ITERS and _METHOD describe."""
        return WarmupParamScheduler(
            schedule,
            self.warmup_factor,
            min(self.warmup_iters / self.max_iter, 1.0),
            self.warmup_method,
            self.rescale_interval,
        )


def _multi_step(solver: SolverConfig) -> Schedule:
    steps = [step for step in solver.steps if step <= solver.max_iter]
    if len(steps) < len(solver.steps):
        logging.getLogger(__name__).warning(
            "SOLVER.STEPS beyond SOLVER.MAX_ITER = %d are ignored: %s",
            solver.max_iter,
            [step for step in solver.steps if step > solver.max_iter],
        )
    values = [solver.gamma**k for k in range(len(steps) + 1)]
    return solver.warmed_up(MultiStepParamScheduler(values, solver.max_iter, steps))


def _cosine(solver: SolverConfig) -> Schedule:
    return solver.warmed_up(CosineParamScheduler(1.0, solver.base_lr_end / solver.base_lr))


def _fixed_gamma(solver: SolverConfig) -> Schedule:
    """NUM_DECAYS drops that cut the run into equal parts."""
    drops = range(1, solver.num_decays + 1)
    values = [solver.gamma**k for k in (0, *drops)]
    return solver.warmed_up(MultiStepParamScheduler(values, solver.num_decays + 1, drops))


LR_SCHEDULES: dict[str, Callable[[SolverConfig], Schedule]] = {  # warm-up included
    "WarmupMultiStepLR": _multi_step,
    "WarmupCosineLR": _cosine,
    "WarmupStepWithFixedGammaLR": _fixed_gamma,
}


def build_optimizer(cfg: Any, model: nn.Module) -> Optimizer:
    """The optimizer that SOLVER of the config tree `cfg` describes, over `model`'s parameters."""
    return read_section(SolverConfig, cfg, at="SOLVER").build_optimizer(model)


def build_lr_scheduler(cfg: Any, optimizer: Optimizer) -> LRMultiplier:
    """The learning-rate schedule that SOLVER of the config tree `cfg` describes."""
    return read_section(SolverConfig, cfg, at="SOLVER").build_lr_scheduler(optimizer)


def maybe_add_gradient_clipping(
    cfg: Any, optimizer: Optimizer | type[Optimizer]
) -> Optimizer | Callable[..., Optimizer]:
    """Clip as SOLVER.CLIP_GRADIENTS says, inside `step`; `optimizer` may be a class or an instance.

    Returns:
        The same instance, or for a class a callable with the class's arguments.
    """
    solver = read_section(SolverConfig, cfg, at="SOLVER")
    if isinstance(optimizer, Optimizer):
        return solver.add_clipping(optimizer)
    return lambda *args, **kwargs: solver.add_clipping(optimizer(*args, **kwargs))


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float | None = None,
    weight_decay: float | None = None,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float = 1.0,
    weight_decay_bias: float | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
    overrides: dict[str, dict[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, one for each distinct set of hyper-parameters.

    Frozen parameters are left out, shared ones appear once. What is None is left to the
    optimizer's own default.

    Args:
        model: its trainable parameters are grouped, in the order of `named_modules`.
        base_lr: learning rate of every group; needed for the two factors.
        weight_decay: of every group.
        weight_decay_norm: of the parameters of norm layers.
        bias_lr_factor: multiplies the learning rate of parameters named `bias`.
        weight_decay_bias: of parameters named `bias`; wins over `weight_decay_norm`.
        lr_factor_func: from a parameter's full name to a multiplier of its learning rate.
        overrides: parameter's own name (such as `bias`) -> hyper-parameters that win over all.

    Returns:
        Groups as every torch optimizer takes them: `params` and the hyper-parameters.

    Raises:
        ValueError: a factor without `base_lr`, or `bias` set in two ways.
    """
    if base_lr is None and (bias_lr_factor != 1.0 or lr_factor_func is not None):
        raise ValueError("bias_lr_factor and lr_factor_func multiply base_lr: give base_lr too")
    bias = _without_none(weight_decay=weight_decay_bias)
    if base_lr is not None and bias_lr_factor != 1.0:
        bias["lr"] = base_lr * bias_lr_factor
    by_name = dict(overrides or {})
    if bias and "bias" in by_name:
        raise ValueError("`bias` is in overrides and set by bias_lr_factor or weight_decay_bias")
    by_name.setdefault("bias", bias)

    groups: dict[tuple[tuple[str, float], ...], dict[str, Any]] = {}
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            hyper = _without_none(lr=base_lr, weight_decay=weight_decay)
            if isinstance(module, _NORMS) and weight_decay_norm is not None:
                hyper["weight_decay"] = weight_decay_norm
            if lr_factor_func is not None:
                hyper["lr"] *= lr_factor_func(f"{module_name}.{name}".removeprefix("."))
            hyper |= by_name.get(name, {})
            group = groups.setdefault(tuple(sorted(hyper.items())), {"params": [], **hyper})
            group["params"].append(parameter)
    return list(groups.values())


def _without_none(**values: float | None) -> dict[str, float]:
    return {key: value for key, value in values.items() if value is not None}
