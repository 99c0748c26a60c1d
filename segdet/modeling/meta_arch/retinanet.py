"""RetinaNet (Lin et al. 2017, arXiv:1708.02002): one stage, dense anchors, focal loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.config.ranges import (
    FocalAlpha,
    Fraction,
    InnerFraction,
    IoULabel,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from segdet.layers import Conv2d, Losses, batched_nms, get_norm, normal_fill, sigmoid_focal_loss
from segdet.modeling.anchors import AnchorGeneratorConfig, DefaultAnchorGenerator, flatten_cells
from segdet.modeling.backbones import Backbone
from segdet.modeling.backbones.backbone import pyramid
from segdet.modeling.box_coder import Box2BoxTransform, BoxRegressionLoss, check_box_loss
from segdet.modeling.matching import Matcher
from segdet.modeling.positives import enter_mean
from segdet.modeling.system import Needs, System, SystemConfig
from segdet.structures import Boxes, Detections, ImageList, Targets, box_iou

# MODEL.RETINANET.NORM -> what each level has one of; its statistics are wrong for the others.
BATCH_NORMS: dict[str, type[nn.BatchNorm2d | nn.SyncBatchNorm]] = {
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
}
NORMS = ("", "GN", *BATCH_NORMS)


@dataclass(frozen=True, kw_only=True)
class RetinaNetHeadConfig:
    """MODEL.RETINANET; defaults are detectron2's."""

    num_classes: PositiveInt = 80
    in_features: tuple[str, ...] = ("p3", "p4", "p5", "p6", "p7")
    num_convs: NonNegativeInt = 4  # before the last layer of either branch
    iou_thresholds: tuple[Fraction, ...] = (0.4, 0.5)
    iou_labels: tuple[IoULabel, ...] = (0, -1, 1)
    prior_prob: InnerFraction = 0.01  # the score that an untrained head gives everything
    score_thresh_test: NonNegativeFloat = 0.05
    topk_candidates_test: PositiveInt = 1000  # per level, before NMS
    nms_thresh_test: Fraction = 0.5
    bbox_reg_weights: tuple[PositiveFloat, ...] = (1.0, 1.0, 1.0, 1.0)
    focal_loss_gamma: NonNegativeFloat = 2.0
    focal_loss_alpha: FocalAlpha = 0.25
    smooth_l1_loss_beta: NonNegativeFloat = 0.1
    bbox_reg_loss_type: str = "smooth_l1"
    norm: Annotated[str, NORMS] = ""

    def __post_init__(self) -> None:
        check_box_loss(self.bbox_reg_loss_type)

    def build(self, in_channels: int, num_anchors: int) -> RetinaNetHead:
        """The head for maps of `in_channels` channels."""
        return RetinaNetHead(
            in_channels,
            num_anchors,
            num_classes=self.num_classes,
            num_levels=len(self.in_features),
            num_convs=self.num_convs,
            prior_prob=self.prior_prob,
            norm=self.norm,
        )

    def build_loss(self, transform: Box2BoxTransform) -> RetinaNetLoss:
        """The training losses."""
        return RetinaNetLoss(
            matcher=Matcher(self.iou_thresholds, self.iou_labels, allow_low_quality_matches=True),
            num_classes=self.num_classes,
            alpha=self.focal_loss_alpha,
            gamma=self.focal_loss_gamma,
            box_loss=BoxRegressionLoss(
                transform,
                loss_type=self.bbox_reg_loss_type,
                smooth_l1_beta=self.smooth_l1_loss_beta,
            ),
        )


@dataclass(frozen=True, kw_only=True)
class RetinaNetConfig(SystemConfig):
    """MODEL, as RetinaNet reads it."""

    needs: ClassVar[Needs] = Needs(labels={"annotations": "MODEL.RETINANET.NUM_CLASSES"})

    anchor_generator: AnchorGeneratorConfig = field(default_factory=AnchorGeneratorConfig)
    retinanet: RetinaNetHeadConfig = field(default_factory=RetinaNetHeadConfig)
    detections_per_image: PositiveInt = field(
        default=100, metadata={"key": "TEST.DETECTIONS_PER_IMAGE"}
    )

    def build(self) -> RetinaNet:
        """The model with random weights."""
        backbone = self.build_backbone()
        names = self.retinanet.in_features
        strides, channels = pyramid(backbone, names, "RETINANET.IN_FEATURES")
        anchors = self.anchor_generator.build(strides)
        transform = Box2BoxTransform(self.retinanet.bbox_reg_weights)
        return RetinaNet(
            backbone,
            in_features=names,
            anchor_generator=anchors,
            head=self.retinanet.build(channels, anchors.anchors_per_cell),
            loss=self.retinanet.build_loss(transform),
            selector=DenseSelector(
                transform,
                score_thresh=self.retinanet.score_thresh_test,
                topk_candidates=self.retinanet.topk_candidates_test,
                nms_thresh=self.retinanet.nms_thresh_test,
                detections_per_image=self.detections_per_image,
            ),
            pixel_mean=self.pixel_mean,
            pixel_std=self.pixel_std,
        )


class RetinaNet(System):
    """A class and a box for every anchor of every level.

    Args:
        backbone: images to feature maps.
        in_features: names of the maps that the head works on.
        anchor_generator: gives the reference boxes.
        head: gives logits and deltas.
        loss: compares them with the ground truth.
        selector: makes detections of them.
        pixel_mean: one value a channel, subtracted from the images.
        pixel_std: one value a channel, divides them after that.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        in_features: Sequence[str],
        anchor_generator: DefaultAnchorGenerator,
        head: RetinaNetHead,
        loss: RetinaNetLoss,
        selector: DenseSelector,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__(backbone, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.in_features = tuple(in_features)
        self.head = head
        self.anchor_generator = anchor_generator
        self.loss = loss
        self.selector = selector

    def losses(self, images: ImageList, targets: list[Targets]) -> Losses:
        """`loss_cls` and `loss_box_reg`."""
        anchors, logits, deltas = self._predict(images)
        return self.loss(
            torch.cat(anchors),
            torch.cat(logits, dim=1),
            torch.cat(deltas, dim=1),
            targets,
            update_normalizer=self.training,
        )

    def predict(self, images: ImageList) -> list[Detections]:
        """Per image, the best detections."""
        anchors, logits, deltas = self._predict(images)
        return [
            self.selector(anchors, [x[i] for x in logits], [x[i] for x in deltas], image_size)
            for i, image_size in enumerate(images.image_sizes)
        ]

    def _predict(self, images: ImageList) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Per level, anchors (L, 4), logits (B, L, K) and deltas (B, L, 4)."""
        features = self.backbone(images.tensor)
        maps = [features[name] for name in self.in_features]
        logits, deltas = self.head(maps)
        logits = [flatten_cells(x, self.head.num_classes) for x in logits]
        return self.anchor_generator(maps), logits, [flatten_cells(x, 4) for x in deltas]


class RetinaNetHead(nn.Module):
    """Two branches of convolutions, for classes and boxes; one head for all levels.

    Args:
        in_channels: of every feature map.
        num_anchors: a cell.
        num_classes: K.
        num_levels: feature maps of an image.
        num_convs: 3x3 convolutions of either branch before its last layer.
        prior_prob: the score of everything before training (section 4.1, "Initialization").
        norm: of those convolutions, "", "GN" or one of `BATCH_NORMS`.
    """

    def __init__(
        self,
        in_channels: int,
        num_anchors: int,
        *,
        num_classes: int,
        num_levels: int,
        num_convs: int = 4,
        prior_prob: float = 0.01,
        norm: str = "",
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.cls_subnet = Subnet(in_channels, num_levels, num_convs, norm)
        self.bbox_subnet = Subnet(in_channels, num_levels, num_convs, norm)
        self.cls_score = Conv2d(in_channels, num_anchors * num_classes, 3, padding=1)
        self.bbox_pred = Conv2d(in_channels, num_anchors * 4, 3, padding=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                normal_fill(layer, std=0.01)
        assert self.cls_score.bias is not None, "made with a bias"
        nn.init.constant_(self.cls_score.bias, -math.log((1 - prior_prob) / prior_prob))

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per level, logits (B, A * K, H, W) and deltas (B, A * 4, H, W)."""
        levels = list(enumerate(features))
        logits = [self.cls_score(self.cls_subnet(x, level)) for level, x in levels]
        return logits, [self.bbox_pred(self.bbox_subnet(x, level)) for level, x in levels]


class Subnet(nn.ModuleList):
    """One branch of the head: convolutions that keep the number of channels.

    Args:
        channels: of its input and output.
        num_levels: feature maps of an image.
        num_convs: 3x3 convolutions.
        norm: after each of them, as in `RetinaNetHead`.
    """

    def __init__(self, channels: int, num_levels: int, num_convs: int, norm: str) -> None:
        layers: list[nn.Module] = []
        for _ in range(num_convs):
            layers.append(Conv2d(channels, channels, 3, padding=1))
            if norm in BATCH_NORMS:
                layers.append(LevelNorm(BATCH_NORMS[norm], num_levels, channels))
            elif norm:
                layers.append(get_norm(norm, channels) or nn.Identity())
            layers.append(nn.ReLU())
        super().__init__(layers)

    def forward(self, x: Tensor, level: int) -> Tensor:
        """(B, C, H, W) of the level with that index, to the same shape."""
        for layer in self:
            x = layer(x, level) if isinstance(layer, LevelNorm) else layer(x)
        return x


class LevelNorm(nn.ModuleList):
    """Batch statistics of each level by themselves, then the scale and shift that all share.

    Source: detectron2's `CycleBatchNormList`, whose parameters' names it has.

    Args:
        norm: takes the statistics of one level.
        num_levels: of them.
        channels: C.
    """

    def __init__(
        self, norm: type[nn.BatchNorm2d | nn.SyncBatchNorm], num_levels: int, channels: int
    ) -> None:
        super().__init__(norm(channels, affine=False) for _ in range(num_levels))
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, level: int) -> Tensor:
        """(B, C, H, W) of the level with that index, to the same shape."""
        return torch.addcmul(self.bias[:, None, None], self[level](x), self.weight[:, None, None])


class RetinaNetLoss(nn.Module):
    """Labels every anchor and compares what was predicted for it with the ground truth.

    Args:
        matcher: assigns anchors to objects.
        num_classes: K.
        alpha: weight of positives in the focal loss.
        gamma: its focus.
        box_loss: of the positive anchors' deltas.

    Attributes:
        normalizer: a running mean of the batches' positive anchors that divides both losses. It
            starts at 100 with the model (as in detectron2) and is no part of the weights.
    """

    def __init__(
        self,
        *,
        matcher: Matcher,
        num_classes: int,
        alpha: float,
        gamma: float,
        box_loss: BoxRegressionLoss,
    ) -> None:
        super().__init__()
        self.matcher = matcher
        self.num_classes = num_classes
        self.alpha = alpha
        self.gamma = gamma
        self.box_loss = box_loss
        self.normalizer: Tensor  # a buffer, so that a resumed run goes on with it
        start = torch.tensor(100.0, dtype=torch.float64)
        self.register_buffer("normalizer", start, persistent=False)

    def forward(
        self,
        anchors: Tensor,
        logits: Tensor,
        deltas: Tensor,
        targets: Sequence[Targets],
        *,
        update_normalizer: bool,
    ) -> Losses:
        """`loss_cls` and `loss_box_reg`.

        Args:
            anchors: (L, 4), all levels together.
            logits: (B, L, K).
            deltas: (B, L, 4).
            targets: per image.
            update_normalizer: let this batch enter it first, as training does.
        """
        labels, gt_boxes = zip(*(self._label(anchors, t) for t in targets), strict=True)
        labels, gt_boxes = torch.stack(labels), torch.stack(gt_boxes)  # (B, L), (B, L, 4)
        valid = labels >= 0
        positive = valid & (labels < self.num_classes)
        num_positive = int(positive.sum())
        if update_normalizer:
            enter_mean(self.normalizer, num_positive)
        one_hot = F.one_hot(labels[valid], self.num_classes + 1)[:, :-1]
        cls_loss = sigmoid_focal_loss(
            logits[valid], one_hot, alpha=self.alpha, gamma=self.gamma, reduction="sum"
        )
        matched = anchors.expand(len(labels), -1, -1)[positive]
        box_loss = self.box_loss(deltas[positive], matched, gt_boxes[positive])
        normalizer = float(self.normalizer)
        return Losses(
            {"loss_cls": cls_loss / normalizer, "loss_box_reg": box_loss / normalizer},
            {"num_pos_anchors": num_positive / len(targets)},
        )

    @torch.no_grad()
    def _label(self, anchors: Tensor, target: Targets) -> tuple[Tensor, Tensor]:
        """Per anchor, its class (L,), K for background, -1 to ignore; its object's box (L, 4)."""
        gt_boxes = target.gt_boxes.tensor
        matches, labels = self.matcher.match(gt_boxes, anchors, box_iou)
        if len(gt_boxes) == 0:
            return torch.full_like(matches, self.num_classes), torch.zeros_like(anchors)
        classes = target.gt_classes[matches]
        classes[labels == 0] = self.num_classes
        classes[labels == -1] = -1
        return classes, gt_boxes[matches]


class DenseSelector:
    """Makes detections of what was predicted for the anchors of one image.

    Args:
        box_transform: moves anchors by their deltas.
        score_thresh: detections need a score above it.
        topk_candidates: the best this many of a level go on to NMS.
        nms_thresh: IoU above which the lower of two detections of one class goes.
        detections_per_image: the best this many are kept.
    """

    def __init__(
        self,
        box_transform: Box2BoxTransform,
        *,
        score_thresh: float,
        topk_candidates: int,
        nms_thresh: float,
        detections_per_image: int,
    ) -> None:
        self.box_transform = box_transform
        self.score_thresh = score_thresh
        self.topk_candidates = topk_candidates
        self.nms_thresh = nms_thresh
        self.detections_per_image = detections_per_image

    def __call__(
        self,
        anchors: Sequence[Tensor],
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        image_size: tuple[int, int],
    ) -> Detections:
        """Detections, best first; boxes are not clipped.

        Args:
            anchors: per level (L, 4).
            logits: per level (L, K).
            deltas: per level (L, 4).
            image_size: (height, width) before padding.
        """
        levels = [self._level(*one) for one in zip(anchors, logits, deltas, strict=True)]
        boxes, scores, classes = (torch.cat(parts) for parts in zip(*levels, strict=True))
        keep = batched_nms(boxes, scores, classes, self.nms_thresh)[: self.detections_per_image]
        return Detections(
            image_size,
            pred_boxes=Boxes(boxes[keep]),
            scores=scores[keep],
            pred_classes=classes[keep],
        )

    def _level(
        self, anchors: Tensor, logits: Tensor, deltas: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        scores = logits.sigmoid()
        rows, classes = torch.nonzero(scores > self.score_thresh, as_tuple=True)
        best, order = scores[rows, classes].topk(min(self.topk_candidates, len(rows)))
        rows, classes = rows[order], classes[order]
        boxes = self.box_transform.apply_deltas(deltas[rows], anchors[rows])
        usable = torch.isfinite(boxes).all(dim=1) & torch.isfinite(best)
        return boxes[usable], best[usable].to(boxes.dtype), classes[usable]
