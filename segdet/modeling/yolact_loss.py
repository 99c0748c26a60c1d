"""YOLACT's losses: classes with hard negatives, boxes, masks, class maps and mask IoUs.

Source: YOLACT (arXiv:1904.02689), sections 3.2 and 4.3; YOLACT++ (arXiv:1912.06218), section 4.1;
where paper and released code differ, the code, which the released weights were trained with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from segdet.layers import Losses, smooth_l1_loss
from segdet.modeling.prior_boxes import Matches, encode, match_priors
from segdet.modeling.prototype_masks import (
    combine_prototypes,
    mask_ious,
    mask_loss,
    paint,
    semantic_loss,
    shrink_masks,
    size_of,
)
from segdet.modeling.yolact_layers import FastMaskIoUNet, Predictions
from segdet.structures import Targets

CROWD = -1  # the class of a crowd in `Targets`, as the mapper gives it


class ImageTargets(NamedTuple):
    """The objects of an image that a box can be learnt from, and its crowds."""

    boxes: Tensor  # (N, 4) XYXY in fractions of the network input
    classes: Tensor  # (N,) int64 in [0, K)
    masks: Tensor  # (N, H, W) in {0, 1}, the network input's pixels
    crowds: Tensor  # (M, 4) XYXY in fractions


def read_image_targets(target: Targets, size: tuple[int, int], like: Tensor) -> ImageTargets:
    """Objects in fractions of the network input of `size` (height, width), typed as `like`."""
    scale = like.new_tensor((size[1], size[0])).repeat(2)
    boxes = target.gt_boxes.tensor.to(like.dtype) / scale
    is_crowd = target.gt_classes == CROWD
    is_object = ~is_crowd & target.gt_boxes.nonempty()
    masks = paint(target.gt_masks, size, like)
    return ImageTargets(
        boxes[is_object], target.gt_classes[is_object], masks[is_object], boxes[is_crowd]
    )


def hard_negatives(logits: Tensor, labels: Tensor, per_positive: int) -> Tensor:
    """The background boxes that look most like an object, so many for each positive one.

    Source: SSD (arXiv:1512.02325), section 2.2, "Hard negative mining".

    Args:
        logits: (P, K + 1); class 0 is the background.
        labels: (P,) as in `Matches`.
        per_positive: background boxes for each positive one.

    Returns:
        (P,) bool.
    """
    wanted = min(per_positive * int((labels > 0).sum()), len(labels) - 1)
    loss = torch.logsumexp(logits.detach(), dim=1) - logits.detach()[:, 0]
    loss[labels != 0] = -1.0  # below any background box's
    chosen = torch.zeros_like(labels, dtype=torch.bool)
    chosen[loss.topk(wanted).indices] = True
    return chosen & (labels == 0)


class YolactLoss:
    """Compares what was predicted for a batch with its objects.

    Args:
        iou_thresholds: as for `match_priors`.
        crowd_threshold: likewise.
        negatives_per_positive: background boxes in the loss of classes.
        masks_to_train: positives of an image that the loss of masks draws at most; it stands for
            all of them.
        discard_mask_area: cells of a prototype; objects up to it teach no IoU.
        weights: of the losses, by name.
    """

    def __init__(
        self,
        *,
        iou_thresholds: tuple[float, float],
        crowd_threshold: float,
        negatives_per_positive: int,
        masks_to_train: int,
        discard_mask_area: int,
        weights: Mapping[str, float],
    ) -> None:
        self.iou_thresholds = iou_thresholds
        self.crowd_threshold = crowd_threshold
        self.negatives_per_positive = negatives_per_positive
        self.masks_to_train = masks_to_train
        self.discard_mask_area = discard_mask_area
        self.weights = dict(weights)

    def __call__(
        self,
        priors: Tensor,
        predictions: Predictions,
        prototypes: Tensor,
        class_maps: Tensor,
        targets: Sequence[ImageTargets],
        maskiou_net: FastMaskIoUNet | None,
    ) -> Losses:
        """The losses; those of boxes, classes and masks are divided by the batch's positives.

        Args:
            priors: (P, 4) centre x, centre y, width, height in fractions.
            predictions: of the batch.
            prototypes: (B, C, H, W).
            class_maps: (B, K, h, w) logits.
            targets: per image.
            maskiou_net: grades masks, for `loss_maskiou`; None leaves that out.
        """
        matches = [self.match(priors, target) for target in targets]
        labels = torch.stack([one.labels for one in matches])  # (B, P)
        positives = labels > 0
        count = int(positives.sum())
        terms = {
            "loss_cls": self._classes(predictions.logits, labels),
            "loss_box_reg": self._boxes(priors, predictions.deltas, matches, targets),
            **self._masks(predictions.coefficients, prototypes, matches, targets, maskiou_net),
        }
        terms = {name: value / max(count, 1) for name, value in terms.items()}
        maps = [
            semantic_loss(one, shrink_masks(target.masks, size_of(one)), target.classes)
            for one, target in zip(class_maps, targets, strict=True)
        ]
        terms["loss_semantic"] = torch.stack(maps).mean()
        return Losses(
            {name: value * self.weights[name] for name, value in terms.items()},
            {"num_pos_anchors": count / len(targets)},
            {name: count for name in terms if name != "loss_semantic"},
        )

    @torch.no_grad()
    def match(self, priors: Tensor, target: ImageTargets) -> Matches:
        """What each prior box of an image stands for."""
        return match_priors(
            priors,
            target.boxes,
            target.classes,
            target.crowds,
            iou_thresholds=self.iou_thresholds,
            crowd_threshold=self.crowd_threshold,
        )

    def _classes(self, logits: Tensor, labels: Tensor) -> Tensor:
        negatives = [
            hard_negatives(one, of_image, self.negatives_per_positive)
            for one, of_image in zip(logits, labels, strict=True)
        ]
        counts = (labels > 0) | torch.stack(negatives)
        return F.cross_entropy(logits[counts], labels[counts], reduction="sum")

    @staticmethod
    def _boxes(
        priors: Tensor, deltas: Tensor, matches: Sequence[Matches], targets: Sequence[ImageTargets]
    ) -> Tensor:
        total = deltas.new_zeros(())
        for own, match, target in zip(deltas, matches, targets, strict=True):
            positive = match.labels > 0
            wanted = encode(target.boxes[match.objects[positive]], priors[positive])
            total = total + smooth_l1_loss(own[positive], wanted, beta=1.0, reduction="sum")
        return total

    def _masks(
        self,
        coefficients: Tensor,
        prototypes: Tensor,
        matches: Sequence[Matches],
        targets: Sequence[ImageTargets],
        maskiou_net: FastMaskIoUNet | None,
    ) -> dict[str, Tensor]:
        """Sums of `loss_mask` and, with a net, `loss_maskiou`."""
        total = prototypes.new_zeros(())
        found, wanted, classes = [], [], []
        images = zip(coefficients, prototypes, matches, targets, strict=True)
        for own, maps, match, target in images:
            positive = (match.labels > 0).nonzero()[:, 0]
            drawn = positive
            if len(positive) > self.masks_to_train:
                order = torch.randperm(len(positive), device=positive.device)
                drawn = positive[order[: self.masks_to_train]]
            objects = match.objects[drawn]
            boxes = target.boxes[objects]
            masks = combine_prototypes(maps, own[drawn], boxes)
            gt_masks = shrink_masks(target.masks, size_of(maps))[objects]
            share = len(positive) / max(len(drawn), 1)
            total = total + mask_loss(masks, gt_masks, boxes).sum() * share
            is_large = gt_masks.sum((1, 2)) > self.discard_mask_area
            found.append(masks[is_large])
            wanted.append(gt_masks[is_large])
            classes.append(target.classes[objects[is_large]])
        if maskiou_net is None:
            return {"loss_mask": total}
        ious = maskiou_net(torch.cat(found)).gather(1, torch.cat(classes)[:, None])[:, 0]
        gt_ious = mask_ious(torch.cat(found), torch.cat(wanted))
        loss = smooth_l1_loss(ious, gt_ious, beta=1.0, reduction="sum")
        return {"loss_mask": total, "loss_maskiou": loss}
