"""COCO's average precision: one interface over two evaluators that give equal numbers.

hotcoco is the fast default; pycocotools, the original, is the referee and the fallback. Both get
the same columns with ids counted from 1, so neither meets an annotation id of 0, which
pycocotools takes for "not matched" (two perfect detections of ids 0 and 1: AP 0.25, not 1).
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import pycocotools.mask as mask_api

from segdet.evaluation.coco_records import GroundTruth, Predictions

logger = logging.getLogger(__name__)

MAX_DETECTIONS = 100  # per image and category, COCO's number
_AREAS = ("", "s", "m", "l")  # all, small < 32^2 <= medium < 96^2 <= large


@dataclass(frozen=True, kw_only=True)
class COCOMetrics:
    """What COCO reports, in [0, 1]; -1 where there is no ground truth to find."""

    stats: dict[str, float]  # AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl
    category_ap: np.ndarray  # (K,) float64, in the order of GroundTruth.category_ids


def coco_metrics(
    ground_truth: GroundTruth,
    predictions: Predictions,
    kind: str,
    *,
    max_detections: int = MAX_DETECTIONS,
    backend: str | None = None,
) -> COCOMetrics:
    """Average precision and recall as COCO defines them.

    Source: cocoapi's COCOeval; IoU 0.50:0.05:0.95, 101 recall points.

    Args:
        ground_truth: the annotations.
        predictions: with `boxes` for "bbox", with `masks` for "segm".
        kind: "bbox" or "segm".
        max_detections: the best per image and category that count ("AR100" is at this number).
        backend: a key of `BACKENDS`; None takes hotcoco, or pycocotools where it is missing.

    Returns:
        The 12 numbers and each category's AP.
    """
    if kind not in ("bbox", "segm"):
        raise ValueError(f"kind must be bbox or segm, is {kind!r}")
    if (predictions.masks if kind == "segm" else predictions.boxes) is None:
        raise ValueError(f"the predictions have nothing to evaluate for {kind}")
    if kind == "segm":
        ground_truth = _with_a_mask_for_all(ground_truth)
    precision, recall = BACKENDS[backend or default_backend()](
        ground_truth, predictions, kind, [1, min(10, max_detections), max_detections]
    )
    return COCOMetrics(
        stats=_summarize(precision, recall),
        category_ap=np.array([_mean(precision[:, :, k, 0, -1]) for k in range(recall.shape[1])]),
    )


def default_backend() -> str:
    """The name of the fastest evaluator that is installed."""
    return "hotcoco" if find_spec("hotcoco") else "pycocotools"


def _summarize(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    """From (T, 101, K, areas, M) and (T, K, areas, M); T IoUs, M numbers of detections."""
    stats = {"AP": _mean(precision[:, :, :, 0, -1])}
    stats["AP50"] = _mean(precision[0, :, :, 0, -1])
    stats["AP75"] = _mean(precision[5, :, :, 0, -1])
    for a, name in enumerate(_AREAS[1:], start=1):
        stats[f"AP{name}"] = _mean(precision[:, :, :, a, -1])
    for m, name in enumerate(("1", "10", "100")):
        stats[f"AR{name}"] = _mean(recall[:, :, 0, m])
    for a, name in enumerate(_AREAS[1:], start=1):
        stats[f"AR{name}"] = _mean(recall[:, :, a, -1])
    return stats


def _mean(values: np.ndarray) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0


def _with_a_mask_for_all(ground_truth: GroundTruth) -> GroundTruth:
    """Turn objects known by their box alone into regions where nothing counts.

    Whether a predicted mask there is right cannot be said, so it is neither hit nor false alarm.
    """
    lacking = np.array([mask is None for mask in ground_truth.masks], dtype=bool)
    if not lacking.any():
        return ground_truth
    logger.warning(
        "%s: %d of %d annotations have no mask; their boxes are ignored regions for segm",
        ground_truth.source,
        lacking.sum(),
        len(lacking),
    )
    masks = list(ground_truth.masks)
    for i in np.flatnonzero(lacking):
        x, y, w, h = ground_truth.boxes[i].tolist()
        masks[i] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return replace(ground_truth, masks=masks, crowd=ground_truth.crowd | lacking)


def _hotcoco(
    truth: GroundTruth, found: Predictions, kind: str, max_detections: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    import hotcoco

    images, categories = _lists(truth)
    segm = kind == "segm"
    boxes: Any = np.zeros((len(found), 4)) if segm else found.boxes
    masks: Any = found.masks if segm else None
    coco_gt = hotcoco.COCO.from_arrays(
        images,
        categories,
        truth.image + 1,
        truth.category + 1,
        truth.boxes,
        ids=np.arange(1, len(truth) + 1),
        area=truth.areas,
        iscrowd=truth.crowd.astype(np.int64),
        segmentation=truth.masks if segm else None,
    )
    rows = np.column_stack([found.image + 1, boxes, found.scores, found.category + 1])
    coco_dt = coco_gt.load_res(rows, segmentation=masks)
    if segm and len(found):
        coco_dt.update_anns(ids=np.arange(1, len(found) + 1), area=hotcoco.mask.area(masks))
    evaluation = hotcoco.COCOeval(coco_gt, coco_dt, kind)
    evaluation.params.maxDets = max_detections
    evaluation.evaluate()
    evaluation.accumulate()
    curves: Any = evaluation.eval
    return curves["precision"], curves["recall"]


def _pycocotools(
    truth: GroundTruth, found: Predictions, kind: str, max_detections: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images, categories = _lists(truth)
    segm = kind == "segm"
    boxes: Any = np.zeros((len(found), 4)) if segm else found.boxes
    masks: Any = found.masks if segm else [None] * len(found)
    areas = [float(mask_api.area(mask)) for mask in masks] if segm else boxes[:, 2] * boxes[:, 3]

    def dataset(columns: dict[str, list]) -> Any:
        keys, records = list(columns), zip(*columns.values(), strict=True)
        annotations = [dict(zip(keys, r, strict=True), id=i + 1) for i, r in enumerate(records)]
        coco: Any = COCO()
        coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        coco_gt = dataset(
            {
                "image_id": (truth.image + 1).tolist(),
                "category_id": (truth.category + 1).tolist(),
                "bbox": truth.boxes.tolist(),
                "area": truth.areas.tolist(),
                "iscrowd": truth.crowd.astype(int).tolist(),
                "segmentation": truth.masks,
            }
        )
        coco_dt = dataset(
            {
                "image_id": (found.image + 1).tolist(),
                "category_id": (found.category + 1).tolist(),
                "bbox": boxes.tolist(),
                "area": list(areas),
                "score": found.scores.tolist(),
                "iscrowd": [0] * len(found),
                "segmentation": masks,
            }
        )
        evaluation: Any = COCOeval(coco_gt, coco_dt, kind)  # pyright: ignore[reportArgumentType]
        evaluation.params.maxDets = max_detections
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def _lists(truth: GroundTruth) -> tuple[list[dict], list[dict]]:
    """The files' "images" and "categories", with ids from 1."""
    sizes = truth.image_sizes.tolist()
    images = [{"id": i + 1, "height": h, "width": w} for i, (h, w) in enumerate(sizes)]
    categories = [{"id": i + 1, "name": str(i + 1)} for i in range(len(truth.category_ids))]
    return images, categories


Curves = Callable[[GroundTruth, Predictions, str, list[int]], tuple[np.ndarray, np.ndarray]]

# Each gives precision (T, 101, K, areas, M) and recall (T, K, areas, M), -1 where undefined.
BACKENDS: dict[str, Curves] = {"hotcoco": _hotcoco, "pycocotools": _pycocotools}
