"""Matrix NMS of SOLOv2's 500 candidates, against its formulation in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.ops.duel import Duel
from segdet import ops

N, HEIGHT, WIDTH = 500, 200, 304


def plain(masks: Tensor, scores: Tensor, classes: Tensor) -> Tensor:
    """AdelaiDet's: IoU as a matrix product; scores descend."""
    pixels = masks.flatten(1).float()
    inter, area = pixels @ pixels.T, pixels.sum(1)
    iou = (inter / (area[:, None] + area - inter)).triu(1)
    iou = iou * (classes[:, None] == classes).float().triu(1)
    most = iou.amax(0)[:, None]
    return scores * ((-2 * iou**2).exp() / (-2 * most**2).exp()).amin(0)


def ellipses(n: int) -> Tensor:
    """(n, HEIGHT, WIDTH) bool in heaps of 10, each about 40 cells across."""
    centre = torch.rand(n // 10, 2).repeat_interleave(10, 0) * torch.tensor([WIDTH, HEIGHT])
    centre, radius = centre + torch.randn(n, 2) * 3, torch.rand(n, 2) * 15 + 12
    x, y = (
        ((torch.arange(size) - centre[:, axis, None]) / radius[:, axis, None]) ** 2
        for axis, size in enumerate((WIDTH, HEIGHT))
    )
    return y[:, :, None] + x[:, None] < 1


def duels(device: str) -> Iterator[Duel]:
    scores = torch.rand(N).sort(descending=True)[0]
    args = (ellipses(N).to(device), scores.to(device), torch.randint(80, (N,), device=device))
    one_class = (*args[:2], torch.zeros_like(args[2]))
    for name, inputs in (("80 classes", args), ("1 class", one_class)):
        yield Duel(
            name=f"matrix_nms N={N} {HEIGHT}x{WIDTH} {name}",
            ours=lambda inputs=inputs: ops.matrix_nms(*inputs),
            peer=lambda inputs=inputs: plain(*inputs),
            peer_name="plain PyTorch",
            megabytes=N * HEIGHT * WIDTH / 1e6,
            gigaflops=0,
        )
