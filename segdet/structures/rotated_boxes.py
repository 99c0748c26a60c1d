from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from segdet.ops import box_iou_rotated
from segdet.structures.boxes import Boxes, BoxMode, clip_boxes


class RotatedBoxes(Boxes):
    """(N, 5) rotated boxes: centre x, centre y, width, height, angle.

    Absolute pixels; the angle is in degrees, counter-clockwise on the screen (y points down).
    float32, except that a float64 tensor stays float64.

    Attributes:
        tensor: (N, 5).
    """

    _numbers: ClassVar[int] = 5

    def area(self) -> Tensor:
        """(N,) areas in square pixels."""
        return self.tensor[:, 2] * self.tensor[:, 3]

    def normalize_angles(self) -> None:
        """Bring the angles into [-180, 180) degrees, in place."""
        angle = (self.tensor[:, 4] + 180) % 360 - 180
        self.tensor = torch.cat([self.tensor[:, :4], angle[:, None]], 1)

    def clip(self, box_size: tuple[int, int], clip_angle_threshold: float = 1.0) -> None:
        """Clip the boxes that are nearly upright to the image, in place; leave the others.

        A box cut at an angle is no rotated box any more, hence the restriction. Angles are
        brought into [-180, 180).

        Args:
            box_size: (height, width).
            clip_angle_threshold: a box within this many degrees of 0 counts as upright.
        """
        self.normalize_angles()
        upright = self.tensor[:, 4].abs() <= clip_angle_threshold
        centre, size = self.tensor[upright, :2], self.tensor[upright, 2:4]
        clipped = clip_boxes(torch.cat([centre - size / 2, centre + size / 2], 1), box_size)
        new = BoxMode.convert(clipped, BoxMode.XYXY_ABS, BoxMode.XYWHA_ABS)
        self.tensor = self.tensor.clone()
        self.tensor[upright, :4] = new[:, :4]

    def nonempty(self, threshold: float = 0.0) -> Tensor:
        """(N,) bool: both width and height are greater than `threshold` pixels."""
        return (self.tensor[:, 2:4] > threshold).all(-1)

    def inside_box(self, box_size: tuple[int, int], boundary_threshold: int = 0) -> Tensor:
        """(N,) bool: no corner crosses the image border by more than a margin.

        Args:
            box_size: (height, width).
            boundary_threshold: the margin in pixels.
        """
        h, w = box_size
        around = BoxMode.convert(self.tensor, BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS)
        limit = self.tensor.new_tensor([w, h]) + boundary_threshold
        return ((around[:, :2] >= -boundary_threshold) & (around[:, 2:] < limit)).all(-1)

    def get_centers(self) -> Tensor:
        """(N, 2) centres, x and y."""
        return self.tensor[:, :2]

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Stretch the image under the boxes, in place.

        Where the factors differ a rotated box would become a parallelogram; the result keeps
        the lengths of its sides and the direction of its height.
        """
        x, y, w, h, angle = self.tensor.unbind(-1)
        radians = angle * (math.pi / 180)
        cos, sin = radians.cos(), radians.sin()
        w = w * torch.hypot(scale_x * cos, scale_y * sin)
        h = h * torch.hypot(scale_x * sin, scale_y * cos)
        angle = torch.atan2(scale_x * sin, scale_y * cos) * (180 / math.pi)
        self.tensor = torch.stack([x * scale_x, y * scale_y, w, h, angle], -1)


def pairwise_iou(boxes1: RotatedBoxes, boxes2: RotatedBoxes) -> Tensor:
    """Intersection over union of every pair.

    Args:
        boxes1: N boxes.
        boxes2: M boxes.

    Returns:
        (N, M) in [0, 1]; 0 for boxes without area.
    """
    return box_iou_rotated(boxes1.tensor, boxes2.tensor)
