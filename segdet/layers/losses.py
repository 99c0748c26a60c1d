from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


class Losses(dict[str, Tensor]):
    """The scalar losses of a model by name, and numbers to log beside them.

    Attributes:
        metrics: detached numbers by name; they do not enter the total.
        counts: of the losses that are means: how many values each is a mean over, or the sum of
            their weights. With them, parts of a batch (of several processes, or one after the
            other) have the mean over all.

    Examples:
        >>> rpn = Losses({"loss_rpn_cls": torch.tensor(1.0)}, {"rpn/num_pos_anchors": 12.5})
        >>> box = Losses({"loss_cls": torch.tensor(2.0)})
        >>> (rpn | box).total()
        tensor(3.)
    """

    metrics: dict[str, float | Tensor]
    counts: dict[str, float | Tensor]

    def __init__(
        self,
        terms: Mapping[str, Tensor] | None = None,
        metrics: Mapping[str, float | Tensor] | None = None,
        counts: Mapping[str, float | Tensor] | None = None,
    ) -> None:
        super().__init__(terms or {})
        self.metrics = dict(metrics or {})
        self.counts = dict(counts or {})

    def __or__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, other: Mapping[str, Tensor]
    ) -> Losses:
        """Both; neither is changed.

        Raises:
            ValueError: both have a loss, or a metric, of the same name.
        """
        more = other.metrics if isinstance(other, Losses) else {}
        clash = (self.keys() & other.keys()) | (self.metrics.keys() & more.keys())
        if clash:
            raise ValueError(f"two parts of a model report {', '.join(sorted(clash))}")
        counts = {**self.counts, **other.counts} if isinstance(other, Losses) else self.counts
        return Losses({**self, **other}, {**self.metrics, **more}, counts)

    __ior__ = __or__  # pyright: ignore[reportAssignmentType]

    def total(self) -> Tensor:
        """Sum of the losses, a scalar.

        Raises:
            ValueError: there are none.
        """
        if not self:
            raise ValueError("no losses to sum")
        return functools.reduce(operator.add, self.values())

    def detached(self) -> Losses:
        """The same numbers without their graph."""
        terms = {name: term.detach() for name, term in self.items()}
        return Losses(terms, self.metrics, self.counts)


def smooth_l1_loss(input: Tensor, target: Tensor, beta: float, reduction: str = "none") -> Tensor:
    """Quadratic near zero, linear beyond.

    With d = |input - target|: d^2 / (2 beta) where d < beta, else d - beta / 2.

    Source: Fast R-CNN (arXiv:1504.08083), equation 3, there with beta = 1.

    Args:
        input: any shape.
        target: the same shape.
        beta: where the two pieces meet; below 1e-5 the loss is |input - target|.
        reduction: "none", "mean" or "sum".

    Returns:
        The shape of `input` for "none", else a scalar; the mean over nothing is 0.
    """
    distance = (input - target).abs()
    if beta < 1e-5:  # detectron2's default is 0: the quadratic would divide by it
        return _reduce(distance, reduction)
    loss = torch.where(distance < beta, 0.5 * distance**2 / beta, distance - 0.5 * beta)
    return _reduce(loss, reduction)


def giou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    """1 - generalised IoU of matched boxes.

    Source: Rezatofighi et al. 2019 (arXiv:1902.09630).

    Args:
        boxes1: (..., 4) XYXY with x1 <= x2 and y1 <= y2.
        boxes2: (..., 4), likewise.
        reduction: "none", "mean" or "sum".
        eps: added to divisors.

    Returns:
        (...,) in [0, 2] for "none", else a scalar; the mean over nothing is 0.
    """
    iou, union, hull = _overlap(boxes1, boxes2, eps)
    hull_area = hull.prod(-1)
    return _reduce(1 - iou + (hull_area - union) / (hull_area + eps), reduction)


def diou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    """1 - IoU + squared distance of the centres over that of the hull's corners.

    Source: Zheng et al. 2020 (arXiv:1911.08287), "DIoU". Arguments as for `giou_loss`.
    """
    iou, _, hull = _overlap(boxes1, boxes2, eps)
    return _reduce(1 - iou + _centre_distance(boxes1, boxes2, hull, eps), reduction)


def ciou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    """`diou_loss` plus a term for the aspect ratios, whose weight carries no gradient.

    Source: Zheng et al. 2020 (arXiv:1911.08287), "CIoU". Arguments as for `giou_loss`.
    """
    iou, _, hull = _overlap(boxes1, boxes2, eps)
    w1, h1 = (boxes1[..., 2:] - boxes1[..., :2]).unbind(-1)
    w2, h2 = (boxes2[..., 2:] - boxes2[..., :2]).unbind(-1)
    mismatch = (4 / math.pi**2) * (torch.atan2(w2, h2) - torch.atan2(w1, h1)) ** 2
    with torch.no_grad():
        weight = mismatch / (1 - iou + mismatch + eps)
    loss = 1 - iou + _centre_distance(boxes1, boxes2, hull, eps) + weight * mismatch
    return _reduce(loss, reduction)


def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = -1,
    gamma: float = 2,
    reduction: str = "none",
) -> Tensor:
    """Binary cross-entropy that counts well-classified elements less.

    Source: RetinaNet (arXiv:1708.02002), equation 5.

    Args:
        inputs: logits of any shape.
        targets: 0 or 1, the same shape.
        alpha: weight of positives, 1 - alpha of negatives; below 0 both weigh 1.
        gamma: power of the miss (1 - p of the true side) that scales an element's loss.
        reduction: "none", "mean" or "sum".

    Returns:
        The shape of `inputs` for "none", else a scalar; the mean over nothing is 0.
    """
    targets = targets.to(inputs.dtype)
    entropy = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    p = inputs.sigmoid()
    miss = p * (1 - targets) + (1 - p) * targets
    loss = entropy * miss**gamma
    if alpha >= 0:
        loss = (alpha * targets + (1 - alpha) * (1 - targets)) * loss
    return _reduce(loss, reduction)


def _overlap(boxes1: Tensor, boxes2: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """IoU (...,), union (...,) and the sides (..., 2) of the hull of matched boxes."""
    low1, high1 = boxes1[..., :2], boxes1[..., 2:]
    low2, high2 = boxes2[..., :2], boxes2[..., 2:]
    inter = (torch.minimum(high1, high2) - torch.maximum(low1, low2)).clamp(min=0).prod(-1)
    union = (high1 - low1).prod(-1) + (high2 - low2).prod(-1) - inter
    hull = torch.maximum(high1, high2) - torch.minimum(low1, low2)
    return inter / (union + eps), union, hull


def _centre_distance(boxes1: Tensor, boxes2: Tensor, hull: Tensor, eps: float) -> Tensor:
    shift = (boxes1[..., :2] + boxes1[..., 2:] - boxes2[..., :2] - boxes2[..., 2:]) / 2
    return (shift**2).sum(-1) / ((hull**2).sum(-1) + eps)


def _reduce(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        return loss.mean() if loss.numel() else loss.sum() * 0.0  # not NaN for no elements
    raise ValueError(f'reduction must be "none", "mean" or "sum", is {reduction!r}')
