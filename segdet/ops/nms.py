"""Greedy non-maximum suppression, over all boxes or class by class."""

# torch.library and torchvision come without complete types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import torch
from torch import Tensor

from . import library, plain_nms


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Keep each box that overlaps no better box that was kept.

    Args:
        boxes: (N, 4) floating point, XYXY. Compared in float32, float64 boxes in float64.
        scores: (N,); of equal scores the lower index is better.
        iou_threshold: boxes above it are dropped, a pair exactly at it stays. The IoU of two empty
            boxes is undefined and drops nothing.

    Returns:
        (K,) int64 indices into `boxes`, best first.

    Raises:
        RuntimeError: a wrong shape or type.
    """
    if library.has_binary(boxes.device):
        return torch.ops.segdet.nms(boxes, scores, iou_threshold)
    plain_nms.check_boxes("nms", boxes, scores)
    return _fallback(boxes, scores, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """`nms` of every class by itself: boxes of different classes never drop each other.

    Exact: classes are told apart by their number, not by moving their boxes apart, which costs
    float32 its last digits and mixes classes where coordinates are negative.

    Args:
        boxes: (N, 4) floating point, XYXY.
        scores: (N,); of equal scores the lower index is better.
        idxs: (N,) whole numbers: the class (or the pyramid level) of each box.
        iou_threshold: as in `nms`.

    Returns:
        (K,) int64 indices into `boxes`, best first over all classes.

    Raises:
        RuntimeError: a wrong shape or type.
    """
    if library.has_binary(boxes.device):
        return torch.ops.segdet.batched_nms(boxes, scores, idxs, iou_threshold)
    plain_nms.check_boxes("batched_nms", boxes, scores)
    plain_nms.check_classes("batched_nms", boxes, idxs)
    return plain_nms.class_by_class(
        lambda boxes, scores: _fallback(boxes, scores, iou_threshold), boxes, scores, idxs
    )


def _fake(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    kept = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty((kept,), dtype=torch.int64)


def _fake_batched(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    return _fake(boxes, scores, iou_threshold)


library.register("nms", _fake)
library.register("batched_nms", _fake_batched)


def _fallback(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """What torchvision offers, or plain PyTorch where it is missing."""
    boxes = plain_nms.widened(boxes)
    try:
        from torchvision.ops import nms as torchvision_nms
    except (ImportError, RuntimeError, OSError):  # its binary may not fit this torch
        return plain_nms.greedy(boxes, scores, iou_threshold)
    order = scores.argsort(descending=True, stable=True)
    rank = torch.empty_like(order)  # scores that only float64 tells apart stay apart
    rank[order] = torch.arange(len(order), 0, -1, device=order.device)
    return torchvision_nms(boxes, rank.to(boxes), iou_threshold)
