"""Losses and gradients that are not finite, memory that runs out: what to do, and to say."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segdet.checkpoint.manifest import save_whole
from segdet.errors import MemoryLimitError, NonFiniteError
from segdet.utils import comm

_log = logging.getLogger(__name__)

_MOST_IN_A_ROW = 10  # steps left out, before the run is taken for lost
_MOST_DUMPS = 5
ADVICE = (
    "A lower SOLVER.BASE_LR, a longer SOLVER.WARMUP_ITERS or SOLVER.CLIP_GRADIENTS.ENABLED may help"
)


@dataclass(frozen=True, kw_only=True)
class BadStep:
    """A step whose loss or gradient is not finite; it has not been taken."""

    iteration: int
    losses: Mapping[str, float]  # means over the processes
    own_losses: Mapping[str, float]  # of this process
    batch: Any  # of this process
    buffers: Mapping[str, Tensor]  # the model's before the step
    reason: str = ""  # what the model said, if it gave no losses

    def describe(self) -> str:
        """What is not finite."""
        if self.reason:
            return f"iteration {self.iteration}: {self.reason}"
        terms = ", ".join(f"{name} = {value:.5g}" for name, value in self.losses.items())
        what = "the loss" if self.loss_is_bad() else "a gradient"
        return f"iteration {self.iteration}: {what} is not finite: {terms}"

    def loss_is_bad(self) -> bool:
        """Whether it is the loss; otherwise a gradient."""
        return not math.isfinite(sum(self.losses.values()))

    def is_own(self) -> bool:
        """Whether it began in this process."""
        if self.reason:
            return True
        return not self.loss_is_bad() or not math.isfinite(sum(self.own_losses.values()))


def stop(step: BadStep) -> None:
    """End the run: what trainers do that are told nothing else."""
    raise NonFiniteError(f"{step.describe()}. {ADVICE}")


class NonFinitePolicy:
    """SOLVER.NONFINITE: after a dump, "stop", "skip" the step, or "rollback".

    Rolling back takes over the last checkpoint's weights and optimizer, and goes on with the next
    batch: the same one would end in the same way.

    Args:
        policy: one of the three.
        model: whose buffers a bad step must not change.
        folder: of the dumps.
        context: gives what a dump holds beside the step: `config` and `seed`.
        roll_back: takes over the last checkpoint; False if there is none.
    """

    def __init__(
        self,
        policy: str,
        *,
        model: nn.Module,
        folder: Path,
        context: Callable[[], dict[str, Any]],
        roll_back: Callable[[], bool],
    ) -> None:
        self._policy = policy
        self._model = model
        self._folder = folder
        self._context = context
        self._roll_back = roll_back
        self._last = -1
        self._in_a_row = 0
        self._dumps = 0

    def __call__(self, step: BadStep) -> None:
        """Leave the step out, or end the run.

        Raises:
            NonFiniteError: the policy is to stop, or leaving out does not help.
        """
        buffers = dict(self._model.named_buffers())
        for name, before in step.buffers.items():
            buffers[name].copy_(before)
        self._in_a_row = self._in_a_row + 1 if step.iteration == self._last + 1 else 1
        self._last = step.iteration
        said = step.describe() + self._dump(step)
        if self._policy == "stop" or (step.reason and comm.get_world_size() > 1):
            raise NonFiniteError(f"{said}. {ADVICE}")
        if self._in_a_row > _MOST_IN_A_ROW:
            raise NonFiniteError(f"{said}; so were {_MOST_IN_A_ROW} before. {ADVICE}")
        if self._policy == "rollback" and not self._roll_back():
            raise NonFiniteError(f"{said}, and there is no checkpoint to roll back to. {ADVICE}")
        rolled = ", rolled back to the last checkpoint" if self._policy == "rollback" else ""
        _log.warning("%s; left out%s", said, rolled)

    def _dump(self, step: BadStep) -> str:
        """Save what `segdet replay` needs; the part of the message that says where."""
        if self._dumps == _MOST_DUMPS or not step.is_own():
            return ""
        self._dumps += 1
        rank = comm.get_rank()
        content = {
            **self._context(),
            "model": self._model.state_dict() | dict(step.buffers),
            "iteration": step.iteration,
            "rank": rank,
            "world_size": comm.get_world_size(),
            "losses": dict(step.own_losses),
            "images": names_of(step.batch),
        }
        path = self._folder / f"nonfinite_{step.iteration:07d}_{rank}.pth"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            save_whole(path, content, listed=False)
        except OSError as error:
            _log.warning("%s cannot be saved: %s", path, error.strerror)
            return ""
        return f" (`segdet replay {path}` computes it again)"


class Snapshot:
    """Copies of a model's buffers, in memory that is used again."""

    def __init__(self) -> None:
        self._copies: dict[str, Tensor] = {}

    @torch.no_grad()
    def of(self, model: nn.Module) -> dict[str, Tensor]:
        """The buffers by name, as they are now."""
        buffers = dict(model.named_buffers())
        if {k: b.shape for k, b in buffers.items()} != {
            k: c.shape for k, c in self._copies.items()
        }:
            self._copies = {name: torch.empty_like(buffer) for name, buffer in buffers.items()}
        for dtype in {buffer.dtype for buffer in buffers.values()}:  # one kernel for each
            names = [name for name, buffer in buffers.items() if buffer.dtype == dtype]
            into, of = [self._copies[n] for n in names], [buffers[n] for n in names]
            torch._foreach_copy_(into, of)  # pyright: ignore[reportPrivateImportUsage]
        return self._copies


def names_of(batch: Any) -> list[str]:
    """The images of a batch, by file or id."""
    if not isinstance(batch, Sequence):
        return []
    names = [one.get("file_name", one.get("image_id")) for one in batch if isinstance(one, Mapping)]
    return [str(name) for name in names]


def gradients_are_finite(model: nn.Module) -> bool:
    """Whether every gradient is."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return not gradients or bool(torch.nn.utils.get_total_norm(gradients).isfinite())


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocation failed, on CUDA or the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def out_of_memory(iteration: int, batch: Any, error: RuntimeError) -> MemoryLimitError:
    """The error that names the batch."""
    parts = []
    for one in batch if isinstance(batch, Sequence) else ():
        if isinstance(one, Mapping) and "image" in one:
            height, width = one["image"].shape[-2:]
            objects = f", {len(one['instances'])} objects" if "instances" in one else ""
            name = one.get("file_name", one.get("image_id"))
            parts.append(f"{name} ({width} x {height}{objects})")
    reason = str(error).splitlines()[0]
    return MemoryLimitError(
        f"iteration {iteration}: out of memory with the batch {'; '.join(parts) or 'at hand'} "
        f"({reason}). A lower SOLVER.IMS_PER_BATCH, SOLVER.ACCUMULATE for the same batch in parts, "
        "or lower INPUT.MIN_SIZE_TRAIN and MAX_SIZE_TRAIN need less"
    )
