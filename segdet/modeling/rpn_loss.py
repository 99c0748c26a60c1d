"""The losses of a region proposal network (Faster R-CNN, arXiv:1506.01497, section 3.1.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from segdet.layers import Losses
from segdet.modeling.box_coder import BoxRegressionLoss
from segdet.modeling.box_kind import UPRIGHT, BoxKind
from segdet.modeling.matching import Matcher
from segdet.modeling.sampling import subsample_labels
from segdet.structures import Targets


@dataclass(frozen=True, kw_only=True)
class DrawnAnchors:
    """S anchors of a batch, P of them positive, and what they should have predicted."""

    image: Tensor  # (S,) int64
    anchor: Tensor  # (S,) int64, among those of all levels
    positive: Tensor  # (P,) int64, among the S
    anchors: Tensor  # (P, box_dim) of the positive ones
    gt_boxes: Tensor  # (P, box_dim) likewise
    num_images: int


class RPNLoss:
    """Draws anchors and compares what was predicted for them with the ground truth.

    Args:
        matcher: assigns anchors to objects.
        batch_size_per_image: at most this many anchors are drawn.
        positive_fraction: at most this share of them overlaps an object.
        boundary_thresh: in pixels; anchors further outside the image are ignored; -1 keeps all.
        box_loss: of the positive anchors' deltas.
        loss_weight: of both losses.
        kind: of the boxes.
    """

    def __init__(
        self,
        *,
        matcher: Matcher,
        batch_size_per_image: int,
        positive_fraction: float,
        boundary_thresh: int,
        box_loss: BoxRegressionLoss,
        loss_weight: float = 1.0,
        kind: BoxKind = UPRIGHT,
    ) -> None:
        self.matcher = matcher
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.boundary_thresh = boundary_thresh
        self.box_loss = box_loss
        self.loss_weight = loss_weight
        self.kind = kind

    @torch.no_grad()
    def draw(
        self,
        anchors: Tensor,
        image_sizes: Sequence[tuple[int, int]],
        targets: Sequence[Targets],
    ) -> DrawnAnchors:
        """Draws anchors of every image, positive ones first.

        Args:
            anchors: (L, box_dim) of all levels.
            image_sizes: per image (height, width) before padding.
            targets: per image, with `gt_boxes`.
        """
        images, drawn, positives, gt_boxes = [], [], [], []
        count = 0
        for i, (image_size, target) in enumerate(zip(image_sizes, targets, strict=True)):
            own = target.gt_boxes.tensor
            matches, positive, negative = self._sample(anchors, own, image_size)
            drawn += positive, negative
            gt_boxes.append(own[matches[positive]])
            positives.append(torch.arange(len(positive), device=anchors.device) + count)
            number = len(positive) + len(negative)
            images.append(torch.full((number,), i, device=anchors.device))
            count += number
        anchor, positive = torch.cat(drawn), torch.cat(positives)
        return DrawnAnchors(
            image=torch.cat(images),
            anchor=anchor,
            positive=positive,
            anchors=anchors[anchor[positive]],
            gt_boxes=torch.cat(gt_boxes),
            num_images=len(targets),
        )

    def __call__(self, drawn: DrawnAnchors, logits: Tensor, deltas: Tensor) -> Losses:
        """`loss_rpn_cls` and `loss_rpn_loc`, of predictions (S,) and (S, box_dim) for `drawn`."""
        wanted = torch.zeros_like(logits)
        wanted[drawn.positive] = 1
        cls_loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
        loc_loss = self.box_loss(deltas[drawn.positive], drawn.anchors, drawn.gt_boxes)
        num_pos, num_neg = len(drawn.positive), len(logits) - len(drawn.positive)
        nominal = self.batch_size_per_image * drawn.num_images
        cls_divisor = self._cls_divisor(len(logits), nominal)
        return Losses(
            {
                "loss_rpn_cls": cls_loss * (self.loss_weight / cls_divisor),
                "loss_rpn_loc": loc_loss * (self.loss_weight / nominal),
            },
            {
                "rpn/num_pos_anchors": num_pos / drawn.num_images,
                "rpn/num_neg_anchors": num_neg / drawn.num_images,
            },
            {"loss_rpn_cls": cls_divisor},
        )

    def _cls_divisor(self, drawn: int, nominal: int) -> int:
        """What the sum over the drawn anchors is divided by: detectron2 takes the nominal batch."""
        return nominal

    @torch.no_grad()
    def _sample(
        self, anchors: Tensor, gt_boxes: Tensor, image_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Best ground truth of every anchor, and the indices of sampled positives, negatives."""
        matches, labels = self.matcher.match(gt_boxes, anchors, self.kind.iou)
        if self.boundary_thresh >= 0:
            boxes = self.kind.structure(anchors)
            labels[~boxes.inside_box(image_size, self.boundary_thresh)] = -1
        positive, negative = subsample_labels(
            labels, self.batch_size_per_image, self.positive_fraction, bg_label=0
        )
        return matches, positive, negative
