"""Prediction from several views of each image: other sizes, and mirrored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from segdet.config.node import CfgNode
from segdet.data import transforms as T
from segdet.data.image_io import file_name_of, read_image
from segdet.data.test_time_augmentation import DatasetMapperTTA
from segdet.errors import ConfigError
from segdet.layers import batched_nms
from segdet.modeling.box_kind import UPRIGHT
from segdet.modeling.meta_arch.mask_rcnn import MaskRCNN
from segdet.modeling.postprocessing import detector_postprocess
from segdet.modeling.roi_heads import ROIHeads
from segdet.structures import Boxes, Detections

__all__ = ["DatasetMapperTTA", "GeneralizedRCNNWithTTA"]

_LOWEST_SCORE = 1e-8  # of merged boxes; each view's own threshold was met before


class GeneralizedRCNNWithTTA(nn.Module):
    """An R-CNN that looks at several views of an image.

    The boxes of all views are brought back to the image and thinned out together; then the mask
    head looks at the boxes that remain in each view, and its answers are averaged.

    Source: detectron2's TTA, whose views, order and numbers these are.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        tta_mapper: Callable[[dict[str, Any]], list[dict[str, Any]]] | None = None,
        batch_size: int = 3,
    ) -> None:
        """Wrap a model; its weights are shared.

        Args:
            cfg: the config that it was built from.
            model: an R-CNN; DistributedDataParallel around it is taken off.
            tta_mapper: image -> views; None is a `DatasetMapperTTA` of TEST.AUG.
            batch_size: views that the model sees at a time.

        Raises:
            ConfigError: the model is another one; it has keypoints, rotated boxes or proposals
                from files; or its ROI heads are registered ones that have detectron2's call alone.
        """
        super().__init__()
        model = model.module if isinstance(model, DistributedDataParallel) else model
        if not isinstance(model, MaskRCNN):
            raise ConfigError(
                f"test-time augmentation is for R-CNNs, the model is a {type(model).__name__}; "
                "set TEST.AUG.ENABLED to False"
            )
        for key in ("KEYPOINT_ON", "LOAD_PROPOSALS"):
            if cfg.MODEL[key]:
                raise ConfigError(f"test-time augmentation does not work with MODEL.{key}")
        _check_heads(model.roi_heads)
        self.model = model
        self.tta_mapper = tta_mapper or DatasetMapperTTA(cfg)
        self.batch_size = batch_size
        self.image_format = cfg.INPUT.FORMAT
        self.mask_on = bool(cfg.MODEL.MASK_ON)
        self.nms_thresh = cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST
        self.detections_per_image = cfg.TEST.DETECTIONS_PER_IMAGE

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Detections]]:
        """Results of each image, in pixels of the original.

        Args:
            batched_inputs: per image `image` (C, H, W) and the original's `height` and `width`;
                without an `image`, `file_name` is read.
        """
        return [{"instances": self._predict(self._with_image(x))} for x in batched_inputs]

    def _with_image(self, record: dict[str, Any]) -> dict[str, Any]:
        record = dict(record)
        if "image" not in record:
            image = read_image(file_name_of(record), self.image_format)
            record["image"] = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        height, width = record["image"].shape[1:]
        return {"height": height, "width": width, **record}

    def _predict(self, record: dict[str, Any]) -> Detections:
        views = self.tta_mapper(record)
        moves = [view.pop("transforms") for view in views]
        size = record["height"], record["width"]
        with _without_masks(self.model):
            found = [one for part in self._batches(views) for one in self._find(part)]
        merged = self._merge(
            [self._moved_back(*pair) for pair in zip(found, moves, strict=True)], size
        )
        if self.mask_on:
            self._add_masks(views, moves, merged)
        return detector_postprocess(merged, *size)

    def _batches(self, views: Sequence[Any]) -> Iterator[Sequence[Any]]:
        for start in range(0, len(views), self.batch_size):
            yield views[start : start + self.batch_size]

    def _find(self, views: Sequence[dict[str, Any]]) -> list[Detections]:
        """Per view, detections in its own pixels."""
        return list(self.model.find(self.model.preprocess_image(list(views))))

    @staticmethod
    def _moved_back(found: Detections, moves: T.TransformList) -> Detections:
        """Detections of a view with their boxes in pixels of the original."""
        boxes = _transformed(found.pred_boxes.tensor, moves.inverse())
        return Detections(
            (0, 0), pred_boxes=Boxes(boxes), scores=found.scores, pred_classes=found.pred_classes
        )

    def _merge(self, found: list[Detections], size: tuple[int, int]) -> Detections:
        """The best of all views after NMS, in pixels of an image of that (height, width)."""
        all_found = Detections.cat(found)
        boxes, scores, classes = (
            all_found.pred_boxes.tensor,
            all_found.scores,
            all_found.pred_classes,
        )
        usable = boxes.isfinite().all(1) & scores.isfinite() & (scores > _LOWEST_SCORE)
        clipped = Boxes(boxes[usable])
        clipped.clip(size)
        scores, classes = scores[usable], classes[usable]
        keep = batched_nms(clipped.tensor, scores, classes, self.nms_thresh)
        keep = keep[: self.detections_per_image]
        return Detections(
            size, pred_boxes=clipped[keep], scores=scores[keep], pred_classes=classes[keep]
        )

    def _add_masks(
        self, views: list[dict[str, Any]], moves: list[T.TransformList], merged: Detections
    ) -> None:
        """Sets `pred_masks`, and `mask_scores` if the model gives such: means over the views."""
        masks: list[Tensor] = []  # of each view, (N, 1, M, M) probabilities
        scores: list[Tensor] = []
        for part in self._batches(list(zip(views, moves, strict=True))):
            images = self.model.preprocess_image([view for view, _ in part])
            there = [
                Detections(
                    tuple(view["image"].shape[1:]),
                    pred_boxes=Boxes(_transformed(merged.pred_boxes.tensor, move)),
                    scores=merged.scores,
                    pred_classes=merged.pred_classes,
                )
                for view, move in part
            ]
            features = self.model.backbone(images.tensor)
            masked = self.model.roi_heads.predict_masks(features, there)
            for (_, move), found in zip(part, masked, strict=True):
                masks.append(found.pred_masks.flip(3) if _is_mirrored(move) else found.pred_masks)
                if found.has("mask_scores"):
                    scores.append(found.mask_scores)
        merged.pred_masks = torch.stack(masks).mean(0)
        if scores:
            merged.mask_scores = torch.stack(scores).mean(0)


def _check_heads(heads: Any) -> None:
    """Refuse heads that cannot look at boxes of other views, or whose boxes cannot be moved."""
    if not isinstance(heads, ROIHeads):
        raise ConfigError(
            f"test-time augmentation asks ROI heads for the masks of given boxes, which "
            f"{type(heads).__name__} cannot say: derive it from segdet.modeling.StandardROIHeads, "
            "or set TEST.AUG.ENABLED to False"
        )
    sampler = getattr(heads, "sampler", None)
    if sampler is not None and sampler.kind is not UPRIGHT:
        raise ConfigError(
            "test-time augmentation does not move rotated boxes; set TEST.AUG.ENABLED to False"
        )


@contextmanager
def _without_masks(model: MaskRCNN) -> Iterator[None]:
    """The model without its mask head: what the head would say of single views is not asked for."""
    heads: Any = model.roi_heads
    head = heads.mask_head
    heads.mask_head = None
    try:
        yield
    finally:
        heads.mask_head = head


def _transformed(boxes: Tensor, moves: T.Transform) -> Tensor:
    """(N, 4) boxes, moved."""
    moved = moves.apply_box(boxes.cpu().numpy())
    return torch.as_tensor(moved, dtype=boxes.dtype, device=boxes.device)


def _is_mirrored(moves: T.TransformList) -> bool:
    return sum(isinstance(one, T.HFlipTransform) for one in moves.transforms) % 2 == 1
