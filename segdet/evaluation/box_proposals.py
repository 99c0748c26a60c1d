"""How many objects a model's proposals cover: average recall."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from segdet.errors import DataError
from segdet.evaluation.coco_records import GroundTruth
from segdet.evaluation.coco_report import table
from segdet.structures import BoxMode, Instances, box_iou
from segdet.utils.writing import write_atomically

logger = logging.getLogger(__name__)

LIMITS = (100, 1000)  # the best proposals of an image that count
_AREAS = {"": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}
_THRESHOLDS = np.arange(0.5, 0.95 + 1e-5, 0.05)


@dataclass(frozen=True, kw_only=True)
class ImageProposals:
    """The R proposals of one image."""

    image_id: Hashable
    boxes: np.ndarray  # (R, 4) float32 XYXY
    logits: np.ndarray  # (R,) float32


def compact_proposals(image_id: Hashable, proposals: Instances) -> ImageProposals:
    """The proposals of an output, on the CPU.

    Raises:
        DataError: a number is NaN or infinite.
    """
    boxes = proposals.proposal_boxes.tensor.detach().cpu().float().numpy()
    logits = proposals.objectness_logits.detach().cpu().float().numpy()
    if not (np.isfinite(boxes).all() and np.isfinite(logits).all()):
        raise DataError(f"image {image_id}: the model's proposals are NaN or infinite")
    return ImageProposals(image_id=image_id, boxes=boxes, logits=logits)


def write_proposals(file: Path, proposals: list[ImageProposals]) -> None:
    """Write detectron2's file of proposals, which DATASETS.PROPOSAL_FILES_* take."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "boxes": [one.boxes for one in proposals],
        "objectness_logits": [one.logits for one in proposals],
        "ids": [one.image_id for one in proposals],
        "bbox_mode": BoxMode.XYXY_ABS.value,
    }
    write_atomically(file, lambda stream: pickle.dump(content, stream))


def average_recalls(proposals: list[ImageProposals], truth: GroundTruth) -> dict[str, float]:
    """Recall of the objects by the best proposals, mean over IoU 0.50:0.05:0.95, in percent.

    Each proposal covers one object at most: the pair of the highest IoU goes first. Crowds do not
    count; as in detectron2, images without proposals do not either.

    Args:
        proposals: of images of the data set.
        truth: its annotations.

    Returns:
        `AR@100`, `ARs@100` (small), `ARm@100`, `ARl@100`, and the same at 1000; NaN where there is
        no object.

    Raises:
        DataError: an image that the data set does not have.
    """
    objects = ~truth.crowd
    rows = np.split(np.arange(len(truth)), np.searchsorted(truth.image, range(1, _count(truth))))
    overlaps = {key: [np.zeros(0)] for key in _keys()}
    for one in proposals:
        if one.image_id not in truth.image_index:
            raise DataError(f"{truth.source} has no image of the predicted image_id {one.image_id}")
        mine = rows[truth.image_index[one.image_id]]
        mine = mine[objects[mine]]
        if len(mine) == 0 or len(one.boxes) == 0:
            continue
        best = np.argsort(-one.logits, kind="stable")[: max(LIMITS)]
        corners = truth.boxes[mine] + np.hstack([np.zeros((len(mine), 2)), truth.boxes[mine, :2]])
        iou = _iou(one.boxes[best], corners)
        for suffix, limit in overlaps:
            low, high = _AREAS[suffix]
            there = (truth.areas[mine] >= low) & (truth.areas[mine] <= high)
            overlaps[suffix, limit].append(_greedy(iou[:limit, there]))
    results = {}
    for (suffix, limit), parts in overlaps.items():
        values = np.concatenate(parts)
        recall = (values[:, None] >= _THRESHOLDS).mean() if len(values) else float("nan")
        results[f"AR{suffix}@{limit}"] = float(recall) * 100
    logger.info("Box proposals:\n%s", table(results))
    return results


def _keys() -> list[tuple[str, int]]:
    return [(suffix, limit) for limit in LIMITS for suffix in _AREAS]


def _count(truth: GroundTruth) -> int:
    return max(len(truth.image_ids), 1)


def _iou(boxes: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """(R, N) of float32 XYXY boxes, as the model's own."""
    return box_iou(torch.from_numpy(boxes), torch.from_numpy(objects.astype(np.float32))).numpy()


def _greedy(iou: np.ndarray) -> np.ndarray:
    """(N,) IoU of each object with its proposal, from (R, N); 0 for objects without one."""
    iou = iou.copy()
    found = np.zeros(iou.shape[1])
    for i in range(min(iou.shape)):
        proposal, one = np.unravel_index(iou.argmax(), iou.shape)
        found[i] = iou[proposal, one]
        iou[proposal], iou[:, one] = -1, -1
    return found
