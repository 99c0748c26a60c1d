"""The running mean of positives that one-stage losses are divided by."""

from __future__ import annotations

from torch import Tensor

from segdet.utils import comm


def enter_mean(mean: Tensor, number: int) -> None:
    """Let a batch's positives, at least 1, enter their mean over the iterations, in place.

    It stays the same in all processes, where detectron2 has one in each: checkpoints hold one.

    Args:
        mean: scalar.
        number: of this process's batch; their mean over the processes enters.
    """
    batch = comm.mean_over_processes(mean.new_tensor(float(number)))
    mean.mul_(0.9).add_(0.1 * batch.clamp(min=1))
