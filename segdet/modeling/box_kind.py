"""What R-CNN's parts need to know about a kind of box; upright ones are here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from segdet.layers import batched_nms
from segdet.structures import Boxes, box_iou


@dataclass(frozen=True)
class BoxKind:
    """A kind of box and the two operations on tensors of them that differ by kind.

    Attributes:
        structure: holds (N, D) boxes; knows how to clip them.
        iou: (N, D), (M, D) to (N, M) overlaps.
        batched_nms: (N, D) boxes, (N,) scores, (N,) groups, a threshold to the indices kept.
    """

    structure: type[Boxes]
    iou: Callable[[Tensor, Tensor], Tensor]
    batched_nms: Callable[[Tensor, Tensor, Tensor, float], Tensor]


UPRIGHT = BoxKind(Boxes, box_iou, batched_nms)
