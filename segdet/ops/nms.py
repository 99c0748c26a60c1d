"""Greedy non-maximum suppression, over all boxes or class by class."""

# torch.library and torchvision come without complete types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import torch
from torch import Tensor

from . import library


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
    _check_length(boxes, idxs, "idxs")
    if idxs.is_floating_point():
        raise RuntimeError(f"segdet::batched_nms: idxs must be whole numbers, is {idxs.dtype}")
    keep = torch.zeros_like(idxs, dtype=torch.bool)
    for one in set(idxs.tolist()):
        members = torch.where(idxs == one)[0]
        keep[members[_fallback(boxes[members], scores[members], iou_threshold)]] = True
    order = scores.argsort(descending=True, stable=True)
    return order[keep[order]]


def _fake(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    kept = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty((kept,), dtype=torch.int64)


def _fake_batched(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    return _fake(boxes, scores, iou_threshold)


library.register("nms", _fake)
library.register("batched_nms", _fake_batched)


def _fallback(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """What torchvision offers, or plain PyTorch where it is missing."""
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise RuntimeError(f"segdet::nms: boxes must be (N, 4), has shape {tuple(boxes.shape)}")
    _check_length(boxes, scores, "scores")
    wide = boxes if boxes.dtype == torch.float64 else boxes.float()
    try:
        from torchvision.ops import nms as torchvision_nms
    except (ImportError, RuntimeError, OSError):  # its binary may not fit this torch
        return _plain(wide, scores, iou_threshold)
    return torchvision_nms(wide, scores.to(wide), iou_threshold)


def _check_length(boxes: Tensor, values: Tensor, name: str) -> None:
    if values.shape != boxes.shape[:1]:
        raise RuntimeError(
            f"segdet::nms: {name} must be (N,) with N = {len(boxes)}, has shape "
            f"{tuple(values.shape)}"
        )


def _plain(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order]
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    stays = torch.ones_like(order, dtype=torch.bool)
    for i in range(len(order)):
        if stays[i]:
            rest = slice(i + 1, None)
            top_left = torch.maximum(boxes[i, :2], boxes[rest, :2])
            bottom_right = torch.minimum(boxes[i, 2:], boxes[rest, 2:])
            inter = (bottom_right - top_left).clamp(min=0).prod(1)
            stays[rest] &= ~(inter / (area[i] + area[rest] - inter) > iou_threshold)
    return order[stays]
