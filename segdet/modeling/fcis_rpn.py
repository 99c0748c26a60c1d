"""The region proposal network as FCIS (arXiv:1611.07709) and R-FCN have it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segdet.layers import normal_fill
from segdet.modeling.box_coder import Box2BoxTransform
from segdet.modeling.box_kind import BoxKind
from segdet.modeling.rpn import RPNConfig, StandardRPNHead
from segdet.modeling.rpn_loss import RPNLoss


@dataclass(frozen=True, kw_only=True)
class FCISRPNConfig(RPNConfig):
    """MODEL.RPN, as FCIS reads it; HEAD_NAME has no effect."""

    def build_head(self, strides: Sequence[int]) -> Callable[[int, int, int], TwoScoreRPNHead]:
        """The head's constructor: channels, anchors a cell, box_dim."""
        return functools.partial(TwoScoreRPNHead, conv_dims=self.conv_dims)

    def build_loss(self, transform: Box2BoxTransform, kind: BoxKind) -> InsideRPNLoss:
        """The training losses."""
        return InsideRPNLoss(**self.loss_settings(transform, kind))


class TwoScoreRPNHead(StandardRPNHead):
    """Scores an anchor twice, as background and as object; the logit is their difference.

    Of `objectness_logits`' 2 * A channels, the first A are background's.

    Args:
        in_channels: of every feature map.
        num_anchors: a cell.
        box_dim: deltas of a box.
        conv_dims: output channels of the 3x3 convolutions; -1 keeps the input's.
    """

    def __init__(
        self,
        in_channels: int,
        num_anchors: int,
        box_dim: int = 4,
        *,
        conv_dims: Sequence[int] = (-1,),
    ) -> None:
        super().__init__(in_channels, num_anchors, box_dim, conv_dims=conv_dims)
        hidden = self.objectness_logits.in_channels
        self.objectness_logits = nn.Conv2d(hidden, 2 * num_anchors, kernel_size=1)
        normal_fill(self.objectness_logits, std=0.01)

    def logits_of(self, scores: Tensor) -> Tensor:
        """(B, A, ...) logits of the scores (B, 2 * A, ...) that `objectness_logits` gives."""
        background, is_object = scores.chunk(2, dim=1)
        return is_object - background


class InsideRPNLoss(RPNLoss):
    """Only anchors inside the image can be an object's best; scores are averaged over the drawn."""

    @torch.no_grad()
    def _sample(
        self, anchors: Tensor, gt_boxes: Tensor, image_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self.boundary_thresh < 0:
            return super()._sample(anchors, gt_boxes, image_size)
        boxes = self.kind.structure(anchors)
        inside = torch.nonzero(boxes.inside_box(image_size, self.boundary_thresh)).squeeze(1)
        found, positive, negative = super()._sample(anchors[inside], gt_boxes, image_size)
        matches = found.new_zeros(len(anchors)).scatter(0, inside, found)
        return matches, inside[positive], inside[negative]

    def _cls_divisor(self, drawn: int, nominal: int) -> int:
        return max(drawn, 1)
