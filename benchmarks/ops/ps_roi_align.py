"""300 regions of R-FCN's score map, 7x7 bins, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torchvision

from benchmarks.ops.duel import Duel, backward_of
from benchmarks.ops.ps_roi_pool import CLASSES, GROUP, HEIGHT, STRIDE, WIDTH, random_rois
from segdet import ops


def duels(device: str) -> Iterator[Duel]:
    rois, scale = random_rois(300, device), 1 / STRIDE
    planar = torch.randn(1, CLASSES * GROUP**2, HEIGHT, WIDTH, device=device)
    side = (rois[:, 3:] - rois[:, 1:3]) * scale / GROUP  # of a bin, in cells
    for layout, maps in (
        ("", planar),
        (" channels-last", planar.to(memory_format=torch.channels_last)),
    ):
        for ratio in (0, 2):
            samples = side.ceil() if ratio == 0 else torch.full_like(side, ratio)
            flops = 8 * CLASSES * GROUP**2 * samples.prod(1).sum().item()
            args = (rois, GROUP, scale, ratio)
            sizes: dict[str, Any] = {
                "megabytes": 4 * (maps.numel() + len(rois) * CLASSES * GROUP**2) / 1e6,
                "gigaflops": flops / 1e9,
            }
            yield Duel(
                name=f"ps_roi_align fwd 7x7 sampling {ratio}{layout}",
                ours=lambda maps=maps, args=args: ops.ps_roi_align(maps, *args),
                peer=lambda maps=maps, args=args: torchvision.ops.ps_roi_align(maps, *args),
                **sizes,
            )
            yield Duel(
                name=f"ps_roi_align bwd 7x7 sampling {ratio}{layout}",
                ours=backward_of(ops.ps_roi_align, maps, args),
                peer=backward_of(torchvision.ops.ps_roi_align, maps, args),
                **sizes,
            )
