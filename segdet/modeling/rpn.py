"""Region proposal network (Faster R-CNN, arXiv:1506.01497, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.errors import ConfigError
from segdet.layers import Conv2d, Losses, batched_nms, normal_fill
from segdet.modeling.anchors import DefaultAnchorGenerator
from segdet.modeling.box_coder import Box2BoxTransform, box_regression_loss, check_box_loss
from segdet.modeling.matching import Matcher
from segdet.modeling.sampling import subsample_labels
from segdet.structures import Boxes, ImageList, Proposals, Targets, box_iou, clip_boxes


@dataclass(frozen=True, kw_only=True)
class ProposalGeneratorConfig:
    """MODEL.PROPOSAL_GENERATOR."""

    name: str = "RPN"
    min_size: float = 0  # boxes with a side of at most this many pixels are dropped

    def __post_init__(self) -> None:
        if self.name != "RPN":
            raise ConfigError(f"NAME {self.name!r} is unknown; known here: RPN")


@dataclass(frozen=True, kw_only=True)
class RPNConfig:
    """MODEL.RPN; defaults are detectron2's."""

    head_name: str = "StandardRPNHead"
    in_features: tuple[str, ...] = ("res4",)
    boundary_thresh: float = -1  # anchors further outside the image are ignored; -1 keeps all
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
        if self.head_name != "StandardRPNHead":
            raise ConfigError(f"HEAD_NAME {self.head_name!r} is unknown; known: StandardRPNHead")
        check_box_loss(self.bbox_reg_loss_type)

    def build(
        self, in_channels: int, anchor_generator: DefaultAnchorGenerator, *, min_size: float
    ) -> RPN:
        """The RPN on maps of `in_channels` channels."""
        num_anchors = set(anchor_generator.num_anchors)
        if len(num_anchors) != 1:
            raise ConfigError(
                "the RPN head is shared by all levels, so each needs the same number of anchors "
                f"a cell; ANCHOR_GENERATOR gives {anchor_generator.num_anchors}"
            )
        head = StandardRPNHead(in_channels, num_anchors.pop(), conv_dims=self.conv_dims)
        return RPN(head, anchor_generator=anchor_generator, settings=self, min_size=min_size)


class StandardRPNHead(nn.Module):
    """Objectness and box deltas of every anchor; one head for all levels.

    Args:
        in_channels: of every feature map.
        num_anchors: a cell.
        conv_dims: output channels of the 3x3 convolutions; -1 keeps the input's.
    """

    def __init__(
        self, in_channels: int, num_anchors: int, *, conv_dims: Sequence[int] = (-1,)
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
        self.anchor_deltas = nn.Conv2d(channels, num_anchors * 4, kernel_size=1)
        for layer in (*convs, self.objectness_logits, self.anchor_deltas):
            normal_fill(layer, std=0.01)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per level, logits (B, A, H, W) and deltas (B, A * 4, H, W)."""
        hidden = [self.conv(x) for x in features]
        return [self.objectness_logits(x) for x in hidden], [self.anchor_deltas(x) for x in hidden]


class RPN(nn.Module):
    """Proposes boxes that hold any object.

    Args:
        rpn_head: gives logits and deltas.
        anchor_generator: gives the reference boxes.
        settings: the thresholds, sample sizes and loss weights.
        min_size: in pixels; proposals with a side of at most this are dropped.
    """

    def __init__(
        self,
        rpn_head: StandardRPNHead,
        *,
        anchor_generator: DefaultAnchorGenerator,
        settings: RPNConfig,
        min_size: float = 0,
    ) -> None:
        super().__init__()
        self.rpn_head = rpn_head
        self.anchor_generator = anchor_generator
        self.settings = settings
        self.min_size = min_size
        self.box_transform = Box2BoxTransform(settings.bbox_reg_weights)
        self.matcher = Matcher(
            settings.iou_thresholds, settings.iou_labels, allow_low_quality_matches=True
        )

    def losses(
        self, images: ImageList, features: dict[str, Tensor], targets: Sequence[Targets]
    ) -> tuple[list[Proposals], Losses]:
        """Training proposals (without gradient), and `loss_rpn_cls`, `loss_rpn_loc`."""
        anchors, logits, deltas = self._predict(features)
        losses = self._losses(torch.cat(anchors), logits, deltas, images.image_sizes, targets)
        cfg = self.settings
        if not all(bool(torch.isfinite(t).all()) for t in (*logits, *deltas)):
            raise FloatingPointError(
                "the RPN predicts NaN or infinity: training has diverged; lower SOLVER.BASE_LR or "
                "clip gradients"
            )
        proposals = self._propose(
            anchors,
            logits,
            deltas,
            images.image_sizes,
            cfg.pre_nms_topk_train,
            cfg.post_nms_topk_train,
        )
        return proposals, losses

    def predict(self, images: ImageList, features: dict[str, Tensor]) -> list[Proposals]:
        """Per image, the best proposals, sorted by `objectness_logits`, clipped to the image."""
        anchors, logits, deltas = self._predict(features)
        cfg = self.settings
        return self._propose(
            anchors,
            logits,
            deltas,
            images.image_sizes,
            cfg.pre_nms_topk_test,
            cfg.post_nms_topk_test,
        )

    def _predict(
        self, features: dict[str, Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        maps = [features[name] for name in self.settings.in_features]
        logits, deltas = self.rpn_head(maps)
        flat_logits = [t.permute(0, 2, 3, 1).flatten(1) for t in logits]  # (B, H * W * A)
        flat_deltas = [
            t.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)  # (B, H * W * A, 4)
            for t in deltas
        ]
        return self.anchor_generator(maps), flat_logits, flat_deltas

    def _losses(
        self,
        anchors: Tensor,
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
        targets: Sequence[Targets],
    ) -> Losses:
        cfg = self.settings
        all_logits, all_deltas = torch.cat(list(logits), dim=1), torch.cat(list(deltas), dim=1)
        cls_terms, loc_terms, num_pos, num_neg = [], [], 0, 0
        for i, (image_size, target) in enumerate(zip(image_sizes, targets, strict=True)):
            gt_boxes = target.gt_boxes.tensor
            matches, positive, negative = self._sample(anchors, gt_boxes, image_size)
            sampled = torch.cat((positive, negative))
            wanted = torch.zeros_like(sampled, dtype=all_logits.dtype)
            wanted[: len(positive)] = 1
            cls_terms.append(
                F.binary_cross_entropy_with_logits(all_logits[i, sampled], wanted, reduction="sum")
            )
            loc_terms.append(
                box_regression_loss(
                    self.box_transform,
                    all_deltas[i, positive],
                    anchors[positive],
                    gt_boxes[matches[positive]],
                    loss_type=cfg.bbox_reg_loss_type,
                    smooth_l1_beta=cfg.smooth_l1_beta,
                )
            )
            num_pos, num_neg = num_pos + len(positive), num_neg + len(negative)
        # The nominal batch, not what was drawn: detectron2's normaliser.
        scale = cfg.loss_weight / (cfg.batch_size_per_image * len(targets))
        return Losses(
            {
                "loss_rpn_cls": torch.stack(cls_terms).sum() * scale,
                "loss_rpn_loc": torch.stack(loc_terms).sum() * scale * cfg.bbox_reg_loss_weight,
            },
            {
                "rpn/num_pos_anchors": num_pos / len(targets),
                "rpn/num_neg_anchors": num_neg / len(targets),
            },
        )

    @torch.no_grad()
    def _sample(
        self, anchors: Tensor, gt_boxes: Tensor, image_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Best ground truth of every anchor, and the indices of sampled positives, negatives."""
        cfg = self.settings
        matches, labels = self.matcher(box_iou(gt_boxes, anchors))
        if cfg.boundary_thresh >= 0:
            height, width = image_size
            limit = anchors.new_tensor((width, height)) + cfg.boundary_thresh
            inside = (anchors[:, :2] >= -cfg.boundary_thresh) & (anchors[:, 2:] < limit)
            labels[~inside.all(dim=1)] = -1
        positive, negative = subsample_labels(
            labels, cfg.batch_size_per_image, cfg.positive_fraction, bg_label=0
        )
        return matches, positive, negative

    @torch.no_grad()
    def _propose(
        self,
        anchors: Sequence[Tensor],
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
        pre_nms_topk: int,
        post_nms_topk: int,
    ) -> list[Proposals]:
        """Decode, keep the best of every level, clip, drop empties, NMS within levels."""
        boxes, scores, levels = [], [], []
        for level, (anchor, logit, delta) in enumerate(zip(anchors, logits, deltas, strict=True)):
            top_scores, top = logit.topk(min(pre_nms_topk, logit.shape[1]), dim=1)  # (B, k)
            top_deltas = delta.gather(1, top[..., None].expand(-1, -1, 4))  # (B, k, 4)
            moved = self.box_transform.apply_deltas(top_deltas.flatten(0, 1), anchor[top.flatten()])
            boxes.append(moved.unflatten(0, top.shape))
            scores.append(top_scores.to(moved.dtype))
            levels.append(torch.full_like(top[0], level))
        all_boxes, all_scores = torch.cat(boxes, dim=1), torch.cat(scores, dim=1)
        level = torch.cat(levels)
        return [
            self._select(all_boxes[i], all_scores[i], level, image_size, post_nms_topk)
            for i, image_size in enumerate(image_sizes)
        ]

    def _select(
        self,
        boxes: Tensor,
        scores: Tensor,
        level: Tensor,
        image_size: tuple[int, int],
        post_nms_topk: int,
    ) -> Proposals:
        finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores)
        boxes = clip_boxes(boxes, image_size)
        usable = finite & ((boxes[:, 2:] - boxes[:, :2]) > self.min_size).all(dim=1)
        boxes, scores, level = boxes[usable], scores[usable], level[usable]
        keep = batched_nms(boxes, scores, level, self.settings.nms_thresh)[:post_nms_topk]
        return Proposals(
            image_size, proposal_boxes=Boxes(boxes[keep]), objectness_logits=scores[keep]
        )
