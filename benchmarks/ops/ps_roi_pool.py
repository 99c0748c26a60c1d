"""300 regions of one score map: R-FCN's 7x7 bins, and FCIS's 21x21 bins of 7x7 groups."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torchvision
from torch import Tensor

from benchmarks.ops.duel import Duel, backward_of
from segdet import ops

HEIGHT, WIDTH, STRIDE = 50, 76, 16  # the res5 level of an 800 x 1216 image
CLASSES, GROUP = 81, 7


def random_rois(n: int, device: str) -> Tensor:
    """(n, 5) in one image: sides of 16 to 400 pixels, clipped to the image."""
    size = torch.tensor([WIDTH * STRIDE, HEIGHT * STRIDE], dtype=torch.float32)
    side = torch.rand(n, 2) * 384 + 16
    centre = torch.rand(n, 2) * size
    low, high = (centre - side / 2).clamp(min=0), torch.minimum(centre + side / 2, size)
    return torch.cat([torch.zeros(n, 1), low, high], dim=1).to(device)


def in_each_cell(maps: Tensor, rois: Tensor, bins: int, scale: float) -> Tensor:
    """FCIS's pooling by way of 7x7 bins, torchvision's only ones: the nearest there is."""
    pooled = torchvision.ops.ps_roi_pool(maps, rois, GROUP, scale)
    return pooled.repeat_interleave(bins // GROUP, 2).repeat_interleave(bins // GROUP, 3)


def duels(device: str) -> Iterator[Duel]:
    rois, scale = random_rois(300, device), 1 / STRIDE
    planar = torch.randn(1, CLASSES * GROUP**2, HEIGHT, WIDTH, device=device)
    for layout, maps in (
        ("", planar),
        (" channels-last", planar.to(memory_format=torch.channels_last)),
    ):
        side = (rois[:, 3:] - rois[:, 1:3]) * scale / GROUP + 1  # of a bin, in cells
        cells = side.prod(1).sum().item() * CLASSES * GROUP**2
        pooled_bytes = 4 * len(rois) * CLASSES * GROUP**2
        args = (rois, GROUP, scale)
        yield Duel(
            name=f"ps_roi_pool fwd 7x7{layout}",
            ours=lambda maps=maps: ops.ps_roi_pool(maps, *args, rounding="cells"),
            peer=lambda maps=maps: torchvision.ops.ps_roi_pool(maps, *args),
            megabytes=(4 * maps.numel() + pooled_bytes) / 1e6,
            gigaflops=cells / 1e9,
        )
        yield Duel(
            name=f"ps_roi_pool bwd 7x7{layout}",
            ours=backward_of(ops.ps_roi_pool, maps, (*args, None, "cells")),
            peer=backward_of(torchvision.ops.ps_roi_pool, maps, args),
            megabytes=(4 * maps.numel() + pooled_bytes) / 1e6,
            gigaflops=cells / 1e9,
        )
        wide = torch.cat([maps, maps], 1).contiguous(
            memory_format=torch.channels_last if layout else torch.contiguous_format
        )
        yield Duel(
            name=f"ps_roi_pool fwd 21x21 of 7x7{layout}",
            ours=lambda maps=wide: ops.ps_roi_pool(maps, rois, 21, scale, GROUP),
            peer=lambda maps=wide: in_each_cell(maps, rois, 21, scale),
            megabytes=(8 * maps.numel() + 18 * pooled_bytes) / 1e6,
            gigaflops=2 * cells / 1e9,
        )
