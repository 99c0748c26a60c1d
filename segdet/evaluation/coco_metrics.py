"""COCO's average precision: one interface over two evaluators that give equal numbers.

hotcoco is the fast default; pycocotools, the original, is the referee and the fallback. Both get
the same columns with ids counted from 1, so neither meets an annotation id of 0, which
pycocotools takes for "not matched" (two perfect detections of ids 0 and 1: AP 0.25, not 1).
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, TypeVar

import numpy as np
import pycocotools.mask as mask_api

from segdet.errors import ConfigError, DataError
from segdet.evaluation.coco_records import GroundTruth, Predictions
from segdet.evaluation.rle import edge_of

logger = logging.getLogger(__name__)

MAX_DETECTIONS = 100  # per image and category, COCO's number
MAX_POSES = 20  # likewise for keypoints
_AREAS = ("", "s", "m", "l")  # all, small < 32^2 <= medium < 96^2 <= large
_POSE_AREAS = ("", "m", "l")  # small people have no keypoints in COCO

# Source: COCO's keypoint evaluation: how far annotators differ, in the order of its 17 points.
OKS_SIGMAS = (
    *(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072),
    *(0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
)


Truth = TypeVar("Truth", bound=GroundTruth)
Overlap = Callable[[list[dict], list[dict]], np.ndarray]  # records of D finds, G objects to (D, G)


@dataclass(frozen=True, kw_only=True)
class COCOMetrics:
    """What COCO reports, in [0, 1]; -1 where there is no ground truth to find."""

    # AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl; keypoints: AP AP50 AP75 APm APl AR
    stats: dict[str, float]
    category_ap: np.ndarray  # (K,) float64, in the order of GroundTruth.category_ids


def coco_metrics(
    ground_truth: GroundTruth,
    predictions: Predictions,
    kind: str,
    *,
    max_detections: int = MAX_DETECTIONS,
    sigmas: Sequence[float] = OKS_SIGMAS,
    backend: str | Curves | None = None,
) -> COCOMetrics:
    """Average precision and recall as COCO defines them.

    Source: cocoapi's COCOeval; IoU (of keypoints: OKS) 0.50:0.05:0.95, 101 recall points.

    Args:
        ground_truth: the annotations.
        predictions: with `boxes` for "bbox", `masks` for "segm" and "boundary", `keypoints` for
            "keypoints". Masks rank by `mask_scores`, if there are such.
        kind: one of these four; "boundary" is "segm" by `boundary_overlap`, always with
            pycocotools.
        max_detections: the best per image and category that count ("AR100" is at this number);
            of keypoints always 20.
        sigmas: of keypoints, one a point.
        backend: a key of `BACKENDS`, or a function like those; None takes hotcoco, or pycocotools
            where it is missing.

    Returns:
        The numbers and each category's AP.
    """
    given = {
        "bbox": predictions.boxes,
        "segm": predictions.masks,
        "keypoints": predictions.keypoints,
        "boundary": predictions.masks,
    }
    if kind not in given:
        raise ValueError(f"kind must be one of {', '.join(given)}, is {kind!r}")
    if given[kind] is None:
        raise ValueError(f"the predictions have nothing to evaluate for {kind}")
    limits = [1, min(10, max_detections), max_detections]
    if kind == "boundary":
        kind, backend = "segm", functools.partial(pycocotools_curves, overlap=boundary_overlap)
    if kind == "segm":
        ground_truth = with_a_mask_for_all(ground_truth)
        predictions = predictions.ranked_by_mask()
    if kind == "keypoints":
        _check_points(ground_truth, predictions, sigmas)
        limits = [MAX_POSES]
    curves = backend if callable(backend) else BACKENDS[backend or default_backend()]
    precision, recall = curves(ground_truth, predictions, kind, limits, sigmas)
    precision = np.ascontiguousarray(precision[..., -1])  # only recall is told of fewer finds
    return COCOMetrics(
        stats=_summarize(precision, recall)
        if kind != "keypoints"
        else _of_poses(precision, recall),
        category_ap=np.array([mean(precision[:, :, k, 0]) for k in range(recall.shape[1])]),
    )


def _check_points(truth: GroundTruth, found: Predictions, sigmas: Sequence[float]) -> None:
    annotated = truth.keypoints.shape[1]
    if annotated == 0:
        raise DataError(f"{truth.source}: no object has keypoints: nothing to evaluate them by")
    predicted = annotated if found.keypoints is None else found.keypoints.shape[1]
    if len(found) and predicted != annotated:
        raise DataError(
            f"the model predicts {predicted} keypoints, the objects of {truth.source} have "
            f"{annotated}; MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS must agree with it"
        )
    check_sigmas(truth, sigmas)


def check_sigmas(truth: GroundTruth, sigmas: Sequence[float]) -> None:
    """Refuse sigmas that are not one a keypoint.

    Raises:
        ConfigError: they are not.
    """
    annotated = truth.keypoints.shape[1]
    if len(sigmas) != annotated:
        raise ConfigError(
            f"the objects of {truth.source} have {annotated} keypoints, there are {len(sigmas)} "
            "sigmas; set TEST.KEYPOINT_OKS_SIGMAS (or kpt_oks_sigmas), one number a keypoint"
        )


def default_backend() -> str:
    """The name of the fastest evaluator that is installed."""
    return "hotcoco" if find_spec("hotcoco") else "pycocotools"


def _summarize(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    """From (T, 101, K, areas) and (T, K, areas, M); T IoUs, M numbers of detections."""
    stats = {"AP": mean(precision[:, :, :, 0])}
    stats["AP50"] = mean(precision[0, :, :, 0])
    stats["AP75"] = mean(precision[5, :, :, 0])
    for a, name in enumerate(_AREAS[1:], start=1):
        stats[f"AP{name}"] = mean(precision[:, :, :, a])
    for m, name in enumerate(("1", "10", "100")):
        stats[f"AR{name}"] = mean(recall[:, :, 0, m])
    for a, name in enumerate(_AREAS[1:], start=1):
        stats[f"AR{name}"] = mean(recall[:, :, a, -1])
    return stats


def _of_poses(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    """The same of keypoints, where there are three areas and one number of detections."""
    stats = {"AP": mean(precision[:, :, :, 0]), "AP50": mean(precision[0, :, :, 0])}
    stats["AP75"] = mean(precision[5, :, :, 0])
    for a, name in enumerate(_POSE_AREAS[1:], start=1):
        stats[f"AP{name}"] = mean(precision[:, :, :, a])
    return {**stats, "AR": mean(recall[:, :, 0])}


def mean(values: np.ndarray) -> float:
    """The mean of the values that are defined; -1 where none is."""
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0


def with_a_mask_for_all(ground_truth: Truth) -> Truth:
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
    truth: GroundTruth,
    found: Predictions,
    kind: str,
    max_detections: list[int],
    sigmas: Sequence[float],
) -> tuple[np.ndarray, np.ndarray]:
    import hotcoco

    if kind == "keypoints":
        datasets = pose_datasets(truth, found)
        coco_gt, coco_dt = (hotcoco.COCO(dataset) for dataset in datasets)
    else:
        coco_gt, coco_dt = hotcoco_datasets(truth, found, kind, *image_and_category_rows(truth))
    evaluation = hotcoco.COCOeval(coco_gt, coco_dt, kind)
    evaluation.params.maxDets = max_detections
    if kind == "keypoints":
        evaluation.params.kpt_oks_sigmas = list(sigmas)
    evaluation.evaluate()
    evaluation.accumulate()
    curves: Any = evaluation.eval
    return curves["precision"], curves["recall"]


def hotcoco_datasets(
    truth: GroundTruth,
    found: Predictions,
    kind: str,
    images: list[dict],
    categories: list[dict],
) -> tuple[Any, Any]:
    """Ground truth and detections as hotcoco holds them, by columns.

    Args:
        truth: the annotations; their images and categories are counted from 1 here.
        found: the predictions.
        kind: "bbox" or "segm".
        images: rows of the file's "images", by `image_and_category_rows`.
        categories: likewise.
    """
    import hotcoco

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
    return coco_gt, coco_dt


def pycocotools_curves(
    truth: GroundTruth,
    found: Predictions,
    kind: str,
    max_detections: list[int],
    sigmas: Sequence[float],
    *,
    overlap: Overlap | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall as `BACKENDS` give them; `overlap` stands in for the IoU."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def coco_of(dataset: dict[str, Any]) -> Any:
        coco: Any = COCO()
        coco.dataset = dataset
        coco.createIndex()
        return coco

    poses = kind == "keypoints"
    datasets = pose_datasets(truth, found) if poses else _datasets(truth, found, kind)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        coco_gt, coco_dt = map(coco_of, datasets)
        evaluation: Any = COCOeval(coco_gt, coco_dt, kind)  # pyright: ignore[reportArgumentType]
        if overlap is not None:
            evaluation.computeIoU = functools.partial(_overlaps, evaluation, overlap)
        evaluation.params.maxDets = max_detections
        if poses:
            evaluation.params.kpt_oks_sigmas = np.array(sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def _overlaps(evaluation: Any, overlap: Overlap, image: int, category: int) -> np.ndarray | list:
    """(D, G) of an image's objects of a category, the best D detections first."""
    truth, found = evaluation._gts[image, category], evaluation._dts[image, category]
    if not truth and not found:
        return []
    best = sorted(found, key=lambda row: -row["score"])[: evaluation.params.maxDets[-1]]
    return overlap(best, truth)


def boundary_overlap(found: list[dict], truth: list[dict]) -> np.ndarray:
    """(D, G) the lesser of the IoU of masks and the IoU of their edges.

    Source: Boundary AP (Cheng et al. 2021, arXiv:2103.16562), section 5.

    Args:
        found: D records with `segmentation`, a compressed RLE.
        truth: G such records, with `iscrowd`.
    """
    crowd: Any = [row["iscrowd"] for row in truth]
    masks: Any = [[row["segmentation"] for row in rows] for rows in (found, truth)]
    edges: Any = [[edge_of(mask) for mask in side] for side in masks]
    of_masks, of_edges = (mask_api.iou(side[0], side[1], crowd) for side in (masks, edges))
    return np.minimum(of_masks, of_edges)


def _datasets(truth: GroundTruth, found: Predictions, kind: str) -> tuple[dict, dict]:
    """Ground truth and detections as COCO files hold them."""
    segm = kind == "segm"
    boxes: Any = np.zeros((len(found), 4)) if segm else found.boxes
    masks: Any = found.masks if segm else [None] * len(found)
    areas = [float(mask_api.area(mask)) for mask in masks] if segm else boxes[:, 2] * boxes[:, 3]
    return _dataset(
        truth,
        bbox=truth.boxes.tolist(),
        area=truth.areas.tolist(),
        segmentation=truth.masks,
        **_common_of_truth(truth),
    ), _dataset(
        truth,
        bbox=boxes.tolist(),
        area=list(areas),
        segmentation=masks,
        **_common_of_found(found),
    )


def pose_datasets(truth: GroundTruth, found: Predictions) -> tuple[dict, dict]:
    """The same with keypoints; the area of a detection is that of the box around its points."""
    points: Any = found.keypoints
    if len(found):
        low, high = points[..., :2].min(1), points[..., :2].max(1)
    else:
        low = high = np.zeros((0, 2))
    return _dataset(
        truth,
        bbox=truth.boxes.tolist(),
        area=truth.areas.tolist(),
        keypoints=truth.keypoints.reshape(len(truth), -1).tolist(),
        num_keypoints=(truth.keypoints[..., 2] > 0).sum(1).tolist(),
        **_common_of_truth(truth),
    ), _dataset(
        truth,
        bbox=np.hstack([low, high - low]).tolist(),
        area=(high - low).prod(1).tolist(),
        keypoints=points.reshape(len(found), -1).tolist(),
        num_keypoints=[truth.keypoints.shape[1]] * len(found),
        **_common_of_found(found),
    )


def _common_of_truth(truth: GroundTruth) -> dict[str, list]:
    return {
        "image_id": (truth.image + 1).tolist(),
        "category_id": (truth.category + 1).tolist(),
        "iscrowd": truth.crowd.astype(int).tolist(),
    }


def _common_of_found(found: Predictions) -> dict[str, list]:
    return {
        "image_id": (found.image + 1).tolist(),
        "category_id": (found.category + 1).tolist(),
        "score": found.scores.tolist(),
        "iscrowd": [0] * len(found),
    }


def _dataset(truth: GroundTruth, **columns: list) -> dict[str, list]:
    """A COCO file's content, with ids from 1."""
    keys, records = list(columns), zip(*columns.values(), strict=True)
    annotations = [dict(zip(keys, r, strict=True), id=i + 1) for i, r in enumerate(records)]
    images, categories = image_and_category_rows(truth)
    return {"images": images, "categories": categories, "annotations": annotations}


def image_and_category_rows(truth: GroundTruth) -> tuple[list[dict], list[dict]]:
    """The files' "images" and "categories", with ids from 1."""
    sizes = truth.image_sizes.tolist()
    images = [{"id": i + 1, "height": h, "width": w} for i, (h, w) in enumerate(sizes)]
    categories = [{"id": i + 1, "name": str(i + 1)} for i in range(len(truth.category_ids))]
    return images, categories


Curves = Callable[
    [GroundTruth, Predictions, str, list[int], Sequence[float]], tuple[np.ndarray, np.ndarray]
]

# Each gives precision (T, 101, K, areas, M) and recall (T, K, areas, M), -1 where undefined.
BACKENDS: dict[str, Curves] = {"hotcoco": _hotcoco, "pycocotools": pycocotools_curves}
