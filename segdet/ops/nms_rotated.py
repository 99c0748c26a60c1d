"""Greedy non-maximum suppression of rotated boxes, over all boxes or class by class."""

# torch.library comes without complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import torch
from torch import Tensor

from . import library, plain_nms
from .box_iou_rotated import plain_iou


def nms_rotated(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Keep each rotated box that overlaps no better box that was kept.

    Source: detectron2's `nms_rotated`.

    Args:
        boxes: (N, 5) floating point: centre, size, degrees, as for `box_iou_rotated`.
        scores: (N,); of equal scores the lower index is better.
        iou_threshold: boxes above it are dropped, a pair exactly at it (in the boxes' type) stays.

    Returns:
        (K,) int64 indices into `boxes`, best first.

    Raises:
        RuntimeError: a wrong shape or type.
    """
    if library.has_binary(boxes.device):
        return torch.ops.segdet.nms_rotated(boxes, scores, iou_threshold)
    plain_nms.check_boxes("nms_rotated", boxes, scores, numbers=5)
    return _fallback(boxes, scores, iou_threshold)


def batched_nms_rotated(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float
) -> Tensor:
    """`nms_rotated` of every class by itself: boxes of different classes never drop each other.

    Exact, where detectron2 moves classes apart in float32.

    Args:
        boxes: (N, 5) floating point, as for `nms_rotated`.
        scores: (N,); of equal scores the lower index is better.
        idxs: (N,) whole numbers: the class of each box.
        iou_threshold: as in `nms_rotated`.

    Returns:
        (K,) int64 indices into `boxes`, best first over all classes.

    Raises:
        RuntimeError: a wrong shape or type.
    """
    if library.has_binary(boxes.device):
        return torch.ops.segdet.batched_nms_rotated(boxes, scores, idxs, iou_threshold)
    plain_nms.check_boxes("batched_nms_rotated", boxes, scores, numbers=5)
    plain_nms.check_classes("batched_nms_rotated", boxes, idxs)
    return plain_nms.class_by_class(
        lambda boxes, scores: _fallback(boxes, scores, iou_threshold), boxes, scores, idxs
    )


def _fake(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    kept = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty((kept,), dtype=torch.int64)


def _fake_batched(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    return _fake(boxes, scores, iou_threshold)


library.register("nms_rotated", _fake)
library.register("batched_nms_rotated", _fake_batched)


def _fallback(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return plain_nms.greedy(plain_nms.widened(boxes), scores, iou_threshold, plain_iou)
