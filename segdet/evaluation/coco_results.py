"""COCO results files, read with every check and evaluated.

The evaluators are native code that trusts its input: a broken record ends here, in a DataError
that names the file, the record and the field.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from segdet.data.defects import located
from segdet.data.limits import check_file
from segdet.data.readers.coco_json import paused_gc
from segdet.data.rle import rle_runs
from segdet.errors import DataError
from segdet.evaluation.coco_metrics import MAX_DETECTIONS, OKS_SIGMAS, coco_metrics
from segdet.evaluation.coco_records import GroundTruth, Predictions, read_ground_truth
from segdet.evaluation.coco_report import TASKS, checked_tasks, report
from segdet.evaluation.rle import compress, count_pixels

_LARGEST = sys.float_info.max


def evaluate_results(
    gt_json: str | os.PathLike[str],
    results_json: str | os.PathLike[str],
    tasks: Sequence[str] | None = None,
    *,
    max_dets_per_image: int = MAX_DETECTIONS,
    kpt_oks_sigmas: Sequence[float] = (),
    backend: str | None = None,
) -> dict[str, dict[str, float]]:
    """Evaluate a COCO results file.

    Args:
        gt_json: the annotations.
        results_json: the list of results.
        tasks: of "bbox", "segm", "keypoints", "boundary"; None takes what the results hold of the
            first three.
        max_dets_per_image: best detections that count per image and class.
        kpt_oks_sigmas: of keypoints, one a point; empty takes COCO's.
        backend: "hotcoco" or "pycocotools"; None takes hotcoco where it is installed.

    Returns:
        As `COCOEvaluator.evaluate`, with AP 0 where the list of results is empty.

    Raises:
        DataError: a broken file or record, named.
    """
    truth = read_ground_truth(gt_json)
    predictions = read_predictions(results_json, truth)
    held = {"bbox": predictions.boxes is not None, "segm": predictions.masks is not None}
    held["boundary"] = held["segm"]
    held["keypoints"] = predictions.keypoints is not None
    results = {}
    for task in TASKS if tasks is None else checked_tasks(tasks):
        if held[task]:
            metrics = coco_metrics(
                truth,
                predictions,
                task,
                max_detections=max_dets_per_image,
                sigmas=kpt_oks_sigmas or OKS_SIGMAS,
                backend=backend,
            )
            results[task] = report(task, metrics, truth)
        elif tasks is not None:
            raise DataError(f"{results_json}: its records have nothing to evaluate for {task}")
    return results


def read_predictions(json_file: str | os.PathLike[str], ground_truth: GroundTruth) -> Predictions:
    """Read a results file: a list of {image_id, category_id, score} and what was found.

    Args:
        json_file: the results; all have a bbox or none, likewise a segmentation (RLE), a
            mask_score, by which masks rank in place of score, and keypoints (triples x, y, score).
        ground_truth: whose images and categories they refer to.

    Returns:
        The predictions, in the file's order.

    Raises:
        DataError: not such a file; a record whose ids the ground truth lacks, without a finite
            score, with a box of negative size or a mask that does not fit its image.
    """
    with paused_gc():
        rows = _read_list(json_file)
        kinds = _kinds(rows, json_file, ground_truth)
        try:
            columns = _all_at_once(rows, kinds, ground_truth)
        except (KeyError, TypeError, ValueError, OverflowError):  # the cause is then told
            columns = _one_by_one(rows, kinds, json_file, ground_truth)
    return Predictions(**columns)


def _kinds(
    rows: list[dict], json_file: str | os.PathLike[str], ground_truth: GroundTruth
) -> list[str]:
    """The keys of what was found, which all records must have if the first one does."""
    kinds = [key for key in ("bbox", "segmentation") if not rows or key in rows[0]]
    if "keypoints" in rows[0] if rows else ground_truth.keypoints.shape[1]:
        kinds.append("keypoints")
    if "segmentation" in kinds and rows and "mask_score" in rows[0]:
        kinds.append("mask_score")
    if not kinds:
        raise DataError(f"{json_file}: results[0] has no bbox, segmentation or keypoints")
    return kinds


def _all_at_once(rows: list[dict], kinds: list[str], ground_truth: GroundTruth) -> dict[str, Any]:
    """The fields of `Predictions` of records in the usual form: whole numbers, RLE strings.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: a record is broken, or of another form.
    """
    columns: dict[str, Any] = {}
    points = ground_truth.keypoints.shape[1]
    for field, key, index in (
        ("image", "image_id", ground_truth.image_index),
        ("category", "category_id", ground_truth.category_index),
    ):
        ids = [row[key] for row in rows]
        _require({*map(type, ids)} <= {int, str})
        columns[field] = np.array([index[one] for one in ids], dtype=np.int64)
    scores = [("scores", "score")] + [("mask_scores", "mask_score")] * ("mask_score" in kinds)
    for field, key in scores:
        columns[field] = _numbers([row[key] for row in rows])
    for field, key, width in (
        ("boxes", "bbox", 4),
        ("keypoints", "keypoints", 3 * points),
    ):
        if key in kinds:
            lists = [row[key] for row in rows]
            _require({*map(type, lists)} <= {list} and {*map(len, lists)} <= {width})
            columns[field] = _numbers(list(chain.from_iterable(lists))).reshape(-1, width)
    if "bbox" in kinds:
        _require((columns["boxes"][:, 2:] >= 0).all())
    if "keypoints" in kinds:
        columns["keypoints"] = columns["keypoints"].reshape(len(rows), points, 3)
    if "segmentation" in kinds:
        masks = columns["masks"] = [row["segmentation"] for row in rows]
        _require({*map(type, masks)} <= {dict})
        sizes = np.array([mask["size"] for mask in masks]).reshape(-1, 2)
        of_images = ground_truth.image_sizes[columns["image"]]
        _require(len(rows) == 0 or (sizes.dtype == np.int64 and (sizes == of_images).all()))
        counts = [mask["counts"] for mask in masks]
        _require({*map(type, counts)} <= {str})
        _require((count_pixels(counts) == of_images.prod(1)).all())
    return columns


def _require(usual: Any) -> None:
    if not usual:
        raise ValueError


def _numbers(values: list) -> np.ndarray:
    """(N,) float64, all finite."""
    _require({*map(type, values)} <= {int, float})
    numbers = np.array(values, dtype=np.float64)
    _require(np.isfinite(numbers).all())
    return numbers


def _one_by_one(
    rows: list[dict],
    kinds: list[str],
    json_file: str | os.PathLike[str],
    ground_truth: GroundTruth,
) -> dict[str, Any]:
    """The same of records in any form, with a DataError that names the broken one."""
    checked = []
    for number, row in enumerate(rows):
        try:
            checked.append(_check_row(row, kinds, ground_truth))
        except DataError as error:
            raise _in_record(error, json_file, number, row) from None
    images, categories, scores, mask_scores, boxes, masks, poses = zip(*checked, strict=True)
    if "segmentation" in kinds:
        counts = count_pixels([mask["counts"] for mask in masks])
        pixels = ground_truth.image_sizes.prod(1)[list(images)]
        for number in np.flatnonzero(counts != pixels).tolist():
            try:
                rle_runs(masks[number])
            except DataError as error:
                raise _in_record(error, json_file, number, rows[number]) from None
    points = ground_truth.keypoints.shape[1]
    return {
        "image": np.array(images, dtype=np.int64),
        "category": np.array(categories, dtype=np.int64),
        "scores": np.array(scores, dtype=np.float64),
        "boxes": np.array(boxes, dtype=np.float64) if "bbox" in kinds else None,
        "masks": list(masks) if "segmentation" in kinds else None,
        "keypoints": np.array(poses).reshape(len(rows), points, 3)
        if "keypoints" in kinds
        else None,
        "mask_scores": np.array(mask_scores, dtype=np.float64) if "mask_score" in kinds else None,
    }


def _read_list(json_file: str | os.PathLike[str]) -> list[dict]:
    try:
        check_file(Path(json_file))
        rows = json.loads(Path(json_file).read_bytes())
    except OSError as error:
        raise DataError(f"{json_file}: cannot be read ({error.strerror or error})") from None
    except DataError as error:
        raise located(json_file, error) from None
    except RecursionError:
        raise DataError(f"{json_file}: is nested too deeply for a results file") from None
    except ValueError as error:  # JSONDecodeError says line and column; or a broken encoding
        raise DataError(f"{json_file}: is not valid JSON ({error})") from None
    if type(rows) is not list:
        raise DataError(f"{json_file}: results must be a list, this is a {type(rows).__name__}")
    for number, row in enumerate(rows):
        if type(row) is not dict:
            raise DataError(f"{json_file}: results[{number}] must be an object, is {row!r:.80}")
    return rows


def _in_record(
    error: DataError, json_file: str | os.PathLike[str], number: int, row: dict
) -> DataError:
    image = f" (image_id {row['image_id']!r})" if "image_id" in row else ""
    return DataError(f"{json_file}: results[{number}]{image}: {error}")


def _check_row(row: dict, kinds: list[str], ground_truth: GroundTruth) -> tuple:
    """Image, category, score, and mask's score, box, mask and keypoints or None."""
    image = _known(row, "image_id", ground_truth.image_index)
    category = _known(row, "category_id", ground_truth.category_index)
    for key in ("score", *kinds):
        if key not in row:
            raise DataError(f"has no {key}")
    for key in ("score", "mask_score"):
        if key in ("score", *kinds) and not _is_finite(row[key]):
            raise DataError(f"{key} must be a finite number, is {row[key]!r}")
    mask_score = row["mask_score"] if "mask_score" in kinds else None
    box = _check_box(row["bbox"]) if "bbox" in kinds else None
    mask = points = None
    if "segmentation" in kinds:
        mask = _check_rle(row["segmentation"], ground_truth.image_sizes[image].tolist())
    if "keypoints" in kinds:
        points = _check_keypoints(row["keypoints"], ground_truth.keypoints.shape[1])
    return image, category, row["score"], mask_score, box, mask, points


def _known(row: dict[str, Any], key: str, index: dict[Any, int]) -> int:
    value = row.get(key)
    if type(value) not in (int, float, str) or value not in index:
        raise DataError(f"{key} {value!r} is not in the ground truth")
    return index[value]


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and -_LARGEST <= value <= _LARGEST


def _check_box(box: Any) -> list[float]:
    if type(box) is not list or len(box) != 4 or not all(map(_is_finite, box)):
        raise DataError(f"bbox must be four finite numbers [x, y, width, height], is {box!r:.80}")
    if box[2] < 0 or box[3] < 0:
        raise DataError(f"bbox must have width and height >= 0, is {box!r:.80}")
    return box


def _check_rle(rle: Any, size: list[int]) -> dict[str, Any]:
    if type(rle) is not dict or type(rle.get("counts")) not in (str, list):
        raise DataError(f"segmentation must be an RLE with size and counts, is {rle!r:.80}")
    if rle.get("size") != size:
        raise DataError(
            f"segmentation size [height, width] is {rle.get('size')}, the image's is {size}"
        )
    if type(rle["counts"]) is list:
        return compress(rle_runs(rle).tolist(), *size)
    return rle


def _check_keypoints(points: Any, count: int) -> list[float]:
    if type(points) is not list or len(points) != 3 * count or not all(map(_is_finite, points)):
        raise DataError(
            f"keypoints must be {count} triples of finite numbers x, y, score, as the ground truth "
            f"has {count} keypoints; is {points!r:.80}"
        )
    return points
