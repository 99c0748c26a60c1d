"""What FCOS's predictions lack: the losses of AdelaiDet's and CenterMask2's FCOS."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.layers import Losses, at_least_float32
from segdet.modeling.fcos_targets import Positives, centerness
from segdet.modeling.positives import enter_mean

# MODEL.FCOS.LOC_LOSS_TYPE -> the loss (P,) of boxes with this IoU and generalised IoU (P,)
BOX_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "iou": lambda iou, giou: -iou.log(),
    "linear_iou": lambda iou, giou: 1 - iou,
    "giou": lambda iou, giou: 1 - giou,
}


class FCOSLoss(nn.Module):
    """Compares what was predicted for the locations of a batch with the ground truth.

    Args:
        quality: what the third output learns: "ctrness", or "iou" of the predicted box.
        box_loss: a key of `BOX_LOSSES`.
        normalizer: what divides the classification loss: "fg" the positives, "moving_fg" their
            running mean, "all" the locations.
        alpha: weight of objects in the focal loss.
        gamma: its focus.
        cls_weight: of the classification loss.

    Attributes:
        moving_positives: the running mean. It starts at 100 with the model and is no part of the
            weights.
    """

    def __init__(
        self,
        *,
        quality: str = "ctrness",
        box_loss: str = "giou",
        normalizer: str = "fg",
        alpha: float = 0.25,
        gamma: float = 2.0,
        cls_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.quality = quality
        self.box_loss = BOX_LOSSES[box_loss]
        self.normalizer = normalizer
        self.alpha = alpha
        self.gamma = gamma
        self.cls_weight = cls_weight
        self.moving_positives: Tensor  # a buffer, so that a resumed run goes on with it
        self.register_buffer("moving_positives", torch.tensor(100.0), persistent=False)

    def forward(
        self,
        logits: Sequence[Tensor],
        ltrb: Sequence[Tensor],
        quality: Sequence[Tensor],
        positives: Positives,
        *,
        update_normalizer: bool,
    ) -> Losses:
        """`loss_fcos_cls`, `loss_fcos_loc` and `loss_fcos_ctr` or `loss_fcos_iou`.

        Args:
            logits: per level (B, K, H, W).
            ltrb: per level (B, 4, H, W), in strides.
            quality: per level logits (B, 1, H, W).
            positives: the locations that have an object.
            update_normalizer: let this batch enter `moving_positives`, as training does.

        Returns:
            The metric `fcos/ctr_floor` is the least that `loss_fcos_ctr` can be on this batch, the
            entropy of its targets.
        """
        target = centerness(positives.ltrb)  # (P,)
        number = len(target)
        cls_loss = focal_loss_of_locations(logits, positives, alpha=self.alpha, gamma=self.gamma)
        divisor, cls_count = self._divisor(logits, number, update_normalizer)
        iou, giou = overlaps(positives.gather(ltrb), positives.ltrb)
        box_losses = self.box_loss(iou, giou)
        predicted = positives.gather(quality).squeeze(1)
        losses = Losses({"loss_fcos_cls": self.cls_weight * cls_loss / divisor}, {}, cls_count)
        if self.quality == "ctrness":
            losses["loss_fcos_loc"] = (target * box_losses).sum() / at_least(target.sum())
            losses["loss_fcos_ctr"] = _entropy(predicted, target) / max(number, 1)
            losses.counts |= {"loss_fcos_loc": target.sum(), "loss_fcos_ctr": number}
            floor = torch.special.entr(target) + torch.special.entr(1 - target)
            losses.metrics["fcos/ctr_floor"] = floor.sum() / max(number, 1)
        else:
            losses["loss_fcos_loc"] = box_losses.sum() / max(number, 1)
            losses["loss_fcos_iou"] = _entropy(predicted, iou.detach()) / max(number, 1)
            losses.counts |= {"loss_fcos_loc": number, "loss_fcos_iou": number}
        losses.metrics["fcos/num_pos_locations"] = number / len(logits[0])
        return losses

    def _divisor(
        self, logits: Sequence[Tensor], number: int, update: bool
    ) -> tuple[int | Tensor, dict[str, float | Tensor]]:
        """Of the classification loss, and as `Losses.counts`: none where the mean is a running one.

        Args:
            logits: per level (B, K, H, W).
            number: of positive locations.
            update: the running mean.
        """
        if self.normalizer == "fg":
            return max(number, 1), {"loss_fcos_cls": number}
        if self.normalizer == "all":
            every = sum(x[:, 0].numel() for x in logits)
            return every, {"loss_fcos_cls": every}
        if update:
            enter_mean(self.moving_positives, number)
        return self.moving_positives.clone(), {}


def at_least(total: Tensor) -> Tensor:
    """The official codes' divisor for a sum of centerness: 0 does not divide."""
    return total.clamp(min=1e-6)


def focal_loss_of_locations(
    logits: Sequence[Tensor], positives: Positives, *, alpha: float, gamma: float
) -> Tensor:
    """The sum of `sigmoid_focal_loss` over all locations and classes, without a map of targets.

    All but one logit of a positive location, and all of the others, have the target 0.

    Args:
        logits: per level (B, K, H, W).
        positives: the locations that have an object.
        alpha: weight of the target 1; that of 0 is 1 - alpha.
        gamma: power of the miss that scales an element's loss.
    """
    own = positives.gather_own_class(logits)  # (P,)
    found = _focal(-own, gamma) * alpha - _focal(own, gamma) * (1 - alpha)
    rest = [_focal(at_least_float32(x), gamma).sum() for x in logits]
    return torch.stack(rest).sum() * (1 - alpha) + found.sum()


def overlaps(predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (P,) of boxes around the same locations.

    As in the official code, 1 is added to the intersection and to the union, which are in units
    of the stride: small boxes overlap more than they do.

    Args:
        predicted: (P, 4) distances to left, top, right, bottom, >= 0.
        target: (P, 4) likewise, > 0.
    """
    inner, outer = torch.minimum(predicted, target), torch.maximum(predicted, target)
    intersection, hull = _area(inner), _area(outer)
    union = _area(predicted) + _area(target) - intersection
    iou = (intersection + 1) / (union + 1)
    return iou, iou - (hull - union) / hull


def _area(ltrb: Tensor) -> Tensor:
    return (ltrb[:, :2] + ltrb[:, 2:]).prod(dim=1)


def _focal(logits: Tensor, gamma: float) -> Tensor:
    """Focal loss of logits whose target is 0, without its weight."""
    return logits.sigmoid() ** gamma * F.softplus(logits)


def _entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
