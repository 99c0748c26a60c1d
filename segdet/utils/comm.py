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
        dist.barrier(group=cpu_group())


def all_gather(data: Any, group: Any = None) -> list[Any]:
    """What every process passed, by rank.

    Args:
        data: anything that pickles.
        group: of the processes that take part; None means all.
    """
    if get_world_size() == 1:
        return [data]
    group = group or cpu_group()
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
    group = group or cpu_group()
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


def say_where(place: str) -> None:
    """Note what this process is about to do, for the message that names it should it be lost."""
    if get_world_size() > 1:
        _store().set(f"place/{get_rank()}", place)


def describe_loss(error: Exception) -> str:
    """What to say when a call between processes failed: where each of them was.

    Args:
        error: of the call.
    """
    reason = (str(error).splitlines() or [""])[0]
    ranks: dict[str, list[str]] = {}
    try:
        store = _store()
        for rank in range(get_world_size()):
            known = store.check([f"place/{rank}"])
            place = store.get(f"place/{rank}").decode() if known else "before the first iteration"
            ranks.setdefault(place, []).append(str(rank))
    except Exception:  # the process that keeps the notes is lost itself
        ranks = {}
    places = "; ".join(f"{place}: process {', '.join(at)}" for place, at in ranks.items())
    return f"A process has died or hangs ({reason}). Last seen at: {places or 'unknown'}"


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


def cpu_group() -> Any:
    """All processes, talking from main memory: NCCL takes objects and flags over the GPU."""
    return _cpu_group(dist.group.WORLD)


@functools.lru_cache(maxsize=1)
def _cpu_group(world: Any) -> Any:
    return dist.new_group(backend="gloo") if dist.get_backend(world) == "nccl" else world


def leave() -> None:
    """Take leave of the other processes; groups that outlive it would abort this one at its end."""
    _cpu_group.cache_clear()
    dist.destroy_process_group()
