from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from enum import IntEnum, unique
from typing import Any, ClassVar, Self, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

RawBox = TypeVar("RawBox", list[float], tuple[float, ...], Tensor, "np.ndarray[Any, Any]")
Index = int | slice | Sequence[int] | Tensor


@unique
class BoxMode(IntEnum):
    """How the numbers of a box are to be read; the values are part of detectron2's records."""

    XYXY_ABS = 0  # x1, y1, x2, y2 in pixels
    XYWH_ABS = 1  # x1, y1, width, height in pixels
    XYXY_REL = 2  # in [0, 1] of the image; not convertible
    XYWH_REL = 3  # likewise
    XYWHA_ABS = 4  # centre x, centre y, width, height, angle in degrees counter-clockwise

    @staticmethod
    def convert(box: RawBox, from_mode: BoxMode, to_mode: BoxMode) -> RawBox:
        """Convert one box or many; a rotated box becomes the upright box around it.

        Args:
            box: k numbers as list or tuple, or an (N, k) array or tensor; k is 5 for
                XYWHA_ABS and 4 otherwise.
            from_mode: the mode of `box`.
            to_mode: the mode wanted.

        Returns:
            The same type as `box`; lists and tuples hold floats. Integer tensors and arrays
            become float32 and float64.

        Raises:
            ValueError: `box` has the wrong length.
            NotImplementedError: a relative mode.
        """
        from_mode, to_mode = BoxMode(from_mode), BoxMode(to_mode)
        if from_mode == to_mode:
            return box
        relative = {BoxMode.XYXY_REL, BoxMode.XYWH_REL} & {from_mode, to_mode}
        if relative:
            raise NotImplementedError(
                f"{relative.pop().name} boxes cannot be converted; give absolute pixels"
            )
        numbers = _to_tensor(box)
        width = 5 if from_mode == BoxMode.XYWHA_ABS else 4
        if numbers.shape[-1] != width:
            raise ValueError(
                f"a {from_mode.name} box has {width} numbers, got shape {tuple(numbers.shape)}"
            )
        to_xyxy = {BoxMode.XYWH_ABS: _xyxy_of_xywh, BoxMode.XYWHA_ABS: _xyxy_of_xywha}
        of_xyxy = {BoxMode.XYWH_ABS: _xywh_of_xyxy, BoxMode.XYWHA_ABS: _xywha_of_xyxy}
        if from_mode != BoxMode.XYXY_ABS:
            numbers = to_xyxy[from_mode](numbers)
        if to_mode != BoxMode.XYXY_ABS:
            numbers = of_xyxy[to_mode](numbers)
        return _like(numbers, box)


def _to_tensor(box: list[float] | tuple[float, ...] | Tensor | np.ndarray[Any, Any]) -> Tensor:
    if isinstance(box, (list, tuple)):
        return torch.tensor(box, dtype=torch.float64)
    if isinstance(box, Tensor):
        return box if box.is_floating_point() else box.float()
    return torch.as_tensor(box if box.dtype.kind == "f" else box.astype(np.float64))


def _like(numbers: Tensor, box: RawBox) -> RawBox:
    if isinstance(box, Tensor):
        return numbers
    if isinstance(box, np.ndarray):
        return cast(RawBox, numbers.numpy())
    values = cast(list[float], cast(Any, numbers).tolist())
    return cast(RawBox, values if isinstance(box, list) else tuple(values))


def _xyxy_of_xywh(box: Tensor) -> Tensor:
    return torch.cat([box[..., :2], box[..., :2] + box[..., 2:]], -1)


def _xywh_of_xyxy(box: Tensor) -> Tensor:
    return torch.cat([box[..., :2], box[..., 2:] - box[..., :2]], -1)


def _xywha_of_xyxy(box: Tensor) -> Tensor:
    centre, size = (box[..., :2] + box[..., 2:]) / 2, box[..., 2:] - box[..., :2]
    return torch.cat([centre, size, torch.zeros_like(size[..., :1])], -1)


def _xyxy_of_xywha(box: Tensor) -> Tensor:
    x, y, w, h, angle = box.double().unbind(-1)
    radians = angle * (math.pi / 180)
    cos, sin = radians.cos().abs(), radians.sin().abs()
    half_w, half_h = (cos * w + sin * h) / 2, (sin * w + cos * h) / 2
    corners = torch.stack([x - half_w, y - half_h, x + half_w, y + half_h], -1)
    return corners.to(box.dtype)


def box_area(boxes: Tensor) -> Tensor:
    """Areas (N,) of (N, 4) XYXY boxes; negative where a box is turned inside out."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def box_intersection(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Areas (N, M) that (N, 4) and (M, 4) XYXY boxes share, pair by pair."""
    # Each axis by itself and in place: crowded images have 10^8 pairs and more.
    width, height = (
        torch.minimum(boxes1[:, None, axis + 2], boxes2[:, axis + 2])
        .sub_(torch.maximum(boxes1[:, None, axis], boxes2[:, axis]))
        .clamp_(min=0)
        for axis in (0, 1)
    )
    return width.mul_(height)


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union of every pair of boxes.

    Args:
        boxes1: (N, 4) XYXY; width is x2 - x1 (no "+1").
        boxes2: (M, 4), likewise.

    Returns:
        (N, M) in [0, 1]; 0 where boxes do not overlap, and for boxes without area.
    """
    inter = box_intersection(boxes1, boxes2)
    union = (box_area(boxes1)[:, None] + box_area(boxes2)).sub_(inter)
    apart = (inter > 0).logical_not_()  # NaN too
    return inter.masked_fill_(apart, 0).div_(union.masked_fill_(apart, 1))


def clip_boxes(boxes: Tensor, box_size: tuple[int, int]) -> Tensor:
    """Move the corners of (N, 4) XYXY boxes into [0, W] x [0, H].

    Args:
        boxes: (N, 4) XYXY.
        box_size: (height, width) of the image.
    """
    h, w = box_size
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([x1.clamp(0, w), y1.clamp(0, h), x2.clamp(0, w), y2.clamp(0, h)], -1)


class Boxes:
    """(N, 4) boxes, XYXY in absolute pixels.

    float32, as in detectron2, except that a float64 tensor stays float64 (detectron2 narrows
    it), so that a model can run in double precision from end to end.

    Attributes:
        tensor: (N, 4).
    """

    tensor: Tensor
    _numbers: ClassVar[int] = 4  # of a box

    def __init__(self, tensor: Tensor | np.ndarray[Any, Any] | Sequence[Any]) -> None:
        if not isinstance(tensor, Tensor):
            tensor = torch.as_tensor(np.asarray(tensor, np.float32))
        elif tensor.dtype != torch.float64:
            tensor = tensor.to(torch.float32)
        if tensor.numel() == 0:
            tensor = tensor.reshape(-1, self._numbers)
        if tensor.ndim != 2 or tensor.shape[-1] != self._numbers:
            raise ValueError(
                f"{type(self).__name__} takes an (N, {self._numbers}) tensor, "
                f"got shape {tuple(tensor.shape)}"
            )
        self.tensor = tensor

    def clone(self) -> Self:
        """A copy that shares no memory."""
        return type(self)(self.tensor.clone())

    def to(self, device: torch.device | str) -> Self:
        """The boxes on `device`."""
        return type(self)(self.tensor.to(device=device))

    @property
    def device(self) -> torch.device:
        """Where `tensor` is."""
        return self.tensor.device

    def area(self) -> Tensor:
        """(N,) areas in square pixels."""
        return box_area(self.tensor)

    def clip(self, box_size: tuple[int, int]) -> None:
        """Move the corners into the image, in place.

        Args:
            box_size: (height, width).

        Raises:
            ValueError: a coordinate is infinite or NaN.
        """
        if not self.tensor.isfinite().all():
            raise ValueError(
                "cannot clip boxes with infinite or NaN coordinates; drop such rows first"
            )
        self.tensor = clip_boxes(self.tensor, box_size)

    def nonempty(self, threshold: float = 0.0) -> Tensor:
        """(N,) bool: both width and height are greater than `threshold` pixels."""
        return (self.tensor[:, 2:] - self.tensor[:, :2] > threshold).all(-1)

    def __getitem__(self, item: Index) -> Self:
        """The boxes at an int (as one box), a slice, a list, or an int64 or bool tensor."""
        if isinstance(item, int):
            return type(self)(self.tensor[item][None])
        rows = self.tensor[item]
        if rows.ndim != 2:
            raise IndexError(
                f"indexing {type(self).__name__} with {item!r} gives shape {tuple(rows.shape)}"
            )
        return type(self)(rows)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        """One tensor per box."""
        yield from self.tensor

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.tensor})"

    def inside_box(self, box_size: tuple[int, int], boundary_threshold: int = 0) -> Tensor:
        """(N,) bool: the box crosses the image border by no more than a margin.

        Args:
            box_size: (height, width).
            boundary_threshold: the margin in pixels.
        """
        h, w = box_size
        limit = self.tensor.new_tensor([w, h]) + boundary_threshold
        low, high = self.tensor[:, :2], self.tensor[:, 2:]
        return ((low >= -boundary_threshold) & (high < limit)).all(-1)

    def get_centers(self) -> Tensor:
        """(N, 2) centres, x and y."""
        return (self.tensor[:, :2] + self.tensor[:, 2:]) / 2

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Multiply x and y coordinates, in place."""
        factors = self.tensor.new_tensor([scale_x, scale_y, scale_x, scale_y])
        self.tensor = self.tensor * factors

    @classmethod
    def cat(cls, boxes_list: Sequence[Self]) -> Self:
        """All boxes in one, in order; none for an empty list."""
        if len(boxes_list) == 0:
            return cls(torch.empty(0, cls._numbers))
        return cls(torch.cat([boxes.tensor for boxes in boxes_list]))


def pairwise_intersection(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N, M) shared areas of all pairs."""
    return box_intersection(boxes1.tensor, boxes2.tensor)


def pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N, M) intersection over union of all pairs; see `box_iou`."""
    return box_iou(boxes1.tensor, boxes2.tensor)


def pairwise_ioa(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N, M) intersection over the area of the box in `boxes2`; 0 where they are apart."""
    inter = box_intersection(boxes1.tensor, boxes2.tensor)
    return torch.where(inter > 0, inter / boxes2.area(), 0)


def pairwise_point_box_distance(points: Tensor, boxes: Boxes) -> Tensor:
    """Distances from points to the sides of boxes; all positive where the point is inside.

    Args:
        points: (P, 2), x and y.
        boxes: N boxes.

    Returns:
        (P, N, 4): to the left, top, right and bottom side.
    """
    low = points[:, None] - boxes.tensor[:, :2]
    return torch.cat([low, boxes.tensor[:, 2:] - points[:, None]], -1)


def matched_pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N,) intersection over union of the i-th with the i-th box; 0 where they are apart.

    Raises:
        ValueError: the lengths differ.
    """
    if len(boxes1) != len(boxes2):
        raise ValueError(f"matched boxes must be equally many, are {len(boxes1)}, {len(boxes2)}")
    a, b = boxes1.tensor, boxes2.tensor
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    inter = (high - low).clamp(min=0).prod(-1)
    return torch.where(inter > 0, inter / (box_area(a) + box_area(b) - inter), 0)


matched_boxlist_iou = matched_pairwise_iou
