"""Random numbers as a function of counters, so that who computes a sample changes nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def _mix(counters: tuple[int, ...]) -> np.ndarray:
    """(4,) uint32, far apart for neighbouring counters."""
    return np.random.SeedSequence(counters).generate_state(4)


def generator_at(*counters: int) -> torch.Generator:
    """A torch generator seeded from non-negative counters, such as (seed, epoch)."""
    low, high = _mix(counters)[:2]
    return torch.Generator().manual_seed(int(low) | int(high) << 32)


@contextmanager
def seeded(*counters: int) -> Iterator[None]:
    """Seed Python's, numpy's and torch's (CPU) global generators; restore them afterwards.

    Args:
        counters: non-negative, such as (seed, position of the sample in the stream).
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    state = _mix(counters)
    random.seed(state.tobytes())
    np.random.seed(state)
    torch.default_generator.manual_seed(int(state[0]) | int(state[1]) << 32)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
