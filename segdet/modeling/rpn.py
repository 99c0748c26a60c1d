"""Region proposal network (Faster R-CNN, arXiv:1506.01497, section 3.1)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.config.ranges import Fraction, IoULabel, NonNegativeFloat, PositiveFloat, PositiveInt
from segdet.errors import ConfigError
from segdet.layers import Conv2d, Losses, normal_fill
from segdet.layers.patches import patches_at
from segdet.modeling.anchors import DefaultAnchorGenerator, flatten_cells
from segdet.modeling.box_coder import Box2BoxTransform, BoxRegressionLoss, check_box_loss
from segdet.modeling.box_kind import UPRIGHT, BoxKind
from segdet.modeling.matching import Matcher
from segdet.modeling.rpn_loss import DrawnAnchors, RPNLoss
from segdet.structures import ImageList, Proposals, Targets


@dataclass(frozen=True, kw_only=True)
class RPNConfig:
    """MODEL.RPN; defaults are detectron2's."""

    head_name: str = "StandardRPNHead"
    in_features: tuple[str, ...] = ("res4",)
    boundary_thresh: int = -1  # anchors further outside the image are ignored; -1 keeps all
    iou_thresholds: tuple[Fraction, ...] = (0.3, 0.7)
    iou_labels: tuple[IoULabel, ...] = (0, -1, 1)
    batch_size_per_image: PositiveInt = 256
    positive_fraction: Fraction = 0.5
    bbox_reg_loss_type: str = "smooth_l1"
    bbox_reg_loss_weight: NonNegativeFloat = 1.0
    bbox_reg_weights: tuple[PositiveFloat, ...] = (1.0, 1.0, 1.0, 1.0)
    smooth_l1_beta: NonNegativeFloat = 0.0
    loss_weight: NonNegativeFloat = 1.0
    pre_nms_topk_train: PositiveInt = 12000
    pre_nms_topk_test: PositiveInt = 6000
    post_nms_topk_train: PositiveInt = 2000
    post_nms_topk_test: PositiveInt = 1000
    nms_thresh: Fraction = 0.7
    conv_dims: tuple[int, ...] = (-1,)

    def __post_init__(self) -> None:
        if self.head_name not in RPN_HEADS:
            known = ", ".join(RPN_HEADS)
            raise ConfigError(f"HEAD_NAME {self.head_name!r} is unknown; known: {known}")
        check_box_loss(self.bbox_reg_loss_type)

    def build_head(self, strides: Sequence[int]) -> Callable[[int, int, int], StandardRPNHead]:
        """The head's constructor for levels of these strides: channels, anchors a cell, box_dim."""
        return RPN_HEADS[self.head_name](self, strides)

    def build(
        self,
        head: StandardRPNHead,
        anchor_generator: DefaultAnchorGenerator,
        *,
        min_size: float,
        kind: BoxKind = UPRIGHT,
    ) -> RPN:
        """The RPN with a head, for a kind of boxes."""
        transform = kind.transform(self.bbox_reg_weights)
        if anchor_generator.box_dim != transform.box_dim:
            raise ConfigError(
                "PROPOSAL_GENERATOR.NAME RRPN and ANCHOR_GENERATOR.NAME RotatedAnchorGenerator "
                "need each other"
            )
        return RPN(
            head,
            in_features=self.in_features,
            anchor_generator=anchor_generator,
            loss=self.build_loss(transform, kind),
            selector=self.build_selector(transform, min_size=min_size, kind=kind),
        )

    def build_loss(self, transform: Box2BoxTransform, kind: BoxKind) -> RPNLoss:
        """The training losses."""
        return RPNLoss(**self.loss_settings(transform, kind))

    def loss_settings(self, transform: Box2BoxTransform, kind: BoxKind) -> dict[str, Any]:
        """The arguments of `RPNLoss`."""
        return {
            "matcher": Matcher(
                self.iou_thresholds, self.iou_labels, allow_low_quality_matches=True
            ),
            "batch_size_per_image": self.batch_size_per_image,
            "positive_fraction": self.positive_fraction,
            "boundary_thresh": self.boundary_thresh,
            "box_loss": BoxRegressionLoss(
                transform,
                loss_type=self.bbox_reg_loss_type,
                smooth_l1_beta=self.smooth_l1_beta,
                weight=self.bbox_reg_loss_weight,
            ),
            "loss_weight": self.loss_weight,
            "kind": kind,
        }

    def build_selector(
        self, transform: Box2BoxTransform, *, min_size: float, kind: BoxKind
    ) -> ProposalSelector:
        """What makes proposals of predictions."""
        return ProposalSelector(
            transform,
            topk_train=(self.pre_nms_topk_train, self.post_nms_topk_train),
            topk_test=(self.pre_nms_topk_test, self.post_nms_topk_test),
            nms_thresh=self.nms_thresh,
            min_size=min_size,
            kind=kind,
        )


class StandardRPNHead(nn.Module):
    """Objectness and box deltas of every anchor; one head for all levels.

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
        super().__init__()
        convs, channels = [], in_channels
        for dim in conv_dims:
            out = channels if dim == -1 else dim
            if out <= 0:
                raise ConfigError(f"RPN.CONV_DIMS must be positive or -1, are {tuple(conv_dims)}")
            convs.append(Conv2d(channels, out, kernel_size=3, padding=1, activation=nn.ReLU()))
            channels = out
        if len(convs) == 1:
            self.conv = convs[0]
        else:
            named = [(f"conv{i}", conv) for i, conv in enumerate(convs)]
            self.conv = nn.Sequential()
            for name, conv in named:
                self.conv.add_module(name, conv)
        self.objectness_logits = Conv2d(channels, num_anchors, kernel_size=1)
        self.anchor_deltas = Conv2d(channels, num_anchors * box_dim, kernel_size=1)
        for layer in (*convs, self.objectness_logits, self.anchor_deltas):
            normal_fill(layer, std=0.01)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per level, logits (B, A, H, W) and deltas (B, A * box_dim, H, W)."""
        hidden = [self.conv(x) for x in features]
        logits = [self.logits_of(self.objectness_logits(x)) for x in hidden]
        return logits, [self.anchor_deltas(x) for x in hidden]

    def logits_of(self, scores: Tensor) -> Tensor:
        """(B, A, ...) logits of the scores (B, C, ...) that `objectness_logits` gives."""
        return scores

    def at_cells(self, features: Sequence[Tensor], cells: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` predicts at some cells, computed from the part of the maps that they see.

        A training step draws a few hundred of some hundred thousand anchors. Their gradient costs
        next to nothing this way, while that of whole maps is mostly a convolution with zeros.

        Args:
            features: one (B, C, H, W) map per level.
            cells: (S, 4) int64: level, image, row, column.

        Returns:
            (S, A) logits and (S, A * box_dim) deltas.
        """
        convs = [m for m in self.conv.modules() if isinstance(m, Conv2d)]
        hidden, inside, order = [], [], []
        for level, x in enumerate(features):
            rows = torch.nonzero(cells[:, 0] == level).squeeze(1)
            patches, on_map = patches_at(x, cells[rows, 1:], reach=len(convs))
            hidden.append(patches)
            inside.append(on_map)
            order.append(rows)
        x, on_map = torch.cat(hidden), torch.cat(inside)
        for conv in convs:
            # Each convolution pads its map with zeros, whatever the one before would make there.
            seen = (x * on_map).unfold(1, 3, 1).unfold(2, 3, 1)  # (S, side, side, C, 3, 3)
            x = F.relu(_as_linear(conv, seen.flatten(3)))
            on_map = on_map[:, 1:-1, 1:-1]
        x = x[torch.cat(order).argsort(), 0, 0]  # (S, C)
        scores = _as_linear(self.objectness_logits, x)
        return self.logits_of(scores), _as_linear(self.anchor_deltas, x)


def _as_linear(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution at one cell, of all that it sees there: (..., C * k * k) to (..., C)."""
    return F.linear(x, conv.weight.flatten(1), conv.bias)


def _standard_head(
    section: RPNConfig, strides: Sequence[int]
) -> Callable[[int, int, int], StandardRPNHead]:
    return functools.partial(StandardRPNHead, conv_dims=section.conv_dims)


# MODEL.RPN.HEAD_NAME -> section and strides to constructor, as `RPNConfig.build_head` says
RPN_HEADS: dict[
    str, Callable[[RPNConfig, Sequence[int]], Callable[[int, int, int], StandardRPNHead]]
] = {"StandardRPNHead": _standard_head}


class RPN(nn.Module):
    """Proposes boxes that hold any object.

    Args:
        rpn_head: gives logits and deltas.
        in_features: names of the maps that it works on.
        anchor_generator: gives the reference boxes.
        loss: compares logits and deltas with the ground truth.
        selector: makes proposals of them.
    """

    def __init__(
        self,
        rpn_head: StandardRPNHead,
        *,
        in_features: Sequence[str],
        anchor_generator: DefaultAnchorGenerator,
        loss: RPNLoss,
        selector: ProposalSelector,
    ) -> None:
        super().__init__()
        self.rpn_head = rpn_head
        self.in_features = tuple(in_features)
        self.anchor_generator = anchor_generator
        self.loss = loss
        self.selector = selector

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        gt_instances: Sequence[Targets] | None = None,
    ) -> tuple[list[Proposals], Losses]:
        """detectron2's call: proposals, and when training the losses."""
        if self.training:
            return self.losses(images, features, gt_instances or ())
        return self.predict(images, features), Losses()

    def losses(
        self, images: ImageList, features: dict[str, Tensor], targets: Sequence[Targets]
    ) -> tuple[list[Proposals], Losses]:
        """Training proposals (without gradient), and `loss_rpn_cls`, `loss_rpn_loc`."""
        maps = [features[name] for name in self.in_features]
        anchors = self.anchor_generator(maps)
        drawn = self.loss.draw(torch.cat(anchors), images.image_sizes, targets)
        # A plug-in's head may see more of the maps than `at_cells` knows of.
        if type(self.rpn_head).forward is StandardRPNHead.forward:
            with torch.no_grad():
                logits, deltas = self._predict(maps)
            losses = self.loss(drawn, *self._at(maps, drawn))
        else:
            logits, deltas = self._predict(maps)
            own = (torch.cat(t, dim=1)[drawn.image, drawn.anchor] for t in (logits, deltas))
            losses = self.loss(drawn, *own)
        # A ReLU inside of a convolution may make 0 of NaN: maps and losses show it all the same.
        told = (*maps, *logits, *deltas, *losses.values())
        if not all(bool(torch.isfinite(t).all()) for t in told):
            raise FloatingPointError(
                "the RPN predicts NaN or infinity: training has diverged; lower SOLVER.BASE_LR or "
                "clip gradients"
            )
        topk = self.selector.topk_train
        return self.selector(anchors, logits, deltas, images.image_sizes, topk), losses

    def predict(self, images: ImageList, features: dict[str, Tensor]) -> list[Proposals]:
        """Per image, the best proposals, sorted by `objectness_logits`, clipped to the image."""
        maps = [features[name] for name in self.in_features]
        topk = self.selector.topk_test
        predicted = self._predict(maps)
        return self.selector(self.anchor_generator(maps), *predicted, images.image_sizes, topk)

    def _predict(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per level, logits (B, L_i) and deltas (B, L_i, box_dim) of its anchors."""
        logits, deltas = self.rpn_head(maps)
        box_dim = self.anchor_generator.box_dim
        flat_logits = [flatten_cells(t, 1).squeeze(-1) for t in logits]
        return flat_logits, [flatten_cells(t, box_dim) for t in deltas]

    def _at(self, maps: Sequence[Tensor], drawn: DrawnAnchors) -> tuple[Tensor, Tensor]:
        """The logits (S,) and deltas (S, box_dim) of drawn anchors."""
        per_cell = self.anchor_generator.anchors_per_cell
        cell, kind = drawn.anchor // per_cell, drawn.anchor % per_cell
        sizes = torch.tensor([x.shape[2:].numel() for x in maps], device=cell.device)
        widths = torch.tensor([x.shape[3] for x in maps], device=cell.device)
        level = torch.bucketize(cell, sizes.cumsum(0), right=True)
        cell = cell - (sizes.cumsum(0) - sizes)[level]
        cells = torch.stack((level, drawn.image, cell // widths[level], cell % widths[level]), 1)
        logits, deltas = self.rpn_head.at_cells(maps, cells)
        row = torch.arange(len(kind), device=kind.device)
        return logits[row, kind], deltas.unflatten(1, (per_cell, -1))[row, kind]


class ProposalSelector:
    """Makes proposals of what was predicted for anchors.

    Args:
        box_transform: moves anchors by their deltas.
        topk_train: in training, how many proposals a level has before NMS, an image after it.
        topk_test: likewise in prediction.
        nms_thresh: IoU above which the lower of two proposals of one level goes.
        min_size: in pixels; proposals with a side of at most this are dropped.
        kind: of the boxes.
    """

    def __init__(
        self,
        box_transform: Box2BoxTransform,
        *,
        topk_train: tuple[int, int],
        topk_test: tuple[int, int],
        nms_thresh: float,
        min_size: float = 0,
        kind: BoxKind = UPRIGHT,
    ) -> None:
        self.box_transform = box_transform
        self.topk_train = topk_train
        self.topk_test = topk_test
        self.nms_thresh = nms_thresh
        self.min_size = min_size
        self.kind = kind

    @torch.no_grad()
    def __call__(
        self,
        anchors: Sequence[Tensor],
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
        topk: tuple[int, int],
    ) -> list[Proposals]:
        """Decode, keep the best of every level, clip, drop empties, NMS within levels.

        Args:
            anchors: per level (L_i, box_dim).
            logits: per level (B, L_i); deltas: per level (B, L_i, box_dim).
            image_sizes: per image (height, width) before padding.
            topk: how many a level has before NMS, an image after it.
        """
        before, after = topk
        boxes, scores, levels = [], [], []
        for level, (anchor, logit, delta) in enumerate(zip(anchors, logits, deltas, strict=True)):
            top_scores, top = logit.topk(min(before, logit.shape[1]), dim=1)  # (B, k)
            top_deltas = delta.gather(1, top[..., None].expand(-1, -1, delta.shape[-1]))
            moved = self.box_transform.apply_deltas(top_deltas.flatten(0, 1), anchor[top.flatten()])
            boxes.append(moved.unflatten(0, top.shape))  # (B, k, box_dim)
            scores.append(top_scores.to(moved.dtype))
            levels.append(torch.full_like(top[0], level))
        all_boxes, all_scores = torch.cat(boxes, dim=1), torch.cat(scores, dim=1)
        level = torch.cat(levels)
        return [
            self._select(all_boxes[i], all_scores[i], level, image_size)[:after]
            for i, image_size in enumerate(image_sizes)
        ]

    def _select(
        self, boxes: Tensor, scores: Tensor, level: Tensor, image_size: tuple[int, int]
    ) -> Proposals:
        finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores)
        clipped = self.kind.structure(boxes[finite])
        clipped.clip(image_size)
        usable = clipped.nonempty(self.min_size)
        boxes, scores, level = clipped.tensor[usable], scores[finite][usable], level[finite][usable]
        keep = self.kind.batched_nms(boxes, scores, level, self.nms_thresh)
        return Proposals(
            image_size,
            proposal_boxes=self.kind.structure(boxes[keep]),
            objectness_logits=scores[keep],
        )
