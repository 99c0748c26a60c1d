"""One batch in parts, of several processes or one after the other, with the gradient of the whole.

Losses that are means over a changing number of values (`Losses.counts`) become means over all
values of the whole batch; the others are means over its images.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from segdet.errors import ConfigError
from segdet.layers.losses import Losses
from segdet.utils import comm

Forward = Callable[[nn.Module, Any, int], Losses]  # of a part of a batch, which has a number


def compute_in_parts(
    model: nn.Module,
    batch: Any,
    parts: int,
    *,
    forward: Forward,
    backward: Callable[[Tensor, int], None],
    buffers: Mapping[str, Tensor],
) -> Losses:
    """The losses and gradients of a batch, one part after the other.

    Args:
        model: maybe in DistributedDataParallel.
        batch: a list, if there are several parts.
        parts: how many.
        forward: gives the losses of a part, by the same random numbers each time.
        backward: computes the gradients of a part's total, and adds them up.
        buffers: the model's by name, as they were before: counting leaves them so.
    """
    cut = split(batch, parts)
    totals = _counts_of(unwrapped(model), cut, forward, buffers) if len(cut) > 1 else None
    results = []
    for number, part in enumerate(cut):
        is_last = number + 1 == len(cut)
        with nullcontext() if is_last else _without_sync(model):
            share = len(part) / len(batch) if len(cut) > 1 else 1.0
            losses = as_share(forward(model, part, number), share, totals)
            backward(losses.total(), number)
        results.append(losses.detached())
    return _total_of(results)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model without DistributedDataParallel."""
    return model.module if isinstance(model, DistributedDataParallel) else model


@torch.no_grad()
def _counts_of(
    model: nn.Module, parts: Sequence[Any], forward: Forward, buffers: Mapping[str, Tensor]
) -> dict[str, float]:
    """How many values each mean is over, in the whole batch; by a forward pass of each part."""
    counts: defaultdict[str, float] = defaultdict(float)
    for number, part in enumerate(parts):
        for name, count in forward(model, part, number).counts.items():
            counts[name] += float(count)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    return mean_counts(counts)


def split(batch: Any, parts: int) -> list[Any]:
    """A batch cut into parts of nearly one size.

    Raises:
        ConfigError: the batch is no list.
    """
    if parts == 1:
        return [batch]
    if not isinstance(batch, list):
        raise ConfigError(f"SOLVER.ACCUMULATE cuts lists, a batch is a {type(batch).__name__}")
    return [batch[number::parts] for number in range(min(parts, len(batch)))]


def mean_counts(counts: Mapping[str, float | Tensor]) -> dict[str, float]:
    """The mean over the processes of each count, which all have under the same names."""
    names = sorted(counts)
    if comm.get_world_size() == 1 or not names:
        return {name: float(counts[name]) for name in names}
    totals = torch.tensor([float(counts[name]) for name in names], dtype=torch.float64)
    dist.all_reduce(totals, group=comm.cpu_group())
    return dict(zip(names, (totals / comm.get_world_size()).tolist(), strict=True))


def as_share(losses: Losses, share: float, totals: Mapping[str, float] | None) -> Losses:
    """The losses of a part, so weighted that those of all parts sum up to the whole batch's.

    Args:
        losses: of the part.
        share: of this process's images.
        totals: the counts of the whole batch, as `mean_counts` gives them; None where this part is
            all that the process has.
    """
    if totals is None:
        if comm.get_world_size() == 1:
            return losses
        totals = mean_counts(losses.counts)
    weights = dict.fromkeys(losses, share)
    # A mean over nothing has the divisor 1, in a part as in the whole.
    weights |= {k: (float(n) or 1.0) / (totals[k] or 1.0) for k, n in losses.counts.items()}
    terms = {name: term * weights[name] for name, term in losses.items()}
    return Losses(terms, losses.metrics, losses.counts)


def _total_of(parts: Sequence[Losses]) -> Losses:
    """The sum of the losses of all parts, and the means of their metrics."""
    if len(parts) == 1:
        return parts[0]
    names = dict.fromkeys(name for part in parts for name in part.metrics)
    metrics = {}
    for name in names:
        values = [float(part.metrics[name]) for part in parts if name in part.metrics]
        metrics[name] = sum(values) / len(values)
    terms = {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}
    return Losses(terms, metrics)


def _without_sync(model: nn.Module) -> AbstractContextManager[None]:
    """Within, processes keep their gradients to themselves: the last part sends them all."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()
