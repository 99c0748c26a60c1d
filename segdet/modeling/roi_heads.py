"""ROI heads: what happens to each proposal, in training and in prediction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segdet.config.ranges import Fraction, IoULabel, NonNegativeFloat, PositiveInt
from segdet.layers import Losses
from segdet.modeling.box_head import FastRCNNConvFCHead, FastRCNNOutputLayers
from segdet.modeling.box_kind import UPRIGHT, BoxKind
from segdet.modeling.keypoint_head import (
    KRCNNConvDeconvUpsampleHead,
    heatmaps_to_keypoints,
    with_visible_keypoints,
)
from segdet.modeling.mask_head import (
    MaskRCNNConvUpsampleHead,
    mask_loss,
    mask_targets,
    masks_of_class,
    own_masks,
)
from segdet.modeling.matching import Matcher
from segdet.modeling.roi_pooler import ROIPooler
from segdet.modeling.sampling import subsample_labels
from segdet.structures import Boxes, Detections, ImageList, Instances, Proposals, Targets

# The logit of probability 1 - 1e-10: ground truth boxes join the proposals as certain objects.
GT_OBJECTNESS_LOGIT = 23.025850929840455


@dataclass(frozen=True, kw_only=True)
class ROIHeadsConfig:
    """MODEL.ROI_HEADS; defaults are detectron2's."""

    name: str = "Res5ROIHeads"
    num_classes: PositiveInt = 80
    in_features: tuple[str, ...] = ("res4",)
    iou_thresholds: tuple[Fraction, ...] = (0.5,)
    iou_labels: tuple[IoULabel, ...] = (0, 1)
    batch_size_per_image: PositiveInt = 512
    positive_fraction: Fraction = 0.25
    score_thresh_test: NonNegativeFloat = 0.05
    nms_thresh_test: Fraction = 0.5
    proposal_append_gt: bool = True

    @property
    def nominal_foreground(self) -> float:
        """Foreground regions that an image is meant to have in training."""
        return self.batch_size_per_image * self.positive_fraction

    def build_sampler(self, kind: BoxKind = UPRIGHT) -> ProposalSampler:
        """The sampler of training proposals, for a kind of boxes."""
        return ProposalSampler(
            Matcher(self.iou_thresholds, self.iou_labels),
            num_classes=self.num_classes,
            batch_size_per_image=self.batch_size_per_image,
            positive_fraction=self.positive_fraction,
            append_gt=self.proposal_append_gt,
            kind=kind,
        )


class ProposalSampler:
    """Chooses the proposals that a training step uses, and their ground truth.

    Args:
        matcher: assigns proposals to objects.
        num_classes: K; background proposals get class K.
        batch_size_per_image: at most this many are drawn.
        positive_fraction: at most this share of them overlaps an object.
        append_gt: ground truth boxes join the proposals first.
        kind: of the boxes.
    """

    def __init__(
        self,
        matcher: Matcher,
        *,
        num_classes: int,
        batch_size_per_image: int,
        positive_fraction: float,
        append_gt: bool,
        kind: BoxKind = UPRIGHT,
    ) -> None:
        self.matcher = matcher
        self.num_classes = num_classes
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.append_gt = append_gt
        self.kind = kind

    @torch.no_grad()
    def __call__(
        self, proposals: Sequence[Proposals], targets: Sequence[Targets]
    ) -> tuple[list[Proposals], dict[str, float]]:
        """Sampled proposals, foreground first, and how many of each kind an image has.

        They carry `gt_classes` in [0, K], and where the image has objects `gt_boxes` and
        `gt_index`, the row of each one's best object (arbitrary for background).
        """
        sampled, num_fg = [], 0
        for p, target in zip(proposals, targets, strict=True):
            one, fg = self._sample_image(p, target)
            sampled.append(one)
            num_fg += fg
        total = sum(len(p) for p in sampled)
        return sampled, {
            "roi_head/num_fg_samples": num_fg / len(sampled),
            "roi_head/num_bg_samples": (total - num_fg) / len(sampled),
        }

    def _sample_image(self, proposals: Proposals, target: Targets) -> tuple[Proposals, int]:
        boxes, logits = proposals.proposal_boxes.tensor, proposals.objectness_logits
        gt_boxes = target.gt_boxes.tensor
        if self.append_gt:
            boxes = torch.cat((boxes, gt_boxes.to(boxes.dtype)))
            certain = logits.new_full((len(gt_boxes),), GT_OBJECTNESS_LOGIT)
            logits = torch.cat((logits, certain))
        matches, labels = self.matcher.match(gt_boxes, boxes, self.kind.iou)
        classes = torch.full_like(matches, self.num_classes)
        if len(gt_boxes):
            classes = torch.where(labels == 1, target.gt_classes[matches], classes)
            classes[labels == -1] = -1
        fg, bg = subsample_labels(
            classes, self.batch_size_per_image, self.positive_fraction, self.num_classes
        )
        rows = torch.cat((fg, bg))
        sampled = Proposals(
            proposals.image_size,
            proposal_boxes=self.kind.structure(boxes[rows]),
            objectness_logits=logits[rows],
            gt_classes=classes[rows],
        )
        if len(gt_boxes):
            sampled.gt_boxes = self.kind.structure(gt_boxes[matches[rows]])
            sampled.gt_index = matches[rows]
        return sampled, len(fg)


def select_foreground(proposals: Sequence[Proposals], num_classes: int) -> list[Proposals]:
    """Per image, the proposals whose `gt_classes` is an object class."""
    return [p[(p.gt_classes >= 0) & (p.gt_classes < num_classes)] for p in proposals]


class ROIHeads(nn.Module, ABC):
    """The second stage: proposals to losses or detections."""

    def forward(
        self,
        images: ImageList | None,
        features: dict[str, Tensor],
        proposals: Sequence[Proposals],
        targets: Sequence[Targets] | None = None,
    ) -> tuple[Sequence[Instances], Losses]:
        """detectron2's call: proposals and losses when training, else detections and no losses."""
        if self.training:
            return proposals, self.losses(features, proposals, targets or ())
        return self.predict(features, proposals), Losses()

    @abstractmethod
    def losses(
        self,
        features: dict[str, Tensor],
        proposals: Sequence[Proposals],
        targets: Sequence[Targets],
    ) -> Losses:
        """The losses of boxes and, where there are such heads, of masks and keypoints."""

    @abstractmethod
    def predict(
        self, features: dict[str, Tensor], proposals: Sequence[Proposals]
    ) -> list[Detections]:
        """Per image, detections in network input pixels; masks are (N, 1, M, M) probabilities."""

    @abstractmethod
    def predict_masks(
        self, features: dict[str, Tensor], detections: list[Detections]
    ) -> list[Detections]:
        """The detections with `pred_masks` added; unchanged where there is no mask head."""


class StandardROIHeads(ROIHeads):
    """A box head and, if given, a mask and a keypoint head, each with its pooler on shared maps.

    Args:
        in_features: names of the pooled feature maps.
        sampler: chooses training proposals.
        box_pooler: its output is the box head's input; likewise the other poolers.
        box_head: features of a proposal.
        box_predictor: their scores, deltas, losses and detections.
        train_on_pred_boxes: masks and keypoints train on refined boxes instead of proposals.
        mask_pooler: None without masks.
        mask_head: None without masks.
        keypoint_pooler: None without keypoints.
        keypoint_head: None without keypoints.
    """

    def __init__(
        self,
        in_features: Sequence[str],
        *,
        sampler: ProposalSampler,
        box_pooler: ROIPooler,
        box_head: FastRCNNConvFCHead,
        box_predictor: FastRCNNOutputLayers,
        train_on_pred_boxes: bool = False,
        mask_pooler: ROIPooler | None = None,
        mask_head: MaskRCNNConvUpsampleHead | None = None,
        keypoint_pooler: ROIPooler | None = None,
        keypoint_head: KRCNNConvDeconvUpsampleHead | None = None,
    ) -> None:
        super().__init__()
        self.in_features = tuple(in_features)
        self.sampler = sampler
        self.box_pooler = box_pooler
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.train_on_pred_boxes = train_on_pred_boxes
        self.mask_pooler = mask_pooler
        self.mask_head = mask_head
        self.keypoint_pooler = keypoint_pooler
        self.keypoint_head = keypoint_head

    def losses(
        self,
        features: dict[str, Tensor],
        proposals: Sequence[Proposals],
        targets: Sequence[Targets],
    ) -> Losses:
        """`loss_cls`, `loss_box_reg` and, with such heads, `loss_mask` and `loss_keypoint`."""
        sampled, metrics = self.sampler(proposals, targets)
        maps = [features[name] for name in self.in_features]
        losses = Losses({}, metrics) | self._box_losses(maps, sampled, targets)
        fg = select_foreground(sampled, self.sampler.num_classes)
        losses |= self._mask_losses(maps, fg, targets)
        return losses | self._keypoint_losses(maps, fg, targets)

    def _box_losses(
        self,
        maps: Sequence[Tensor],
        sampled: Sequence[Proposals],
        targets: Sequence[Targets],
    ) -> Losses:
        """Where masks train on predicted boxes, `sampled` gets them."""
        pooled = self.box_pooler(maps, [p.proposal_boxes.tensor for p in sampled])
        logits, deltas = self.box_predictor(self.box_head(pooled))
        losses = self.box_predictor.losses(logits, deltas, sampled)
        if self.train_on_pred_boxes:
            refined = self.box_predictor.boxes_of_gt_class(deltas, sampled)
            for p, boxes in zip(sampled, refined, strict=True):
                p.proposal_boxes = Boxes(boxes)
        return losses

    def _mask_losses(
        self, maps: Sequence[Tensor], fg: Sequence[Proposals], targets: Sequence[Targets]
    ) -> Losses:
        if self.mask_pooler is None or self.mask_head is None:
            return Losses()
        pooled = self.mask_pooler(maps, [p.proposal_boxes.tensor for p in fg])
        return mask_losses(self.mask_head, pooled, fg, targets)

    def _keypoint_losses(
        self, maps: Sequence[Tensor], fg: Sequence[Proposals], targets: Sequence[Targets]
    ) -> Losses:
        if self.keypoint_pooler is None or self.keypoint_head is None:
            return Losses()
        return keypoint_losses(self.keypoint_pooler, self.keypoint_head, maps, fg, targets)

    def predict(
        self, features: dict[str, Tensor], proposals: Sequence[Proposals]
    ) -> list[Detections]:
        """Per image, detections in network input pixels; masks are (N, 1, M, M) probabilities."""
        maps = [features[name] for name in self.in_features]
        detections = self._predict_boxes(maps, proposals)
        return self.predict_keypoints(features, self.predict_masks(features, detections))

    def _predict_boxes(
        self, maps: Sequence[Tensor], proposals: Sequence[Proposals]
    ) -> list[Detections]:
        pooled = self.box_pooler(maps, [p.proposal_boxes.tensor for p in proposals])
        logits, deltas = self.box_predictor(self.box_head(pooled))
        return self.box_predictor.predict(logits, deltas, proposals)

    def predict_masks(
        self, features: dict[str, Tensor], detections: list[Detections]
    ) -> list[Detections]:
        """The detections with `pred_masks` added; unchanged where there is no mask head."""
        if self.mask_pooler is None or self.mask_head is None:
            return detections
        maps = [features[name] for name in self.in_features]
        pooled = self.mask_pooler(maps, [d.pred_boxes.tensor for d in detections])
        return attach_masks_of(self.mask_head, pooled, detections)

    def predict_keypoints(
        self, features: dict[str, Tensor], detections: list[Detections]
    ) -> list[Detections]:
        """The detections with `pred_keypoints` added; unchanged where there is no such head."""
        if self.keypoint_pooler is None or self.keypoint_head is None:
            return detections
        maps = [features[name] for name in self.in_features]
        pooled = self.keypoint_pooler(maps, [d.pred_boxes.tensor for d in detections])
        return attach_keypoints(self.keypoint_head(pooled), detections)


def keypoint_losses(
    pooler: ROIPooler,
    head: KRCNNConvDeconvUpsampleHead,
    maps: Sequence[Tensor],
    fg: Sequence[Proposals],
    targets: Sequence[Targets],
) -> Losses:
    """`loss_keypoint` of the foreground proposals whose object has a keypoint inside them."""
    fg = with_visible_keypoints(fg, targets)
    boxes, sizes = [p.proposal_boxes.tensor for p in fg], [p.image_size for p in fg]
    losses = head.losses(head(pooler(maps, boxes, sizes)), fg, targets)
    mean = sum(len(p) for p in fg) / len(fg)
    return Losses(losses, {"keypoint_head/num_fg_samples": mean})


def mask_losses(
    head: nn.Module, pooled: Tensor, fg: Sequence[Proposals], targets: Sequence[Targets]
) -> Losses:
    """`loss_mask` of the foreground regions.

    Args:
        head: a mask head.
        pooled: (R, C, S, S), its input; rows in the order of `fg`.
        fg: foreground only, with `gt_index` and `gt_classes`.
        targets: with `gt_masks`.
    """
    classes = torch.cat([p.gt_classes for p in fg])
    logits = own_masks(head, pooled, classes)
    return mask_loss(logits, mask_targets(fg, targets, logits.shape[-1]), classes)


def attach_masks_of(
    head: nn.Module, pooled: Tensor, detections: list[Detections]
) -> list[Detections]:
    """Sets `pred_masks` to what a mask head finds in pooled features (sum N, C, S, S)."""
    classes = torch.cat([d.pred_classes for d in detections])
    return attach_masks(own_masks(head, pooled, classes), detections)


def attach_masks(logits: Tensor, detections: list[Detections]) -> list[Detections]:
    """Sets `pred_masks` (N, 1, M, M) probabilities, from (sum N, K, M, M) logits."""
    classes = torch.cat([d.pred_classes for d in detections])
    probabilities = masks_of_class(logits, classes).sigmoid()[:, None]
    counts = [len(d) for d in detections]
    for d, masks in zip(detections, probabilities.split(counts), strict=True):
        d.pred_masks = masks
    return detections


def attach_keypoints(heatmaps: Tensor, detections: list[Detections]) -> list[Detections]:
    """Sets `pred_keypoints` (N, keypoints, 3), from (sum N, keypoints, M, M) logits."""
    boxes = torch.cat([d.pred_boxes.tensor for d in detections])
    # Positions need more digits than half precision has.
    found = heatmaps_to_keypoints(heatmaps.to(boxes.dtype), boxes)[..., [0, 1, 3]]
    for d, keypoints in zip(detections, found.split([len(d) for d in detections]), strict=True):
        d.pred_keypoints = keypoints
    return detections
