"""Cascade R-CNN (Cai and Vasconcelos 2017, arXiv:1712.00726): box heads that refine in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from segdet.config.ranges import Fraction, PositiveFloat
from segdet.errors import ConfigError
from segdet.layers import Losses
from segdet.modeling.backbones import Backbone
from segdet.modeling.backbones.backbone import pyramid
from segdet.modeling.box_coder import Box2BoxTransform
from segdet.modeling.box_head import FastRCNNConvFCHead, FastRCNNOutputLayers
from segdet.modeling.keypoint_head import KRCNNConvDeconvUpsampleHead
from segdet.modeling.mask_head import MaskRCNNConvUpsampleHead
from segdet.modeling.matching import Matcher
from segdet.modeling.meta_arch.mask_rcnn import MaskRCNNConfig
from segdet.modeling.roi_heads import ProposalSampler, StandardROIHeads
from segdet.modeling.roi_pooler import ROIPooler
from segdet.structures import Boxes, Detections, Proposals, Targets, box_iou


@dataclass(frozen=True, kw_only=True)
class CascadeHeadConfig:
    """MODEL.ROI_BOX_CASCADE_HEAD: one entry a stage; defaults are detectron2's."""

    bbox_reg_weights: tuple[tuple[PositiveFloat, ...], ...] = (
        (10.0, 10.0, 5.0, 5.0),
        (20.0, 20.0, 10.0, 10.0),
        (30.0, 30.0, 15.0, 15.0),
    )
    ious: tuple[Fraction, ...] = (0.5, 0.6, 0.7)

    def __post_init__(self) -> None:
        if len(self.bbox_reg_weights) != len(self.ious) or not self.ious:
            raise ConfigError(
                f"BBOX_REG_WEIGHTS and IOUS must have one entry a stage, have "
                f"{len(self.bbox_reg_weights)} and {len(self.ious)}"
            )


@dataclass(frozen=True, kw_only=True)
class CascadeRCNNConfig(MaskRCNNConfig):
    """MODEL, as Cascade R-CNN reads it."""

    roi_box_cascade_head: CascadeHeadConfig = field(default_factory=CascadeHeadConfig)

    def build_roi_heads(self, backbone: Backbone) -> CascadeROIHeads:
        """The second and further stages on the backbone's maps."""
        self._check()
        strides, channels = pyramid(backbone, self.roi_heads.in_features, "ROI_HEADS.IN_FEATURES")
        num_classes, nominal = self.roi_heads.num_classes, self.roi_heads.nominal_foreground
        stages = self.roi_box_cascade_head
        mask, keypoint = self.roi_mask_head, self.roi_keypoint_head
        box_heads = [self.roi_box_head.build(channels) for _ in stages.ious]
        return CascadeROIHeads(
            self.roi_heads.in_features,
            sampler=self.roi_heads.build_sampler(),
            matchers=[Matcher([iou], [0, 1]) for iou in stages.ious[1:]],
            box_pooler=self.roi_box_head.build_pooler(strides),
            box_heads=box_heads,
            box_predictors=[
                self.build_box_predictor(head.out_features, Box2BoxTransform(weights))
                for head, weights in zip(box_heads, stages.bbox_reg_weights, strict=True)
            ],
            mask_pooler=mask.build_pooler(strides) if self.mask_on else None,
            mask_head=mask.build(channels, num_classes) if self.mask_on else None,
            keypoint_pooler=keypoint.build_pooler(strides) if self.keypoint_on else None,
            keypoint_head=keypoint.build(channels, nominal) if self.keypoint_on else None,
        )

    def _check(self) -> None:
        if not self.roi_box_head.cls_agnostic_bbox_reg:
            raise ConfigError(
                "CascadeROIHeads refine one box for all classes: set "
                "ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG to True"
            )
        if self.roi_box_head.train_on_pred_boxes:
            raise ConfigError("ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES does not work with CascadeROIHeads")
        first = self.roi_box_cascade_head.ious[0]
        if self.roi_heads.iou_thresholds != (first,):
            raise ConfigError(
                f"ROI_HEADS.IOU_THRESHOLDS must be [{first}], the first of "
                f"ROI_BOX_CASCADE_HEAD.IOUS, is {list(self.roi_heads.iou_thresholds)}"
            )


class CascadeROIHeads(StandardROIHeads):
    """Stages of box heads: each refines the boxes of the one before, for a stricter overlap.

    Masks and keypoints train on the sampled proposals, and are predicted for the final boxes.

    Args:
        in_features: names of the pooled feature maps.
        sampler: chooses the training proposals of the first stage.
        matchers: of the stages after it.
        box_pooler: shared by the stages.
        box_heads: one a stage.
        box_predictors: one a stage.
        others: `mask_pooler`, `mask_head`, `keypoint_pooler`, `keypoint_head` as in the base class.
    """

    def __init__(
        self,
        in_features: Sequence[str],
        *,
        sampler: ProposalSampler,
        matchers: Sequence[Matcher],
        box_pooler: ROIPooler,
        box_heads: Sequence[FastRCNNConvFCHead],
        box_predictors: Sequence[FastRCNNOutputLayers],
        mask_pooler: ROIPooler | None = None,
        mask_head: MaskRCNNConvUpsampleHead | None = None,
        keypoint_pooler: ROIPooler | None = None,
        keypoint_head: KRCNNConvDeconvUpsampleHead | None = None,
    ) -> None:
        super().__init__(
            in_features,
            sampler=sampler,
            box_pooler=box_pooler,
            box_head=cast(Any, nn.ModuleList(box_heads)),  # official names: box_head.0.fc1
            box_predictor=cast(Any, nn.ModuleList(box_predictors)),
            mask_pooler=mask_pooler,
            mask_head=mask_head,
            keypoint_pooler=keypoint_pooler,
            keypoint_head=keypoint_head,
        )
        self.matchers = list(matchers)

    @property
    def stages(self) -> list[tuple[FastRCNNConvFCHead, FastRCNNOutputLayers]]:
        """Head and predictor of each stage."""
        return list(zip(cast(Any, self.box_head), cast(Any, self.box_predictor), strict=True))

    def _box_losses(
        self,
        maps: Sequence[Tensor],
        sampled: Sequence[Proposals],
        targets: Sequence[Targets],
    ) -> Losses:
        """`loss_cls_stage{k}` and `loss_box_reg_stage{k}` of every stage."""
        losses, proposals = Losses(), list(sampled)
        for k, (head, predictor) in enumerate(self.stages):
            if k:
                proposals, metrics = self._relabel(proposals, targets, self.matchers[k - 1])
                losses |= Losses({}, {f"stage{k}/{name}": x for name, x in metrics.items()})
            logits, deltas = self._run_stage(maps, proposals, head, predictor)
            stage = predictor.losses(logits, deltas, proposals)
            losses |= Losses(
                {f"{name}_stage{k}": term for name, term in stage.items()},
                {f"stage{k}/{name}": x for name, x in stage.metrics.items()},
                {f"{name}_stage{k}": count for name, count in stage.counts.items()},
            )
            proposals = self._refine(deltas, proposals, predictor)
            proposals = [p[p.proposal_boxes.nonempty()] for p in proposals]
        return losses

    def _predict_boxes(
        self, maps: Sequence[Tensor], proposals: Sequence[Proposals]
    ) -> list[Detections]:
        """Scores are the mean over the stages, boxes those of the last one."""
        *first, (last_head, last) = self.stages
        scores, refined = [], list(proposals)
        for head, predictor in first:
            logits, deltas = self._run_stage(maps, refined, head, predictor)
            scores.append(predictor.predict_scores(logits))
            refined = self._refine(deltas, refined, predictor)
        logits, deltas = self._run_stage(maps, refined, last_head, last)
        scores.append(last.predict_scores(logits))
        mean = torch.stack(scores).mean(dim=0).split([len(p) for p in proposals])
        boxes = last.predict_boxes(deltas, refined)
        return [
            last.select(image_boxes, image_scores, p.image_size)
            for image_boxes, image_scores, p in zip(boxes, mean, proposals, strict=True)
        ]

    def _run_stage(
        self,
        maps: Sequence[Tensor],
        proposals: Sequence[Proposals],
        head: FastRCNNConvFCHead,
        predictor: FastRCNNOutputLayers,
    ) -> tuple[Tensor, Tensor]:
        """Logits (R, K + 1) and deltas (R, 4)."""
        pooled = self.box_pooler(maps, [p.proposal_boxes.tensor for p in proposals])
        # All stages pull at the same features: together as hard as one head would.
        return predictor(head(ScaleGradient.apply(pooled, 1 / len(self.stages))))

    @torch.no_grad()
    def _refine(
        self, deltas: Tensor, proposals: Sequence[Proposals], predictor: FastRCNNOutputLayers
    ) -> list[Proposals]:
        """The proposals moved by a stage's deltas and clipped; empty ones stay."""
        moved = []
        for p, boxes in zip(proposals, predictor.predict_boxes(deltas, proposals), strict=True):
            refined = Boxes(boxes)
            refined.clip(p.image_size)
            moved.append(Proposals(p.image_size, proposal_boxes=refined))
        return moved

    @torch.no_grad()
    def _relabel(
        self, proposals: Sequence[Proposals], targets: Sequence[Targets], matcher: Matcher
    ) -> tuple[list[Proposals], dict[str, float]]:
        """All proposals with `gt_classes`, and `gt_boxes` where the image has objects."""
        labelled, num_fg = [], 0
        for p, target in zip(proposals, targets, strict=True):
            gt_boxes = target.gt_boxes.tensor
            matches, labels = matcher.match(gt_boxes, p.proposal_boxes.tensor, box_iou)
            one = Proposals(p.image_size, proposal_boxes=p.proposal_boxes)
            one.gt_classes = torch.full_like(matches, self.sampler.num_classes)
            if len(gt_boxes):
                background = one.gt_classes
                one.gt_classes = torch.where(labels == 1, target.gt_classes[matches], background)
                one.gt_boxes = Boxes(gt_boxes[matches])
            labelled.append(one)
            num_fg += int((labels == 1).sum())
        total = sum(len(p) for p in labelled)
        return labelled, {
            "roi_head/num_fg_samples": num_fg / len(labelled),
            "roi_head/num_bg_samples": (total - num_fg) / len(labelled),
        }


class ScaleGradient(torch.autograd.Function):
    """Passes values on, and gradients multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        """`x`."""
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """The gradient of `x`, scaled."""
        return grads[0] * ctx.scale, None
