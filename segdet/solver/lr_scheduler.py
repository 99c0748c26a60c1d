"""Learning-rate schedules: functions of the share of the run that is done, and their stepper.

A schedule is any callable from `where` = iteration / max_iter, in [0, 1], to a multiplier of
the base learning rate; the schedulers of fvcore fit too.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

Schedule = Callable[[float], float]

# Rounding in `where` stays below this for runs of up to 1e9 iterations; it decides whether a
# step at iteration s takes effect for s itself.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class MultiStepParamScheduler:
    """`values[k]` after the k-th milestone; the value changes at the milestone itself.

    Args:
        values: one more than there are milestones.
        num_updates: length of the run, in the unit of `milestones`.
        milestones: ascending.
    """

    values: Sequence[float]
    num_updates: int
    milestones: Sequence[int]

    def __post_init__(self) -> None:
        if len(self.values) != len(self.milestones) + 1:
            raise ValueError(
                f"{len(self.milestones)} milestones need {len(self.milestones) + 1} values, "
                f"got {len(self.values)}"
            )

    def __call__(self, where: float) -> float:
        """The value at `where`."""
        done = (where + _ROUNDING) * self.num_updates
        return self.values[bisect.bisect_right(self.milestones, done)]


@dataclass(frozen=True)
class CosineParamScheduler:
    """Half a cosine from `start_value` to `end_value` (SGDR, arXiv:1608.03983, equation 5)."""

    start_value: float
    end_value: float

    def __call__(self, where: float) -> float:
        """The value at `where`."""
        share = (1 + math.cos(math.pi * where)) / 2
        return self.end_value + (self.start_value - self.end_value) * share


@dataclass(frozen=True)
class WarmupParamScheduler:
    """Another schedule, begun slowly.

    Args:
        scheduler: the schedule after the warm-up.
        warmup_factor: the first value is this times `scheduler(0)`.
        warmup_length: share of the run, in [0, 1].
        warmup_method: "linear" up to the schedule's value at the end of the warm-up, or
            "constant" at the first value.
        rescale_interval: squeeze the whole schedule into what is left after the warm-up,
            instead of hiding its beginning.
    """

    scheduler: Schedule
    warmup_factor: float
    warmup_length: float
    warmup_method: str = "linear"
    rescale_interval: bool = False

    def __call__(self, where: float) -> float:
        """The value at `where`."""
        length = self.warmup_length
        if where + _ROUNDING >= length:
            if self.rescale_interval and length < 1:
                where = (where - length) / (1 - length)
            return self.scheduler(where)
        start = self.warmup_factor * self.scheduler(0.0)
        if self.warmup_method == "constant":
            return start
        end = self.scheduler(0.0 if self.rescale_interval else length)
        return start + (end - start) * where / length


class LRMultiplier(LRScheduler):
    """Sets every group's lr to its base lr times a schedule of iteration / `max_iter`.

    Its state is the base rates and the iteration alone, so a resumed run keeps the base rates
    that it began with.
    """

    def __init__(
        self, optimizer: Optimizer, multiplier: Schedule, max_iter: int, last_iter: int = -1
    ) -> None:
        self._multiplier = multiplier
        self._max_iter = max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self) -> dict[str, Any]:
        """`base_lrs` and `last_epoch` (the iteration)."""
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each group at the present iteration."""
        multiplier = self._multiplier(self.last_epoch / self._max_iter)
        return [base_lr * multiplier for base_lr in self.base_lrs]
