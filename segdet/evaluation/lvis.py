"""LVIS' metrics: average precision where each image is searched for some of the classes only."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from segdet.data.readers.lvis_json import FEDERATED_KEYS, FREQUENCIES, read_lvis_json
from segdet.errors import ConfigError, DataError
from segdet.evaluation.coco import COCOEvaluator
from segdet.evaluation.coco_metrics import (
    hotcoco_datasets,
    image_and_category_rows,
    mean,
    with_a_mask_for_all,
)
from segdet.evaluation.coco_records import GroundTruth, Predictions, columns_of
from segdet.evaluation.coco_report import percent, table

logger = logging.getLogger(__name__)

MAX_DETECTIONS = 300  # per image, of all classes together
REPORTED = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")


@dataclass(frozen=True, kw_only=True)
class LVISGroundTruth(GroundTruth):
    """An LVIS file's annotations."""

    negative: list[list[int]]  # of each image, classes (from 0) that it is known not to show
    not_exhaustive: list[list[int]]  # classes of which not all objects are marked
    frequency: list[str]  # of each class "r", "c" or "f"; empty where the file does not say


def read_lvis_ground_truth(json_file: str | os.PathLike[str], image_root: str) -> LVISGroundTruth:
    """Read an LVIS json by the same rules as training does.

    Raises:
        DataError: the file or a record in it is broken.
    """
    file = read_lvis_json(json_file, image_root, extra_annotation_keys=("id", "area"))
    index = file.metadata["thing_dataset_id_to_contiguous_id"]
    negative, not_exhaustive = (
        [[index[category] for category in record[key]] for record in file.records]
        for key in FEDERATED_KEYS
    )
    return LVISGroundTruth(
        **columns_of(file, str(json_file)),
        negative=negative,
        not_exhaustive=not_exhaustive,
        frequency=file.metadata.get("class_frequency", []),
    )


def lvis_metrics(
    truth: LVISGroundTruth,
    predictions: Predictions,
    kind: str,
    *,
    max_detections: int = MAX_DETECTIONS,
) -> dict[str, float]:
    """Average precision as LVIS defines it, by hotcoco.

    Source: LVIS (Gupta et al. 2019, arXiv:1908.03195), section 2.2. A class is looked for in the
    images that show it or are known not to; in an image where not all of its objects are marked, a
    find that matches none is not counted.

    Args:
        truth: the annotations.
        predictions: with `boxes` for "bbox", with `masks` for "segm".
        kind: "bbox" or "segm".
        max_detections: the best of an image that count, over all classes.

    Returns:
        AP, AP50, AP75, APs, APm, APl, and of rare, common and frequent classes APr, APc, APf; in
        [0, 1], -1 where there is nothing to find.

    Raises:
        ConfigError: hotcoco is not installed.
    """
    if not find_spec("hotcoco"):
        raise ConfigError("LVIS evaluation needs hotcoco: pip install hotcoco")
    import hotcoco

    if kind == "segm":
        truth, predictions = with_a_mask_for_all(truth), predictions.ranked_by_mask()
    images, categories = image_and_category_rows(truth)
    for row, negative, open_ in zip(images, truth.negative, truth.not_exhaustive, strict=True):
        row["neg_category_ids"] = [category + 1 for category in negative]
        row["not_exhaustive_category_ids"] = [category + 1 for category in open_]
    for row, frequency in zip(categories, truth.frequency or "f" * len(categories), strict=True):
        row["frequency"] = frequency
    coco_gt, coco_dt = hotcoco_datasets(truth, predictions, kind, images, categories)
    capped = coco_dt.cap_detections_per_image(max_detections)
    evaluation = hotcoco.COCOeval(coco_gt, capped, kind, lvis_style=True)
    evaluation.evaluate()
    evaluation.accumulate()
    curves: Any = evaluation.eval
    return _summarize(curves["precision"][..., -1], truth.frequency)


def _summarize(precision: np.ndarray, frequency: list[str]) -> dict[str, float]:
    """From (T, 101, K, areas); T IoUs."""
    stats = {"AP": mean(precision[:, :, :, 0])}
    stats |= {"AP50": mean(precision[0, :, :, 0]), "AP75": mean(precision[5, :, :, 0])}
    for area, name in enumerate("sml", start=1):
        stats[f"AP{name}"] = mean(precision[:, :, :, area])
    for name in FREQUENCIES:
        of_group = [k for k, one in enumerate(frequency) if one == name]
        stats[f"AP{name}"] = mean(precision[:, :, of_group, 0])
    return stats


class LVISEvaluator(COCOEvaluator):
    """AP of boxes and masks as LVIS defines it, over all, rare, common and frequent classes."""

    known_tasks = ("bbox", "segm")
    results_file = "lvis_instances_results.json"
    max_dets_default = MAX_DETECTIONS

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | Mapping | None = None,
        distributed: bool = True,
        output_dir: str | os.PathLike[str] | None = None,
        *,
        max_dets_per_image: int | None = None,
    ) -> None:
        """Read the ground truth.

        Args:
            dataset_name: its metadata's `json_file` is an LVIS json.
            tasks: "bbox" and/or "segm"; None (or a config, as old scripts pass) takes what the
                outputs hold.
            distributed: as for `COCOEvaluator`.
            output_dir: for `lvis_instances_results.json` and `instances_predictions.pth`.
            max_dets_per_image: the best of an image that count; None is LVIS' 300.

        Raises:
            ConfigError: unknown tasks.
            DataError: a broken ground truth.
        """
        super().__init__(
            dataset_name, tasks, distributed, output_dir, max_dets_per_image=max_dets_per_image
        )

    def _read_ground_truth(self, dataset_name: str, allow_cached: bool) -> GroundTruth:
        json_file = self._metadata.get("json_file")
        if json_file is None:
            raise DataError(f"{dataset_name} has no json_file; LVIS evaluation needs an LVIS json")
        return read_lvis_ground_truth(json_file, str(self._metadata.get("image_root", "")))

    def _evaluate_task(
        self, task: str, truth: GroundTruth, predictions: Predictions
    ) -> dict[str, float]:
        assert isinstance(truth, LVISGroundTruth), "it was read as such"
        if len(predictions) == 0:
            logger.warning("Nothing was found in any image: no %s results", task)
            return dict.fromkeys(REPORTED, float("nan"))
        stats = lvis_metrics(truth, predictions, task, max_detections=self._max_detections)
        results = {name: percent(stats[name]) for name in REPORTED}
        logger.info("Evaluation results for %s (LVIS):\n%s", task, table(results))
        return results
