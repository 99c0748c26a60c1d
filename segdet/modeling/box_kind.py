"""What R-CNN's parts need to know about a kind of box, upright or rotated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from segdet.layers import batched_nms, batched_nms_rotated, pairwise_iou_rotated
from segdet.modeling.box_coder import Box2BoxTransform, Box2BoxTransformRotated
from segdet.structures import Boxes, RotatedBoxes, box_iou


@dataclass(frozen=True)
class BoxKind:
    """A kind of box and the operations that differ by kind.

    Attributes:
        structure: holds (N, D) boxes; knows how to clip them.
        transform: encodes a box relative to another.
        iou: (N, D), (M, D) to (N, M) overlaps.
        batched_nms: (N, D) boxes, (N,) scores, (N,) groups, a threshold to the indices kept.
    """

    structure: type[Boxes]
    transform: type[Box2BoxTransform]
    iou: Callable[[Tensor, Tensor], Tensor]
    batched_nms: Callable[[Tensor, Tensor, Tensor, float], Tensor]


UPRIGHT = BoxKind(Boxes, Box2BoxTransform, box_iou, batched_nms)
ROTATED = BoxKind(RotatedBoxes, Box2BoxTransformRotated, pairwise_iou_rotated, batched_nms_rotated)
