"""What the tests of the ops that pool regions share."""

import math

import torch
from torch import Tensor


def random_rois(n: int, images: int, side: float) -> Tensor:
    """(n, 5): a third of the corners lie outside of an image of that side."""
    corner = (torch.rand(n, 2) * 1.5 - 0.25) * side
    extent = torch.rand(n, 2) * side
    return torch.cat([torch.arange(n)[:, None] % images, corner, corner + extent], dim=1)


def bilinear(features: Tensor, y: float, x: float) -> Tensor | float:
    """(C,) of a map (C, H, W) between its cells; 0 beyond [-1, size], its edge up to there."""
    height, width = features.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    out = features.new_zeros(len(features))
    for row in {math.floor(y), math.ceil(y)}:
        for column in {math.floor(x), math.ceil(x)}:
            out += (1 - abs(y - row)) * (1 - abs(x - column)) * features[:, row, column]
    return out


def value_and_gradient(pooled: Tensor, maps: Tensor) -> list[Tensor]:
    """What was pooled from `maps`, and a gradient that differs from cell to cell."""
    return [pooled.detach(), *torch.autograd.grad(pooled.square().sum(), maps)]
