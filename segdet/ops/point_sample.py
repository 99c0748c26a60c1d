"""Bilinear samples of a map at given points, as PointRend takes them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def point_sample(input: Tensor, point_coords: Tensor, align_corners: bool = False) -> Tensor:
    """Sample each map at its points; differentiable in both arguments.

    Source: PointRend (arXiv:1912.08193), section 3.1; detectron2's function of this name. It is
    torch's grid sampling, which reads channels-last maps several times faster than others where
    there are many channels.

    Args:
        input: (N, C, H, W) floating point, H and W at least 1. float64 is computed in float64,
            everything else in float32.
        point_coords: (N, P, 2) or (N, Hg, Wg, 2) floating point: (x, y), the whole map being
            [0, 1] x [0, 1]; beyond it the map continues with zeros. Not rounded to a narrower
            `input`.
        align_corners: [0, 1] reaches from the first to the last cell's centre instead of from edge
            to edge.

    Returns:
        (N, C, P) or (N, C, Hg, Wg) of `input`'s type.

    Raises:
        RuntimeError: a wrong shape or type.
    """
    if input.dim() != 4 or not input.is_floating_point():
        raise RuntimeError(
            "segdet::point_sample: input must be (N, C, H, W) floating point, is "
            f"{tuple(input.shape)} of {input.dtype}"
        )
    shape = point_coords.shape
    if point_coords.dim() not in (3, 4) or shape[0] != input.shape[0] or shape[-1] != 2:
        raise RuntimeError(
            "segdet::point_sample: point_coords must be (N, P, 2) or (N, Hg, Wg, 2) with N = "
            f"{input.shape[0]}, has shape {tuple(shape)}"
        )
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    grid = point_coords if point_coords.dim() == 4 else point_coords[:, :, None]
    samples = F.grid_sample(input.to(wide), 2 * grid.to(wide) - 1, align_corners=align_corners)
    samples = samples.to(input.dtype)
    return samples if point_coords.dim() == 4 else samples[:, :, :, 0]
