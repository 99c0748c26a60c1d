"""300 regions of one score map: R-FCN's 7x7 bins, and FCIS's 21x21 bins of 7x7 groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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


def repeated(maps: Tensor, rois: Tensor, times: int) -> Tensor:
    """Bins of 7x7 in place of FCIS's 21x21, each given several times: the nearest there is."""
    pooled = torchvision.ops.ps_roi_pool(maps, rois, GROUP, 1 / STRIDE)
    return pooled.repeat_interleave(times, 2).repeat_interleave(times, 3)


def duels(device: str) -> Iterator[Duel]:
    rois, scale = random_rois(300, device), 1 / STRIDE
    args = (rois, GROUP, scale)
    side = (rois[:, 3:] - rois[:, 1:3]) * scale / GROUP + 1  # of a bin, in cells
    for layout, memory_format in (
        ("", torch.contiguous_format),
        (" channels-last", torch.channels_last),
    ):
        # Two maps, inside and outside, as FCIS has them.
        both = torch.randn(1, 2 * CLASSES * GROUP**2, HEIGHT, WIDTH, device=device)
        both = both.to(memory_format=memory_format)
        maps = both[:, : CLASSES * GROUP**2].contiguous(memory_format=memory_format)
        cells = side.prod(1).sum().item() * CLASSES * GROUP**2
        pooled_bytes = 4 * len(rois) * CLASSES * GROUP**2
        sizes: dict[str, Any] = {
            "megabytes": (4 * maps.numel() + pooled_bytes) / 1e6,
            "gigaflops": cells / 1e9,
        }
        yield Duel(
            name=f"ps_roi_pool fwd 7x7{layout}",
            ours=lambda maps=maps: ops.ps_roi_pool(maps, *args, rounding="cells"),
            peer=lambda maps=maps: torchvision.ops.ps_roi_pool(maps, *args),
            **sizes,
        )
        yield Duel(
            name=f"ps_roi_pool bwd 7x7{layout}",
            ours=backward_of(ops.ps_roi_pool, maps, (*args, None, "cells")),
            peer=backward_of(torchvision.ops.ps_roi_pool, maps, args),
            **sizes,
        )
        yield Duel(
            name=f"ps_roi_pool fwd 21x21 of 7x7{layout}",
            ours=lambda maps=both: ops.ps_roi_pool(maps, rois, 21, scale, GROUP),
            peer=lambda maps=both: repeated(maps, rois, 3),
            peer_name=f"torchvision {torchvision.__version__}, 7x7 repeated",
            megabytes=(4 * both.numel() + 18 * pooled_bytes) / 1e6,
            gigaflops=2 * cells / 1e9,
        )
