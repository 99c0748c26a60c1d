"""Intersection over union of rotated boxes."""

# torch.library comes without complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import library


def box_iou_rotated(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union of every pair of rotated boxes; not differentiable.

    Source: detectron2's `pairwise_iou_rotated`. Computed in float64 whatever the type: sides that
    nearly coincide, and small boxes far from the origin, cost no digits.

    Args:
        boxes1: (N, 5) floating point: centre x, centre y, width, height in pixels and an angle in
            degrees, counter-clockwise on the screen (y points down); any number of turns.
        boxes2: (M, 5), of the same type and on the same device.

    Returns:
        (N, M) of their type, in [0, 1]; 0 where one of the two has an area below 1e-14 or a number
        that is not finite.

    Raises:
        RuntimeError: a wrong shape or type.
    """
    boxes1, boxes2 = boxes1.detach(), boxes2.detach()
    if library.has_binary(boxes1.device):
        return torch.ops.segdet.box_iou_rotated(boxes1, boxes2)
    for name, boxes in (("boxes1", boxes1), ("boxes2", boxes2)):
        if boxes.dim() != 2 or boxes.shape[1] != 5:
            raise RuntimeError(
                f"segdet::box_iou_rotated: {name} must be (N, 5), has shape {tuple(boxes.shape)}"
            )
    if boxes1.dtype != boxes2.dtype:
        raise RuntimeError(
            f"segdet::box_iou_rotated: boxes2 must be of boxes1's type, {boxes1.dtype}, is "
            f"{boxes2.dtype}"
        )
    return plain_iou(boxes1, boxes2)


def _fake(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    return boxes1.new_empty(boxes1.shape[0], boxes2.shape[0])


library.register("box_iou_rotated", _fake)


def plain_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """The op in plain PyTorch, which takes 1 KB for each pair."""
    a, b = boxes1.double()[:, None], boxes2.double()[None]
    centre = _turned(b[..., :2] - a[..., :2], -a[..., 4])  # (N, M, 2), seen from the first box
    signs = a.new_tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    corners = signs * b[..., None, 2:4] / 2  # (1, M, 4, 2)
    corners = centre[..., None, :] + _turned(corners, (b[..., 4] - a[..., 4])[..., None])
    for axis in (2, 3, 2, 3):  # right, bottom, left, top side of the first box
        corners = _cut(corners, a[..., None, axis] / 2)
        x, y = corners.unbind(-1)
        corners = torch.stack([y, -x], -1)
    corners = corners - corners[..., :1, :]
    x, y = corners.unbind(-1)
    inter = (x * y.roll(-1, -1) - y * x.roll(-1, -1)).sum(-1).abs() / 2
    area_a, area_b = a[..., 2] * a[..., 3], b[..., 2] * b[..., 3]
    inter = torch.minimum(inter, torch.minimum(area_a, area_b))
    valid = (area_a >= 1e-14) & (area_b >= 1e-14) & (inter > 0)
    return torch.where(valid, inter / (area_a + area_b - inter), 0).to(boxes1.dtype)


def _turned(points: Tensor, degrees: Tensor) -> Tensor:
    """Points (..., 2) after a turn counter-clockwise on the screen."""
    radians = degrees * (math.pi / 180)
    cos, sin = radians.cos(), radians.sin()
    x, y = points.unbind(-1)
    return torch.stack([x * cos + y * sin, y * cos - x * sin], -1)


def _cut(corners: Tensor, limit: Tensor) -> Tensor:
    """The part with x <= limit of a polygon (..., V, 2), with 2 V corners (some of them twice).

    What lies beyond is moved onto the line, where it encloses nothing.
    """
    following = corners.roll(-1, -2)
    x, step = corners[..., 0], following[..., 0] - corners[..., 0]
    until_line = ((limit - x) / step).nan_to_num(0).clamp(0, 1)[..., None]
    crossing = corners + until_line * (following - corners)
    doubled = torch.stack([corners, crossing], -2).flatten(-3, -2)
    return torch.stack([torch.minimum(doubled[..., 0], limit), doubled[..., 1]], -1)
