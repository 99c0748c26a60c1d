"""512 regions of one feature map, forward and backward."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
import torchvision
from torch import Tensor

from benchmarks.ops.duel import Duel, backward_of
from segdet import ops

CHANNELS, HEIGHT, WIDTH, STRIDE = 256, 200, 304, 4  # the p2 level of an 800 x 1216 image


def random_rois(n: int, device: str) -> Tensor:
    """(n, 5) in one image: sides of 16 to 400 pixels, log-uniform, clipped to the image."""
    size = torch.tensor([WIDTH * STRIDE, HEIGHT * STRIDE], dtype=torch.float32)
    side = torch.exp(torch.rand(n, 2) * math.log(400 / 16)) * 16
    centre = torch.rand(n, 2) * size
    low, high = (centre - side / 2).clamp(min=0), torch.minimum(centre + side / 2, size)
    return torch.cat([torch.zeros(n, 1), low, high], dim=1).to(device)


def duels(device: str) -> Iterator[Duel]:
    """The peer gets NCHW in either row: channels-last ones it would copy first."""
    maps = torch.randn(1, CHANNELS, HEIGHT, WIDTH, device=device)
    layouts = {"NCHW": maps, "channels-last": maps.to(memory_format=torch.channels_last)}
    rois = random_rois(512, device)
    for bins, ratio in itertools.product((7, 14), (0, 2)):
        args = (rois, bins, 1 / STRIDE, ratio, True)
        side = (rois[:, 3:] - rois[:, 1:3]) / STRIDE / bins  # of a bin, in cells
        samples = side.ceil() if ratio == 0 else torch.full_like(side, ratio)
        gigaflops = 8 * CHANNELS * bins**2 * samples.prod(1).sum().item() / 1e9
        pooled_bytes = 4 * len(rois) * CHANNELS * bins**2
        map_bytes = 4 * maps.numel()
        for layout, ours in layouts.items():
            yield Duel(
                name=f"roi_align fwd {bins}x{bins} sampling {ratio} {layout}",
                ours=lambda ours=ours, args=args: ops.roi_align(ours, *args),
                peer=lambda args=args: torchvision.ops.roi_align(maps, *args),
                megabytes=(map_bytes + pooled_bytes) / 1e6,
                gigaflops=gigaflops,
            )
            yield Duel(
                name=f"roi_align bwd {bins}x{bins} sampling {ratio} {layout}",
                ours=backward_of(ops.roi_align, ours, args),
                peer=backward_of(torchvision.ops.roi_align, maps, args),
                megabytes=(2 * map_bytes + pooled_bytes) / 1e6,
                gigaflops=gigaflops,
            )
