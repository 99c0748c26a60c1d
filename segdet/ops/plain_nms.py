"""What the NMS ops share where there is no binary: the same rules in plain PyTorch."""

# Lists of tensors' numbers come without complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def widened(boxes: Tensor) -> Tensor:
    """The boxes in the type that ops compute in: float64 stays, the rest becomes float32."""
    return boxes if boxes.dtype == torch.float64 else boxes.float()


def pairwise_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU (N, M) of (N, 4) and (M, 4) XYXY boxes; NaN for two boxes without area."""
    top_left = torch.maximum(boxes1[:, None, :2], boxes2[:, :2])
    bottom_right = torch.minimum(boxes1[:, None, 2:], boxes2[:, 2:])
    inter = (bottom_right - top_left).clamp(min=0).prod(2)
    area1, area2 = ((boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (boxes1, boxes2))
    return inter / (area1[:, None] + area2 - inter)


def greedy(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    iou: Callable[[Tensor, Tensor], Tensor] = pairwise_iou,
) -> Tensor:
    """Indices of the boxes that overlap no better box that stays, best first.

    Args:
        boxes: (N, ...), whatever `iou` compares.
        scores: (N,).
        iou_threshold: boxes strictly above it are dropped.
        iou: of every pair of two lists of boxes.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order]
    stays = torch.ones_like(order, dtype=torch.bool)
    for i in range(len(order)):
        if stays[i]:
            overlaps = iou(boxes[i : i + 1], boxes[i + 1 :])[0].double()  # threshold unrounded
            stays[i + 1 :] &= ~(overlaps > iou_threshold)
    return order[stays]


def class_by_class(
    nms: Callable[[Tensor, Tensor], Tensor], boxes: Tensor, scores: Tensor, idxs: Tensor
) -> Tensor:
    """Indices of the boxes that `nms(boxes, scores)` of their own class keeps, best first."""
    keep = torch.zeros_like(idxs, dtype=torch.bool)
    for one in set(idxs.tolist()):
        members = torch.where(idxs == one)[0]
        keep[members[nms(boxes[members], scores[members])]] = True
    order = scores.argsort(descending=True, stable=True)
    return order[keep[order]]


def check_boxes(op: str, boxes: Tensor, scores: Tensor, numbers: int = 4) -> None:
    """Refuse what the compiled ops refuse."""
    if boxes.dim() != 2 or boxes.shape[1] != numbers:
        raise RuntimeError(
            f"segdet::{op}: boxes must be (N, {numbers}), has shape {tuple(boxes.shape)}"
        )
    _check_length(op, boxes, scores, "scores")


def check_classes(op: str, boxes: Tensor, idxs: Tensor) -> None:
    """Refuse what the compiled ops refuse."""
    _check_length(op, boxes, idxs, "idxs")
    if idxs.is_floating_point():
        raise RuntimeError(f"segdet::{op}: idxs must be whole numbers, is {idxs.dtype}")


def _check_length(op: str, boxes: Tensor, values: Tensor, name: str) -> None:
    if values.shape != boxes.shape[:1]:
        raise RuntimeError(
            f"segdet::{op}: {name} must be (N,) with N = {len(boxes)}, has shape "
            f"{tuple(values.shape)}"
        )
