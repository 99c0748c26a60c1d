"""The same bits for any number of threads."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def check_same_bits(run: Callable[[], Iterable[Tensor]]) -> None:
    """Whether `run` gives the same with one thread and with three."""
    before = torch.get_num_threads()
    try:
        results: list[list[Tensor]] = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(list(run()))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, three) for one, three in zip(*results, strict=True))
