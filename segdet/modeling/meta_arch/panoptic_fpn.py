"""Panoptic FPN (Kirillov et al. 2019, arXiv:1901.02446): Mask R-CNN with a semantic head.

Things come from the one, stuff from the other; `combine_semantic_and_instance_outputs` makes a
single map of both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from segdet.config.ranges import Fraction, NonNegativeFloat, NonNegativeInt
from segdet.errors import ConfigError
from segdet.layers import Losses
from segdet.modeling.backbones import Backbone
from segdet.modeling.meta_arch.cascade_rcnn import CascadeRCNNConfig
from segdet.modeling.meta_arch.mask_rcnn import MaskRCNNConfig
from segdet.modeling.postprocessing import (
    detector_postprocess,
    requested_size,
    sem_seg_postprocess,
)
from segdet.modeling.proposals import ProposalGenerator
from segdet.modeling.roi_heads import ROIHeads
from segdet.modeling.sem_seg_head import SemSegHead, SemSegHeadConfig
from segdet.modeling.system import Needs, System
from segdet.structures import Detections, ImageList, Instances, Targets

Panoptic = tuple[Tensor, list[dict[str, Any]]]  # as `combine_semantic_and_instance_outputs` gives


@dataclass(frozen=True, kw_only=True)
class CombineConfig:
    """MODEL.PANOPTIC_FPN.COMBINE; defaults are detectron2's."""

    enabled: bool = True
    overlap_thresh: Fraction = 0.5
    stuff_area_limit: NonNegativeInt = 4096  # pixels of the result
    instances_confidence_thresh: Fraction = 0.5

    def build(self) -> Callable[[Detections, Tensor], Panoptic] | None:
        """The merge with these settings; None where it is switched off."""
        if not self.enabled:
            return None
        return functools.partial(
            combine_semantic_and_instance_outputs,
            overlap_threshold=self.overlap_thresh,
            stuff_area_thresh=self.stuff_area_limit,
            instances_score_thresh=self.instances_confidence_thresh,
        )


@dataclass(frozen=True, kw_only=True)
class PanopticConfig:
    """MODEL.PANOPTIC_FPN; defaults are detectron2's."""

    instance_loss_weight: NonNegativeFloat = 1.0  # of the ROI heads' losses, not the RPN's
    combine: CombineConfig = field(default_factory=CombineConfig)


@dataclass(frozen=True, kw_only=True)
class PanopticFPNConfig(MaskRCNNConfig):
    """MODEL, as Panoptic FPN reads it.

    A system with other proposals or heads becomes panoptic by a section that inherits from its
    own section first, then from this one.
    """

    needs: ClassVar[Needs] = Needs(
        labels={
            "annotations": "MODEL.ROI_HEADS.NUM_CLASSES",
            "sem_seg": "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
        }
    )

    sem_seg_head: SemSegHeadConfig = field(default_factory=SemSegHeadConfig)
    panoptic_fpn: PanopticConfig = field(default_factory=PanopticConfig)

    def build(self) -> PanopticFPN:
        """The model with random weights."""
        self._check_panoptic()
        backbone = self.build_backbone()
        return PanopticFPN(
            backbone,
            proposal_generator=self.build_proposal_generator(backbone),
            roi_heads=self.build_roi_heads(backbone),
            sem_seg_head=self.sem_seg_head.build(backbone.output_shape()),
            combine=self.panoptic_fpn.combine.build(),
            instance_loss_weight=self.panoptic_fpn.instance_loss_weight,
            pixel_mean=self.pixel_mean,
            pixel_std=self.pixel_std,
        )

    def _check_panoptic(self) -> None:
        if self.panoptic_fpn.combine.enabled and not self.mask_on:
            raise ConfigError(
                "MODEL.PANOPTIC_FPN.COMBINE.ENABLED needs masks: set MODEL.MASK_ON to True"
            )
        if self.load_proposals:
            raise ConfigError("MODEL.LOAD_PROPOSALS does not work with Panoptic FPN")


@dataclass(frozen=True, kw_only=True)
class CascadePanopticFPNConfig(CascadeRCNNConfig, PanopticFPNConfig):
    """MODEL, as Panoptic FPN with Cascade R-CNN's heads reads it."""


class PanopticTargets(NamedTuple):
    """The ground truth of a batch."""

    instances: list[Targets]
    sem_seg: Tensor  # (B, H, W) int64 of the padded images


class PanopticParts(NamedTuple):
    """What was found in an image, in network input pixels, before the merge."""

    instances: Detections
    sem_seg: Tensor  # (K, H, W) logits without the padding


class PanopticFPN(System):
    """Instances and semantic logits from the same feature maps, and a map of both.

    Args:
        backbone: images to feature maps.
        proposal_generator: feature maps to boxes that may hold an object.
        roi_heads: those boxes to detections.
        sem_seg_head: feature maps to logits of every pixel.
        combine: detections with masks (N, H, W) and labels (H, W) to a panoptic map and its
            segments; None for results without one.
        instance_loss_weight: factor of the ROI heads' losses.
        pixel_mean: one value a channel, subtracted from the images.
        pixel_std: one value a channel, divides them after that.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        proposal_generator: ProposalGenerator,
        roi_heads: ROIHeads,
        sem_seg_head: SemSegHead,
        combine: Callable[[Detections, Tensor], Panoptic] | None,
        instance_loss_weight: float = 1.0,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__(backbone, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.sem_seg_head = sem_seg_head
        self.combine = combine
        self.instance_loss_weight = instance_loss_weight

    def read_targets(self, batched_inputs: list[dict]) -> PanopticTargets:
        """`instances` and `sem_seg` of the batch."""
        return PanopticTargets(
            self.read_instances(batched_inputs),
            self.read_sem_seg(batched_inputs, self.sem_seg_head),
        )

    def losses(self, images: ImageList, targets: PanopticTargets) -> Losses:
        """The losses of the semantic head, the RPN and the ROI heads."""
        features = self.backbone(images.tensor)  # level name -> (B, C, H / stride, W / stride)
        losses = self.sem_seg_head(features, targets.sem_seg)
        instances = targets.instances
        proposals, rpn_losses = self.proposal_generator.losses(images, features, instances)
        roi_losses = self.roi_heads.losses(features, proposals, instances)
        weighted = {name: loss * self.instance_loss_weight for name, loss in roi_losses.items()}
        return losses | rpn_losses | Losses(weighted, roi_losses.metrics, roi_losses.counts)

    def predict(self, images: ImageList) -> list[PanopticParts]:
        """Per image, detections with (N, 1, M, M) mask probabilities, and semantic logits."""
        features = self.backbone(images.tensor)
        sem_seg = ImageList(self.sem_seg_head.predict(features), images.image_sizes)
        proposals = self.proposal_generator.predict(images, features)
        detections = self.roi_heads.predict(features, proposals)
        return [PanopticParts(one, sem_seg[i]) for i, one in enumerate(detections)]

    def postprocess(
        self, found: Sequence[PanopticParts], batched_inputs: list[dict]
    ) -> list[dict[str, Any]]:
        """`sem_seg`, `instances` and, if they are combined, `panoptic_seg`, at the asked size."""
        return panoptic_results(found, batched_inputs, self.combine)


def panoptic_results(
    found: Sequence[PanopticParts],
    batched_inputs: Sequence[dict],
    combine: Callable[[Detections, Tensor], Panoptic] | None,
) -> list[dict[str, Any]]:
    """Per image `sem_seg`, `instances` and, if they are combined, `panoptic_seg`.

    Args:
        found: in network input pixels.
        batched_inputs: of the model; they say which size is asked for.
        combine: as in `PanopticFPN`.
    """
    results = []
    for (instances, logits), x in zip(found, batched_inputs, strict=True):
        size = requested_size(x, instances.image_size)
        sem_seg = sem_seg_postprocess(logits, instances.image_size, *size)
        result: dict[str, Any] = {"sem_seg": sem_seg}
        result["instances"] = detections = detector_postprocess(instances, *size)
        if combine is not None:
            result["panoptic_seg"] = combine(detections, sem_seg.argmax(dim=0))
        results.append(result)
    return results


def combine_semantic_and_instance_outputs(
    instance_results: Instances,
    semantic_results: Tensor,
    overlap_threshold: float,
    stuff_area_thresh: float,
    instances_score_thresh: float,
) -> Panoptic:
    """One map of instances and stuff in which no two segments overlap.

    Instances are written first, best first, each to the pixels that are still free; of equal
    scores the earlier one (detectron2 leaves that open). Then stuff fills what is left. Pixels
    that nothing was written to are void.

    Source: Panoptic FPN (arXiv:1901.02446), section 3.1, "Panoptic inference", whose numbers and
    order are detectron2's.

    Args:
        instance_results: with `scores`, `pred_classes` and `pred_masks` (N, H, W) bool.
        semantic_results: (H, W) integers; class 0 stands for all things and is never written.
        overlap_threshold: an instance more of whose mask than this share is taken is left out.
        stuff_area_thresh: stuff with fewer free pixels is left out.
        instances_score_thresh: instances below are left out.

    Returns:
        (H, W) int32 segment ids from 1, in the order in which they were written, 0 for void; and
        per segment a dict of `id`, `isthing` and `category_id` (contiguous, of things or of stuff);
        for things with `score` and `instance_id`, the row of `instance_results`; for stuff with
        `area` in pixels.
    """
    panoptic_seg = torch.zeros_like(semantic_results, dtype=torch.int32)
    segments = _write_things(
        panoptic_seg, instance_results, overlap_threshold, instances_score_thresh
    )
    segments += _write_stuff(panoptic_seg, semantic_results, stuff_area_thresh, len(segments) + 1)
    return panoptic_seg, segments


def _write_things(
    panoptic_seg: Tensor, instances: Instances, overlap_threshold: float, score_thresh: float
) -> list[dict[str, Any]]:
    scores, classes = instances.scores.tolist(), instances.pred_classes.tolist()
    masks = instances.pred_masks.bool()
    order = torch.argsort(instances.scores, descending=True, stable=True)
    segments: list[dict[str, Any]] = []
    for row in order.tolist():
        if scores[row] < score_thresh:
            break
        free = masks[row] & (panoptic_seg == 0)
        area, num_free = int(masks[row].sum()), int(free.sum())
        if area == 0 or (area - num_free) / area > overlap_threshold:
            continue
        segment = {"id": len(segments) + 1, "isthing": True, "score": scores[row]}
        segments.append({**segment, "category_id": classes[row], "instance_id": row})
        panoptic_seg[free] = segment["id"]
    return segments


def _write_stuff(
    panoptic_seg: Tensor, labels: Tensor, area_thresh: float, first_id: int
) -> list[dict[str, Any]]:
    labels = torch.where(panoptic_seg == 0, labels, 0)
    segments: list[dict[str, Any]] = []
    for category, area in zip(
        *(counted.tolist() for counted in labels.unique(return_counts=True)), strict=True
    ):
        if category == 0 or area < area_thresh:
            continue
        segment = {"id": first_id + len(segments), "isthing": False, "category_id": category}
        segments.append({**segment, "area": area})
        panoptic_seg[labels == category] = segment["id"]
    return segments
