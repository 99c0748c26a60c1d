"""Between the processes of one run; with a single process every call works and does nothing."""

from __future__ import annotations

import functools
import os
import random
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _is_distributed() else 1


def get_rank() -> int:
    """This process among all, from 0."""
    return dist.get_rank() if _is_distributed() else 0


def get_local_rank() -> int:
    """This process among those of its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", get_rank())) if _is_distributed() else 0


def get_local_size() -> int:
    """Number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", get_world_size())) if _is_distributed() else 1


def is_main_process() -> bool:
    """Whether this process is the one that writes files and logs."""
    return get_rank() == 0


def synchronize() -> None:
    """Wait for every process."""
    if get_world_size() > 1:
        dist.barrier(group=_cpu_group(dist.group.WORLD))


def all_gather(data: Any, group: Any = None) -> list[Any]:
    """What every process passed, by rank.

    Args:
        data: anything that pickles.
        group: of the processes that take part; None means all.
    """
    if get_world_size() == 1:
        return [data]
    group = group or _cpu_group(dist.group.WORLD)
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, data, group=group)
    return gathered


def gather(data: Any, dst: int = 0, group: Any = None) -> list[Any]:
    """What every process passed, by rank, on process `dst`; elsewhere an empty list.

    Args:
        data: anything that pickles.
        dst: the rank that receives, counted among all processes.
        group: of the processes that take part; None means all.
    """
    if get_world_size() == 1:
        return [data]
    group = group or _cpu_group(dist.group.WORLD)
    gathered = [None] * dist.get_world_size(group) if get_rank() == dst else None
    dist.gather_object(data, gathered, dst=dst, group=group)
    return gathered or []


def shared_random_seed() -> int:
    """A fresh random number below 2**31, the same in every process."""
    return all_gather(random.SystemRandom().randrange(2**31))[0]


def reduce_dict(input_dict: dict[str, Tensor], average: bool = True) -> dict[str, Tensor]:
    """Mean (or sum) of each scalar over the processes; only rank 0 has the right result.

    Args:
        input_dict: scalars on one device, under the same names in every process.
        average: mean instead of sum.
    """
    world_size = get_world_size()
    if world_size == 1:
        return input_dict
    with torch.no_grad():
        names = sorted(input_dict)
        values = torch.stack([input_dict[name] for name in names])
        dist.reduce(values, dst=0)
        if average:
            values /= world_size
        return dict(zip(names, values, strict=True))


def mean_over_processes(values: Tensor) -> Tensor:
    """The mean of what the processes pass, in all of them, without gradient.

    Args:
        values: of one shape in all of them.
    """
    world_size = get_world_size()
    if world_size == 1:
        return values.detach()
    total = values.detach().clone()
    dist.all_reduce(total)
    return total / world_size


@functools.lru_cache(maxsize=1)
def _cpu_group(world: Any) -> Any:
    """A group that carries pickled objects in main memory: NCCL would take them over the GPU."""
    return dist.new_group(backend="gloo") if dist.get_backend(world) == "nccl" else world
