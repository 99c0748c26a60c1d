"""What a golden case of the folder `systems` compares."""

from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Check(NamedTuple):
    """Our numbers beside the original's."""

    name: str
    ours: Tensor
    expected: np.ndarray
    bar: float  # the largest difference allowed

    def gap(self) -> float:
        """The largest difference; infinite for another shape, or where one alone is NaN."""
        ours, expected = self.ours.detach().double(), torch.from_numpy(np.array(self.expected))
        if ours.shape != expected.shape:
            return float("inf")
        if not ours.numel():
            return 0.0
        return (ours - expected.double()).abs().max().nan_to_num(float("inf")).item()


def relative(bar: float, expected: np.ndarray | float) -> float:
    """The bar for numbers that may be off by this part of the largest of them."""
    return bar * float(np.abs(expected).max())


def sampled(recipe: ModuleType, x: Tensor, expected: np.ndarray) -> Tensor:
    """The elements of `x` that the original's sample `expected` was taken from."""
    flat = x.detach().flatten()
    return flat[torch.from_numpy(recipe.sample_index(flat.numel(), len(expected)))]
