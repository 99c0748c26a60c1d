"""PointRend's points of 100 masks on fine features."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks.ops.duel import Duel, backward_of
from benchmarks.ops.roi_align import CHANNELS, HEIGHT, WIDTH
from segdet import ops

POINTS = 100 * 784


def duels(device: str) -> Iterator[Duel]:
    points = torch.rand(1, POINTS, 2, device=device)
    for layout in ("NCHW", "channels-last"):
        maps = torch.randn(1, CHANNELS, HEIGHT, WIDTH, device=device)
        if layout == "channels-last":
            maps = maps.to(memory_format=torch.channels_last)
        runs = {
            "fwd": (
                lambda maps=maps: ops.point_sample(maps, points),
                lambda maps=maps: grid_sample(maps, points),
            ),
            "bwd": (
                backward_of(ops.point_sample, maps, (points,)),
                backward_of(grid_sample, maps, (points,)),
            ),
        }
        for direction, (ours, peer) in runs.items():
            yield Duel(
                name=f"point_sample {direction} {POINTS} points {layout}",
                ours=ours,
                peer=peer,
                peer_name="F.grid_sample",
                megabytes=4 * CHANNELS * (HEIGHT * WIDTH + POINTS) / 1e6,
                gigaflops=8 * CHANNELS * POINTS / 1e9,
            )


def grid_sample(maps: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    return F.grid_sample(maps, 2 * points[:, :, None] - 1, align_corners=False)
