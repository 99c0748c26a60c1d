"""Box regression: encoding a box relative to a reference box, and the losses on it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from segdet.errors import ConfigError
from segdet.layers import ciou_loss, diou_loss, giou_loss, smooth_l1_loss

# An exp() of a larger dw, dh would blow a 16-pixel anchor up past 1000 pixels (detectron2).
SCALE_CLAMP = math.log(1000.0 / 16)
IOU_LOSSES = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}
BOX_LOSSES = ("smooth_l1", *IOU_LOSSES)


class Box2BoxTransform:
    """Encodes a target box as (dx, dy, dw, dh) relative to a source box, and back.

    Source: R-CNN (arXiv:1311.2524), appendix C.

    Args:
        weights: factors of (dx, dy, dw, dh); (10, 10, 5, 5) in box heads, ones in the RPN.
    """

    box_dim = 4

    def __init__(self, weights: Sequence[float], scale_clamp: float = SCALE_CLAMP) -> None:
        if len(weights) != self.box_dim:
            raise ConfigError(
                f"BBOX_REG_WEIGHTS must be {self.box_dim} numbers here, is {tuple(weights)}"
            )
        self.weights = tuple(weights)
        self.scale_clamp = scale_clamp

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """(N, 4) deltas that turn `src_boxes` into `target_boxes`, both (N, 4) XYXY.

        Raises:
            ValueError: a source box has no extent.
        """
        src_size, src_center = _size_center(src_boxes)
        target_size, target_center = _size_center(target_boxes)
        if not bool((src_size > 0).all()):
            raise ValueError("box regression needs source boxes of positive width and height")
        shift = (target_center - src_center) / src_size
        scale = torch.log(target_size / src_size)
        return torch.cat((shift, scale), dim=1) * src_boxes.new_tensor(self.weights)

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Boxes moved by their deltas, not clipped to the image.

        Args:
            deltas: (N, 4 * k), k sets of deltas a box (one a class); computed in `boxes`' dtype,
                so that half precision deltas lose nothing more.
            boxes: (N, 4) XYXY.

        Returns:
            (N, 4 * k) XYXY in `boxes`' dtype.
        """
        size, center = (t[:, None] for t in _size_center(boxes))  # (N, 1, 2)
        deltas = deltas.to(boxes.dtype).unflatten(1, (-1, 4))  # (N, k, 4)
        deltas = deltas / boxes.new_tensor(self.weights)
        new_center = deltas[..., :2] * size + center
        new_size = torch.exp(deltas[..., 2:].clamp(max=self.scale_clamp)) * size
        moved = torch.cat((new_center - 0.5 * new_size, new_center + 0.5 * new_size), dim=-1)
        return moved.flatten(1)


class Box2BoxTransformRotated(Box2BoxTransform):
    """The same for rotated boxes (centre, width, height, degrees): (dx, dy, dw, dh, da).

    Source: detectron2's Box2BoxTransformRotated. Shifts are along the image's axes, in widths and
    heights of the source box; da is in radians.

    Args:
        weights: factors of (dx, dy, dw, dh, da).
    """

    box_dim = 5

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """(N, 5) deltas that turn `src_boxes` into `target_boxes`, both (N, 5).

        Raises:
            ValueError: a source box has no extent.
        """
        size = src_boxes[:, 2:4]
        if not bool((size > 0).all()):
            raise ValueError("box regression needs source boxes of positive width and height")
        shift = (target_boxes[:, :2] - src_boxes[:, :2]) / size
        scale = torch.log(target_boxes[:, 2:4] / size)
        turn = torch.deg2rad(_half_turn(target_boxes[:, 4:] - src_boxes[:, 4:]))
        return torch.cat((shift, scale, turn), dim=1) * src_boxes.new_tensor(self.weights)

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Boxes moved by their deltas, not clipped to the image.

        Args:
            deltas: (N, 5 * k), k sets of deltas a box.
            boxes: (N, 5).

        Returns:
            (N, 5 * k) in `boxes`' dtype, angles in [-180, 180).
        """
        deltas = deltas.to(boxes.dtype).unflatten(1, (-1, 5))  # (N, k, 5)
        deltas = deltas / boxes.new_tensor(self.weights)
        boxes = boxes[:, None]
        size = boxes[..., 2:4]
        center = deltas[..., :2] * size + boxes[..., :2]
        new_size = torch.exp(deltas[..., 2:4].clamp(max=self.scale_clamp)) * size
        angle = _half_turn(torch.rad2deg(deltas[..., 4:]) + boxes[..., 4:])
        return torch.cat((center, new_size, angle), dim=-1).flatten(1)


def _half_turn(degrees: Tensor) -> Tensor:
    """The same angle in [-180, 180)."""
    return (degrees + 180) % 360 - 180


class BoxRegressionLoss:
    """The loss of box deltas: smooth L1 on the deltas themselves, or an IoU loss on the boxes.

    Args:
        box_transform: turns deltas into boxes and back.
        loss_type: one of `BOX_LOSSES`; the IoU losses compare decoded boxes.
        smooth_l1_beta: of smooth L1; 0 is plain L1.
        weight: multiplies the loss.
    """

    def __init__(
        self,
        box_transform: Box2BoxTransform,
        *,
        loss_type: str = "smooth_l1",
        smooth_l1_beta: float = 0.0,
        weight: float = 1.0,
    ) -> None:
        check_box_loss(loss_type)
        if loss_type in IOU_LOSSES and box_transform.box_dim != 4:
            raise ConfigError(f"BBOX_REG_LOSS_TYPE {loss_type} is for upright boxes only")
        self.box_transform = box_transform
        self.loss_type = loss_type
        self.smooth_l1_beta = smooth_l1_beta
        self.weight = weight

    def __call__(self, deltas: Tensor, src_boxes: Tensor, gt_boxes: Tensor) -> Tensor:
        """Sum over boxes (and over the four coordinates, for smooth L1), weighted.

        Args:
            deltas: (N, 4) predictions for `src_boxes`.
            src_boxes: (N, 4) XYXY, anchors or proposals.
            gt_boxes: (N, 4) XYXY, the box that each should become.

        Returns:
            Scalar; zero and still connected to `deltas` when N == 0.
        """
        if len(deltas) == 0:
            return deltas.sum() * 0
        return self.weight * self._sum(deltas, src_boxes, gt_boxes)

    def _sum(self, deltas: Tensor, src_boxes: Tensor, gt_boxes: Tensor) -> Tensor:
        if self.loss_type == "smooth_l1":
            target = self.box_transform.get_deltas(src_boxes, gt_boxes)
            return smooth_l1_loss(deltas, target, beta=self.smooth_l1_beta, reduction="sum")
        iou_loss = IOU_LOSSES[self.loss_type]
        boxes = self.box_transform.apply_deltas(deltas, src_boxes)
        return iou_loss(boxes, gt_boxes, reduction="sum")


def check_box_loss(loss_type: str) -> None:
    """Refuses an unknown BBOX_REG_LOSS_TYPE."""
    if loss_type not in BOX_LOSSES:
        raise ConfigError(f"BBOX_REG_LOSS_TYPE {loss_type!r} is unknown; known: {BOX_LOSSES}")


def _size_center(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[:, 2:] - boxes[:, :2]  # (N, 2): width, height
    return size, boxes[:, :2] + 0.5 * size
