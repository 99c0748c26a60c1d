"""512 rotated regions of one feature map, against sampling them on a grid."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ops.duel import Duel, backward_of
from benchmarks.ops.roi_align import CHANNELS, HEIGHT, STRIDE, WIDTH, random_rois
from segdet import ops


def rotated_rois(n: int, device: str) -> Tensor:
    """(n, 6): the regions of the upright op, turned by any angle."""
    image, x1, y1, x2, y2 = random_rois(n, device).unbind(1)
    angle = torch.rand_like(x1) * 360 - 180
    return torch.stack([image, (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, angle], dim=1)


def sampled_on_grid(maps: Tensor, rois: Tensor, bins: int, scale: float, ratio: int) -> Tensor:
    """The same samples by torch's grid sampling, but for those beyond the map's border."""
    _, cx, cy, w, h, angle = (column[:, None, None] for column in rois.unbind(1))
    place = (torch.arange(bins * ratio, device=maps.device) + 0.5) / (bins * ratio) - 0.5
    v, u = place[:, None] * h, place * w
    sine, cosine = angle.deg2rad().sin(), angle.deg2rad().cos()
    x = (v * sine + u * cosine + cx) * scale / maps.shape[3] * 2 - 1  # (R, samples, samples)
    y = (v * cosine - u * sine + cy) * scale / maps.shape[2] * 2 - 1
    grid = torch.stack([x, y], dim=3).flatten(0, 1)[None]  # one image's: (1, R * samples, ...)
    samples = F.grid_sample(maps, grid, align_corners=False)
    pooled = F.avg_pool2d(samples, ratio)
    return pooled.unflatten(2, (len(rois), bins))[0].transpose(0, 1)


def duels(device: str) -> Iterator[Duel]:
    planar = torch.randn(1, CHANNELS, HEIGHT, WIDTH, device=device)
    args = (rotated_rois(512, device), 7, 1 / STRIDE, 2)
    pooled_bytes = 4 * 512 * CHANNELS * 49
    flops = 8 * 4 * 512 * CHANNELS * 49
    for layout, memory_format in (
        ("", torch.contiguous_format),
        (" channels-last", torch.channels_last),
    ):
        maps = planar.contiguous(memory_format=memory_format)
        yield Duel(
            name=f"roi_align_rotated fwd 7x7 sampling 2{layout}",
            ours=lambda maps=maps: ops.roi_align_rotated(maps, *args),
            peer=lambda maps=maps: sampled_on_grid(maps, *args),
            peer_name="grid_sample",
            megabytes=(4 * maps.numel() + pooled_bytes) / 1e6,
            gigaflops=flops / 1e9,
        )
        yield Duel(
            name=f"roi_align_rotated bwd 7x7 sampling 2{layout}",
            ours=backward_of(ops.roi_align_rotated, maps, args),
            peer=backward_of(sampled_on_grid, maps, args),
            peer_name="grid_sample",
            megabytes=(8 * maps.numel() + pooled_bytes) / 1e6,
            gigaflops=flops / 1e9,
        )
