"""3x3 convolutions of Mask R-CNN with a ReLU, for inference, on channels-last maps."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks.ops.duel import Duel
from segdet.ops import winograd_conv, winograd_weight

LAYERS = {  # (B, C, H, W) of input and output
    "mask head": (100, 256, 14, 14),
    "pyramid, stride 4 of 640x480": (1, 256, 120, 160),
    "res2": (1, 64, 120, 160),
    "res4": (1, 256, 30, 40),
    "res5": (1, 512, 15, 20),
}


def duels(device: str) -> Iterator[Duel]:
    """`gigaflops` are those of the direct sum, so times below `limit_s` can be had."""
    if device != "cpu":
        return
    for name, shape in LAYERS.items():
        x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
        channels = shape[1]
        weight = torch.randn(channels, channels, 3, 3) / (9 * channels) ** 0.5
        rows = weight.contiguous(memory_format=torch.channels_last)
        packed, bias = winograd_weight(weight), torch.randn(channels)
        yield Duel(
            name=f"winograd_conv {name}, {'x'.join(map(str, shape))}",
            ours=lambda x=x, packed=packed, bias=bias: winograd_conv(x, packed, bias, relu=True),
            peer=lambda x=x, rows=rows, bias=bias: F.relu_(F.conv2d(x, rows, bias, padding=1)),
            megabytes=4 * (2 * x.numel() + weight.numel()) / 1e6,
            gigaflops=2 * x.numel() * 9 * channels / 1e9,
            peer_name=f"torch {torch.__version__}",
        )
