"""PointRend's points of 100 masks on fine features: what the memory format costs."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.ops.duel import Duel
from benchmarks.ops.roi_align import CHANNELS, HEIGHT, WIDTH
from segdet import ops

POINTS = 100 * 784


def duels(device: str) -> Iterator[Duel]:
    maps = torch.randn(1, CHANNELS, HEIGHT, WIDTH, device=device)
    channels_last = maps.to(memory_format=torch.channels_last)
    points = torch.rand(1, POINTS, 2, device=device)
    yield Duel(
        name=f"point_sample {POINTS} points channels-last",
        ours=lambda: ops.point_sample(channels_last, points),
        peer=lambda: ops.point_sample(maps, points),
        peer_name="the same in NCHW",
        megabytes=4 * CHANNELS * (HEIGHT * WIDTH + POINTS) / 1e6,
        gigaflops=8 * CHANNELS * POINTS / 1e9,
    )
