"""FCOS (Tian et al. 2019, arXiv:1904.01355; improved in arXiv:2006.09214): boxes without anchors.

Every cell of a feature pyramid stands for a point of the image and says which class of object is
there, how far its four sides are, and how good that box is. This is the FCOS of AdelaiDet and of
CenterMask2; on weights and numbers the two agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn

from segdet.config.ranges import (
    FocalAlpha,
    Fraction,
    InnerFraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    no_effect,
)
from segdet.errors import ConfigError
from segdet.layers import Losses, at_least_float32, batched_nms
from segdet.modeling.backbones import Backbone, FCOSLevelsConfig
from segdet.modeling.backbones.backbone import pyramid
from segdet.modeling.fcos_head import BATCH_NORMS, FCOSHead, Predictions, TopLayer
from segdet.modeling.fcos_losses import BOX_LOSSES, FCOSLoss
from segdet.modeling.fcos_targets import LocationMatcher, centerness, locations
from segdet.structures import Boxes, Detections, ImageList, Proposals, Targets

NORMS = ("", "none", "GN", *BATCH_NORMS)
NORMALIZERS = ("fg", "moving_fg", "all")
QUALITIES = ("ctrness", "iou")
ADELAIDETS_DEFORMABLE = (0, 1, 1)  # of the tower for both, the class and the box tower


@dataclass(frozen=True, kw_only=True)
class FCOSConfig(FCOSLevelsConfig):
    """MODEL.FCOS; defaults are AdelaiDet's, which CenterMask2 shares as far as it has the keys."""

    num_classes: PositiveInt = 80
    in_features: tuple[str, ...] = ("p3", "p4", "p5", "p6", "p7")
    fpn_strides: tuple[PositiveInt, ...] = (8, 16, 32, 64, 128)  # must be those of the maps
    prior_prob: InnerFraction = 0.01  # the score that an untrained head gives everything
    inference_th_train: NonNegativeFloat = 0.05  # _TRAIN: of proposals made while training
    inference_th_test: NonNegativeFloat = 0.05
    nms_th: Fraction = 0.6
    pre_nms_topk_train: PositiveInt = 1000  # pairs of location and class, per level
    pre_nms_topk_test: PositiveInt = 1000
    post_nms_topk_train: PositiveInt = 100
    post_nms_topk_test: PositiveInt = 100
    norm: Annotated[str, NORMS] = "GN"  # of the towers; "" and "none" are the same
    use_scale: bool = True
    box_quality: Annotated[str, QUALITIES] = "ctrness"
    thresh_with_ctr: bool = False  # thresholds are for class score times quality
    loss_alpha: FocalAlpha = 0.25
    loss_gamma: NonNegativeFloat = 2.0
    loss_normalizer_cls: Annotated[str, NORMALIZERS] = "fg"
    loss_weight_cls: NonNegativeFloat = 1.0
    sizes_of_interest: tuple[PositiveInt, ...] = (64, 128, 256, 512)  # between a level and the next
    use_relu: bool = True
    use_deformable: bool = False
    num_cls_convs: NonNegativeInt = 4
    num_box_convs: NonNegativeInt = 4
    num_share_convs: NonNegativeInt = 0
    center_sample: bool = True
    pos_radius: NonNegativeFloat = 1.5  # of centre sampling, in strides
    loc_loss_type: Annotated[str, BOX_LOSSES] = "giou"
    yield_proposal: bool = no_effect(False, "who needs proposals gets them")
    yield_box_features: bool = no_effect(False, "who needs features gets them")

    def __post_init__(self) -> None:
        bounds = self.sizes_of_interest
        if any(low >= high for low, high in pairwise(bounds)):
            raise ConfigError(f"SIZES_OF_INTEREST must be ascending, are {bounds}")
        if self.center_sample and self.pos_radius <= 0:
            raise ConfigError(f"POS_RADIUS must be > 0, is {self.pos_radius}")
        if not self.use_relu:
            raise ConfigError("USE_RELU must be True: boxes are strides times a ReLU, not an exp")
        if len(self.in_features) != len(self.sizes_of_interest) + 1:
            raise ConfigError(
                "SIZES_OF_INTEREST must have one value less than IN_FEATURES, for the gaps between "
                f"them; they are {self.sizes_of_interest} and {self.in_features}"
            )

    def build(
        self, backbone: Backbone, *, deformable: tuple[int, int, int] = ADELAIDETS_DEFORMABLE
    ) -> FCOS:
        """FCOS on a backbone's maps, with random weights.

        Args:
            backbone: has the maps of `in_features`.
            deformable: with USE_DEFORMABLE, how many of the last convolutions of the tower for
                both, the class and the box tower are.
        """
        strides, channels = pyramid(backbone, self.in_features, "FCOS.IN_FEATURES")
        if tuple(strides) != self.fpn_strides:
            raise ConfigError(
                f"FCOS.FPN_STRIDES must be those of FCOS.IN_FEATURES, which are {strides}, are "
                f"{list(self.fpn_strides)}"
            )
        if not self.use_deformable:
            deformable = (0, 0, 0)
        head = FCOSHead(
            channels,
            num_classes=self.num_classes,
            num_levels=len(self.in_features),
            num_convs=(self.num_share_convs, self.num_cls_convs, self.num_box_convs),
            norm="" if self.norm == "none" else self.norm,
            use_scale=self.use_scale,
            prior_prob=self.prior_prob,
            deformable=deformable,
        )
        return FCOS(
            head,
            in_features=self.in_features,
            matcher=self._build_matcher(),
            loss=self._build_loss(),
            train_selector=self._build_selector(
                self.inference_th_train, self.pre_nms_topk_train, self.post_nms_topk_train
            ),
            test_selector=self._build_selector(
                self.inference_th_test, self.pre_nms_topk_test, self.post_nms_topk_test
            ),
        )

    def _build_matcher(self) -> LocationMatcher:
        bounds = (-1.0, *self.sizes_of_interest, float("inf"))
        radius = self.pos_radius if self.center_sample else None
        return LocationMatcher(self.fpn_strides, list(pairwise(bounds)), radius=radius)

    def _build_loss(self) -> FCOSLoss:
        return FCOSLoss(
            quality=self.box_quality,
            box_loss=self.loc_loss_type,
            normalizer=self.loss_normalizer_cls,
            alpha=self.loss_alpha,
            gamma=self.loss_gamma,
            cls_weight=self.loss_weight_cls,
        )

    def _build_selector(self, score_thresh: float, before: int, after: int) -> FCOSSelector:
        return FCOSSelector(
            self.fpn_strides,
            score_thresh=score_thresh,
            thresh_with_quality=self.thresh_with_ctr,
            pre_nms_topk=before,
            nms_thresh=self.nms_th,
            post_nms_topk=after,
        )


class TopFeatures(NamedTuple):
    """What the losses of a top layer need: the P locations of a batch that have an object."""

    features: Tensor  # (P, C) what the top layer made there
    gt_index: Tensor  # (P,) int64 row of the object among those of all images, joined
    centerness: Tensor  # (P,) in (0, 1], of the location in the object's box


class FCOS(nn.Module):
    """Finds boxes of objects; a detector by itself, or what proposes to an R-CNN's heads.

    Args:
        fcos_head: gives logits, distances and quality.
        in_features: names of the maps that it works on.
        matcher: tells which locations have an object.
        loss: compares the predictions with the ground truth.
        train_selector: makes proposals of them while training.
        test_selector: makes detections of them.
    """

    def __init__(
        self,
        fcos_head: FCOSHead,
        *,
        in_features: Sequence[str],
        matcher: LocationMatcher,
        loss: FCOSLoss,
        train_selector: FCOSSelector,
        test_selector: FCOSSelector,
    ) -> None:
        super().__init__()
        self.fcos_head = fcos_head
        self.in_features = tuple(in_features)
        self.matcher = matcher
        self.loss = loss
        self.train_selector = train_selector
        self.test_selector = test_selector

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        gt_instances: Sequence[Targets] | None = None,
    ) -> tuple[Sequence[Proposals | Detections], Losses]:
        """The originals' call: proposals and losses when training, else detections."""
        if self.training:
            return self.losses(images, features, gt_instances or ())
        return self.predict(images, features), Losses()

    def losses(
        self, images: ImageList, features: dict[str, Tensor], targets: Sequence[Targets]
    ) -> tuple[list[Proposals], Losses]:
        """For an R-CNN's heads: its own detections as proposals, without gradient, and losses."""
        found = self.head_outputs(features)
        losses, _ = self.compare(found, targets)
        proposals = [
            Proposals(d.image_size, proposal_boxes=d.pred_boxes, objectness_logits=d.scores)
            for d in self.train_selector(found, images.image_sizes)
        ]
        return proposals, losses

    def predict(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        top_layer: TopLayer | None = None,
    ) -> list[Detections]:
        """Per image, the best detections; boxes are not clipped to the image.

        With a top layer of C channels they have `top_feats` (N, C), its output at the location
        that each detection is from.
        """
        return self.test_selector(self.head_outputs(features), images.image_sizes, top_layer)

    def head_outputs(self, features: dict[str, Tensor]) -> Predictions:
        """What the head says of every location."""
        return self.fcos_head([features[name] for name in self.in_features])

    def compare(
        self, found: Predictions, targets: Sequence[Targets], top_layer: TopLayer | None = None
    ) -> tuple[Losses, TopFeatures | None]:
        """The losses; and for those of a top layer, if there is one, what it makes of objects."""
        positives = self.matcher([x.shape[-2:] for x in found.logits], targets)
        losses = self.loss(
            found.logits, found.ltrb, found.quality, positives, update_normalizer=self.training
        )
        if top_layer is None:
            return losses, None
        return losses, TopFeatures(
            features=positives.look_up(top_layer.at, found.tower),
            gt_index=positives.gt_index,
            centerness=centerness(positives.ltrb),
        )


class FCOSSelector:
    """Makes detections of what was predicted for the locations.

    Args:
        strides: per level.
        score_thresh: candidates need a class score above it.
        thresh_with_quality: a class score times quality above it.
        pre_nms_topk: the best this many of a level go on to NMS.
        nms_thresh: IoU above which the lower of two detections of one class goes.
        post_nms_topk: the best this many are kept, and those that score like the last.
    """

    def __init__(
        self,
        strides: Sequence[int],
        *,
        score_thresh: float,
        thresh_with_quality: bool,
        pre_nms_topk: int,
        nms_thresh: float,
        post_nms_topk: int,
    ) -> None:
        self.strides = tuple(strides)
        self.score_thresh = score_thresh
        self.thresh_with_quality = thresh_with_quality
        self.pre_nms_topk = pre_nms_topk
        self.nms_thresh = nms_thresh
        self.post_nms_topk = post_nms_topk

    def __call__(
        self,
        found: Predictions,
        image_sizes: Sequence[tuple[int, int]],
        top_layer: TopLayer | None = None,
    ) -> list[Detections]:
        """Per image, detections, best first; boxes are not clipped and carry no gradient.

        Args:
            found: the head's outputs.
            image_sizes: per image (height, width) before padding.
            top_layer: what `top_feats` are made by; None for none.
        """
        with torch.no_grad():
            chosen = [self._level(level, found) for level in range(len(self.strides))]
            boxes, ranks, classes, cells = (torch.cat(x, dim=1) for x in zip(*chosen, strict=True))
            levels = torch.cat([torch.full_like(x[2][0], i) for i, x in enumerate(chosen)])
        detections = []
        for i, image_size in enumerate(image_sizes):
            kept, scores = self._suppress(boxes[i], ranks[i], classes[i])
            detections.append(
                Detections(
                    image_size,
                    pred_boxes=Boxes(boxes[i, kept]),
                    scores=scores,
                    pred_classes=classes[i, kept],
                )
            )
            if top_layer is not None:
                tower = [x[i : i + 1] for x in found.tower]
                top_feats = _top_features(top_layer, tower, levels[kept], cells[i, kept])
                detections[-1].top_feats = top_feats
        return detections

    def _level(self, level: int, found: Predictions) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The best n of a level: boxes (B, n, 4), score squared or -1, class and cell (B, n)."""
        logits, ltrb, quality = (
            at_least_float32(maps[level]) for maps in (found.logits, found.ltrb, found.quality)
        )
        logits, quality = logits.flatten(2), quality.flatten(2).sigmoid()  # (B, K, L), (B, 1, L)
        # The best n pairs of location and class are at the n locations with the best ones.
        most = self._ranks(logits.amax(dim=1), quality[:, 0])
        cells = most.topk(min(self.pre_nms_topk, most.shape[1]), dim=1).indices[:, None]
        ranks = self._ranks(
            logits.gather(2, cells.expand(-1, logits.shape[1], -1)), quality.gather(2, cells)
        ).flatten(1)
        best, index = ranks.topk(min(self.pre_nms_topk, ranks.shape[1]), dim=1)  # (B, n)
        classes = index // cells.shape[2]
        cells = cells[:, 0].gather(1, index % cells.shape[2])
        points = locations(ltrb.shape[2:], self.strides[level], ltrb)[cells]  # (B, n, 2)
        sides = ltrb.flatten(2).gather(2, cells[:, None].expand(-1, 4, -1)).transpose(1, 2)
        sides = sides * self.strides[level]
        boxes = torch.cat((points - sides[..., :2], points + sides[..., 2:]), dim=-1)
        best = torch.where(boxes.isfinite().all(dim=-1), best, -1)
        return boxes, best, classes, cells

    def _ranks(self, logits: Tensor, quality: Tensor) -> Tensor:
        """Scores squared, by which candidates are sorted; -1 for what is none."""
        scores = logits.sigmoid()
        ranks = scores * quality
        passed = (ranks if self.thresh_with_quality else scores) > self.score_thresh
        return torch.where(passed, ranks, -1)

    def _suppress(self, boxes: Tensor, ranks: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of one image to keep, best first, and their scores."""
        rows = torch.nonzero(ranks >= 0).squeeze(1)
        scores = ranks[rows].sqrt()
        kept = batched_nms(boxes[rows], scores, classes[rows], self.nms_thresh)
        scores = scores[kept]
        if len(kept) > self.post_nms_topk:
            enough = scores >= scores[self.post_nms_topk - 1]
            kept, scores = kept[enough], scores[enough]
        return rows[kept], scores


def _top_features(
    top_layer: TopLayer, tower: Sequence[Tensor], levels: Tensor, cells: Tensor
) -> Tensor:
    """(N, C) of the cells (N,) of levels (N,), from one map (1, C', H, W) a level."""
    by_level = [torch.nonzero(levels == level).squeeze(1) for level in range(len(tower))]
    features = [
        top_layer.at(x, torch.zeros_like(rows), cells[rows])
        for x, rows in zip(tower, by_level, strict=True)
    ]
    return torch.cat(features)[torch.cat(by_level).argsort()]
