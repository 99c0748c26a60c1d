"""Linear and Gaussian soft NMS, against the same rounds in plain PyTorch (AdelaiDet's way)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.ops.duel import Duel
from benchmarks.ops.nms import heaped_boxes
from segdet import ops
from segdet.ops.plain_nms import pairwise_iou


def plain(boxes: Tensor, scores: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """Rounds over the boxes that are left, each a handful of tensor operations."""
    index = torch.arange(len(boxes), device=boxes.device)
    kept: list[Tensor] = []
    lowered: list[Tensor] = []
    while len(index):
        best = scores.argmax()
        kept.append(index[best])
        lowered.append(scores[best])
        iou = pairwise_iou(boxes[best][None], boxes)[0]
        if method == "linear":
            scores = scores * torch.where(iou > 0.3, 1 - iou, 1)
        else:
            scores = scores * (-(iou**2) / 0.5).exp()
        left = scores > 0.001
        left[best] = False
        boxes, scores, index = boxes[left], scores[left], index[left]
    return torch.stack(kept), torch.stack(lowered)


def duels(device: str) -> Iterator[Duel]:
    for n, method in ((1000, "linear"), (1000, "gaussian"), (5000, "linear")):
        boxes, scores, _ = heaped_boxes(n, device)
        kept = len(ops.soft_nms(boxes, scores, 0.3, method=method)[0])
        yield Duel(
            name=f"soft_nms {method} N={n} (kept {kept})",
            ours=lambda args=(boxes, scores, 0.3), rule=method: ops.soft_nms(*args, method=rule),
            peer=lambda args=(boxes, scores, method): plain(*args),
            peer_name="plain PyTorch",
            megabytes=32 * n / 1e6,
            gigaflops=12 * kept * n / 2 / 1e9,
        )
