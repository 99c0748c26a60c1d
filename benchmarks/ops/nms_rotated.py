"""Rotated boxes together, and class by class, against the same rules in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.ops.box_iou_rotated import heaped_rotated_boxes
from benchmarks.ops.duel import Duel
from segdet import ops
from segdet.ops.box_iou_rotated import plain_iou
from segdet.ops.plain_nms import class_by_class, greedy


def plain(boxes: Tensor, scores: Tensor) -> Tensor:
    return greedy(boxes, scores, 0.5, plain_iou)


def duels(device: str) -> Iterator[Duel]:
    for n in (500, 2000):
        boxes, scores = heaped_rotated_boxes(n).to(device), torch.rand(n, device=device)
        kept = len(ops.nms_rotated(boxes, scores, 0.5))
        yield Duel(
            name=f"nms_rotated N={n} (kept {kept})",
            ours=lambda args=(boxes, scores, 0.5): ops.nms_rotated(*args),
            peer=lambda args=(boxes, scores): plain(*args),
            peer_name="plain PyTorch",
            megabytes=24 * n / 1e6,
            gigaflops=12 * kept * n / 2 / 1e9,
        )
    args = (boxes, scores, torch.randint(15, (n,), device=device))
    kept = len(ops.batched_nms_rotated(*args, 0.5))
    yield Duel(
        name=f"batched_nms_rotated N={n} 15 classes (kept {kept})",
        ours=lambda: ops.batched_nms_rotated(*args, 0.5),
        peer=lambda: class_by_class(plain, *args),
        peer_name="plain PyTorch",
        megabytes=32 * n / 1e6,
        gigaflops=12 * kept * n / 15 / 2 / 1e9,
    )
