"""Region proposal network (Faster R-CNN, arXiv:1506.01497, section 3.1)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.errors import ConfigError
from segdet.layers import Conv2d, Losses, normal_fill
from segdet.modeling.anchors import DefaultAnchorGenerator, flatten_cells
from segdet.modeling.box_coder import Box2BoxTransform, BoxRegressionLoss, check_box_loss
from segdet.modeling.box_kind import UPRIGHT, BoxKind
from segdet.modeling.matching import Matcher
from segdet.modeling.sampling import subsample_labels
from segdet.structures import ImageList, Proposals, Targets


@dataclass(frozen=True, kw_only=True)
class RPNConfig:
    """MODEL.RPN; defaults are detectron2's."""

    head_name: str = "StandardRPNHead"
    in_features: tuple[str, ...] = ("res4",)
    boundary_thresh: int = -1  # anchors further outside the image are ignored; -1 keeps all
    iou_thresholds: tuple[float, ...] = (0.3, 0.7)
    iou_labels: tuple[int, ...] = (0, -1, 1)
    batch_size_per_image: int = 256
    positive_fraction: float = 0.5
    bbox_reg_loss_type: str = "smooth_l1"
    bbox_reg_loss_weight: float = 1.0
    bbox_reg_weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    smooth_l1_beta: float = 0.0
    loss_weight: float = 1.0
    pre_nms_topk_train: int = 12000
    pre_nms_topk_test: int = 6000
    post_nms_topk_train: int = 2000
    post_nms_topk_test: int = 1000
    nms_thresh: float = 0.7
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
        self.objectness_logits = nn.Conv2d(channels, num_anchors, kernel_size=1)
        self.anchor_deltas = nn.Conv2d(channels, num_anchors * box_dim, kernel_size=1)
        for layer in (*convs, self.objectness_logits, self.anchor_deltas):
            normal_fill(layer, std=0.01)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per level, logits (B, A, H, W) and deltas (B, A * box_dim, H, W)."""
        hidden = [self.conv(x) for x in features]
        return [self.objectness_logits(x) for x in hidden], [self.anchor_deltas(x) for x in hidden]


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
        anchors, logits, deltas = self._predict(features)
        losses = self.loss(anchors, logits, deltas, images.image_sizes, targets)
        if not all(bool(torch.isfinite(t).all()) for t in (*logits, *deltas)):
            raise FloatingPointError(
                "the RPN predicts NaN or infinity: training has diverged; lower SOLVER.BASE_LR or "
                "clip gradients"
            )
        topk = self.selector.topk_train
        return self.selector(anchors, logits, deltas, images.image_sizes, topk), losses

    def predict(self, images: ImageList, features: dict[str, Tensor]) -> list[Proposals]:
        """Per image, the best proposals, sorted by `objectness_logits`, clipped to the image."""
        anchors, logits, deltas = self._predict(features)
        topk = self.selector.topk_test
        return self.selector(anchors, logits, deltas, images.image_sizes, topk)

    def _predict(
        self, features: dict[str, Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        maps = [features[name] for name in self.in_features]
        anchors = self.anchor_generator(maps)
        logits, deltas = self.rpn_head(maps)
        box_dim = anchors[0].shape[1]
        flat_logits = [flatten_cells(t, 1).squeeze(-1) for t in logits]
        return anchors, flat_logits, [flatten_cells(t, box_dim) for t in deltas]


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

    def __call__(
        self,
        anchors: Sequence[Tensor],
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
        targets: Sequence[Targets],
    ) -> Losses:
        """`loss_rpn_cls` and `loss_rpn_loc`.

        Args:
            anchors: per level (L_i, box_dim).
            logits: per level (B, L_i); deltas: per level (B, L_i, box_dim).
            image_sizes: per image (height, width) before padding.
            targets: per image, with `gt_boxes`.
        """
        all_anchors = torch.cat(list(anchors))
        all_logits, all_deltas = torch.cat(list(logits), dim=1), torch.cat(list(deltas), dim=1)
        cls_terms, loc_terms, num_pos, num_neg = [], [], 0, 0
        for i, (image_size, target) in enumerate(zip(image_sizes, targets, strict=True)):
            gt_boxes = target.gt_boxes.tensor
            matches, positive, negative = self._sample(all_anchors, gt_boxes, image_size)
            sampled = torch.cat((positive, negative))
            wanted = torch.zeros_like(sampled, dtype=all_logits.dtype)
            wanted[: len(positive)] = 1
            cls_terms.append(
                F.binary_cross_entropy_with_logits(all_logits[i, sampled], wanted, reduction="sum")
            )
            loc_terms.append(
                self.box_loss(
                    all_deltas[i, positive], all_anchors[positive], gt_boxes[matches[positive]]
                )
            )
            num_pos, num_neg = num_pos + len(positive), num_neg + len(negative)
        nominal = self.batch_size_per_image * len(targets)
        cls_divisor = self._cls_divisor(num_pos + num_neg, nominal)
        cls_scale = self.loss_weight / cls_divisor
        return Losses(
            {
                "loss_rpn_cls": torch.stack(cls_terms).sum() * cls_scale,
                "loss_rpn_loc": torch.stack(loc_terms).sum() * (self.loss_weight / nominal),
            },
            {
                "rpn/num_pos_anchors": num_pos / len(targets),
                "rpn/num_neg_anchors": num_neg / len(targets),
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
        matches, labels = self.matcher(self.kind.iou(gt_boxes, anchors))
        if self.boundary_thresh >= 0:
            boxes = self.kind.structure(anchors)
            labels[~boxes.inside_box(image_size, self.boundary_thresh)] = -1
        positive, negative = subsample_labels(
            labels, self.batch_size_per_image, self.positive_fraction, bg_label=0
        )
        return matches, positive, negative


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
