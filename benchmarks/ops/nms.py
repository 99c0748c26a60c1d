"""All boxes together, and class by class."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torchvision
from torch import Tensor

from benchmarks.ops.duel import Duel
from segdet import ops


def heaped_boxes(n: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (n, 4) in heaps of 20 around one object each, scores (n,), classes (n,) of 80."""
    centre = (torch.rand(n // 20, 2) * 1000).repeat_interleave(20, dim=0) + torch.randn(n, 2) * 8
    side = torch.rand(n, 2) * 60 + 40
    boxes = torch.cat([centre - side / 2, centre + side / 2], dim=1)
    return boxes.to(device), torch.rand(n).to(device), torch.randint(80, (n,)).to(device)


def duels(device: str) -> Iterator[Duel]:
    for n in (1000, 5000, 20000):
        boxes, scores, classes = heaped_boxes(n, device)
        kept = len(ops.nms(boxes, scores, 0.5))
        yield Duel(
            name=f"nms N={n} (kept {kept})",
            ours=lambda args=(boxes, scores, 0.5): ops.nms(*args),
            peer=lambda args=(boxes, scores, 0.5): torchvision.ops.nms(*args),
            megabytes=20 * n / 1e6,
            gigaflops=12 * kept * n / 2 / 1e9,
        )
        args = (boxes, scores, classes, 0.5)
        kept = len(ops.batched_nms(*args))
        yield Duel(
            name=f"batched_nms N={n} 80 classes (kept {kept})",
            ours=lambda args=args: ops.batched_nms(*args),
            peer=lambda args=args: torchvision.ops.batched_nms(*args),
            megabytes=28 * n / 1e6,
            gigaflops=12 * kept * n / 80 / 2 / 1e9,
        )
