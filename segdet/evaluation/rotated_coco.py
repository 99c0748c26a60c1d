"""COCO's average precision of rotated boxes."""

from __future__ import annotations

import functools

import numpy as np
import torch

from segdet.errors import DataError
from segdet.evaluation.coco import COCOEvaluator
from segdet.evaluation.coco_metrics import pycocotools_curves
from segdet.evaluation.coco_records import GroundTruth, Predictions
from segdet.structures import RotatedBoxes
from segdet.structures.rotated_boxes import pairwise_iou


def rotated_overlap(found: list[dict], truth: list[dict]) -> np.ndarray:
    """(D, G) IoU of the `bbox` of D and G records, XYWHA."""
    of_found, of_truth = (
        RotatedBoxes(
            torch.tensor([row["bbox"] for row in rows], dtype=torch.float64).reshape(-1, 5)
        )
        for rows in (found, truth)
    )
    return pairwise_iou(of_found, of_truth).numpy()


class RotatedCOCOEvaluator(COCOEvaluator):
    """AP of rotated boxes: COCO's, with the rotated IoU.

    Boxes of the ground truth have five numbers (centre x, centre y, width, height, degrees) in
    the json; four are an upright box's. Predicted `Boxes` are taken as rotated by 0.
    """

    known_tasks = ("bbox",)
    rotated = True

    def _read_ground_truth(self, dataset_name: str, allow_cached: bool) -> GroundTruth:
        truth = super()._read_ground_truth(dataset_name, allow_cached)
        if truth.crowd.any():
            raise DataError(
                f"{truth.source}: {truth.crowd.sum()} annotations have iscrowd 1, for which there "
                "is no rotated IoU; take them out"
            )
        return truth

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take in one batch; of `proposals`, no recall is computed.

        Args:
            inputs: with `image_id`.
            outputs: with `instances`: `pred_boxes`, `scores`, `pred_classes`.
        """
        keys = ("instances",)
        super().process(inputs, [{k: one[k] for k in keys if k in one} for one in outputs])

    def _evaluate_task(
        self, task: str, truth: GroundTruth, predictions: Predictions
    ) -> dict[str, float]:
        self._backend = functools.partial(pycocotools_curves, overlap=rotated_overlap)
        return super()._evaluate_task(task, truth, predictions)
