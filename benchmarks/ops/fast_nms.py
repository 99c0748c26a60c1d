"""Fast NMS of 80 classes, against YOLACT's formulation in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.ops.duel import Duel
from benchmarks.ops.nms import heaped_boxes
from segdet import ops

CLASSES, TOP_K, DETECTIONS = 80, 200, 100


def plain(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Sort, the upper triangles of all classes' IoU at once, maximum."""
    scores, index = scores.sort(1, descending=True)
    scores, index = scores[:, :TOP_K], index[:, :TOP_K]
    best = boxes[index]  # (K, k, 4)
    top_left = torch.maximum(best[:, :, None, :2], best[:, None, :, :2])
    bottom_right = torch.minimum(best[:, :, None, 2:], best[:, None, :, 2:])
    inter = (bottom_right - top_left).clamp(min=0).prod(-1)
    area = (best[..., 2:] - best[..., :2]).prod(-1)
    iou = (inter / (area[:, :, None] + area[:, None] - inter)).triu(1)
    stays = iou.amax(1) <= 0.5
    classes = torch.arange(len(scores), device=scores.device)[:, None].expand_as(index)
    order = scores[stays].argsort(descending=True)[:DETECTIONS]
    return index[stays][order], classes[stays][order]


def duels(device: str) -> Iterator[Duel]:
    for n in (1000, 5000):
        boxes = heaped_boxes(n, device)[0]
        scores = torch.rand(CLASSES, n, device=device)
        yield Duel(
            name=f"fast_nms N={n} {CLASSES} classes",
            ours=lambda args=(boxes, scores): ops.fast_nms(*args, 0.5, TOP_K, DETECTIONS),
            peer=lambda args=(boxes, scores): plain(*args),
            peer_name="plain PyTorch",
            megabytes=(16 + 4 * CLASSES) * n / 1e6,
            gigaflops=12 * CLASSES * TOP_K**2 / 2 / 1e9,
        )
