"""COCO's instance metrics of a model's outputs."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segdet.data.catalog import MetadataCatalog
from segdet.errors import DataError
from segdet.evaluation.box_proposals import (
    ImageProposals,
    average_recalls,
    compact_proposals,
    write_proposals,
)
from segdet.evaluation.coco_metrics import (
    MAX_DETECTIONS,
    OKS_SIGMAS,
    Curves,
    check_sigmas,
    coco_metrics,
)
from segdet.evaluation.coco_records import GroundTruth, Predictions, read_dataset_ground_truth
from segdet.evaluation.coco_report import KNOWN_TASKS, REPORTED, checked_tasks, report
from segdet.evaluation.evaluator import DatasetEvaluator
from segdet.evaluation.rle import encode_masks
from segdet.structures import Boxes, BoxMode, Instances, RotatedBoxes
from segdet.utils import comm
from segdet.utils.writing import write_atomically, write_text_atomically

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """The N objects found in one image."""

    image_id: Hashable
    boxes: np.ndarray  # (N, 4) XYWH, or (N, 5) XYWHA
    scores: np.ndarray  # (N,)
    classes: np.ndarray  # (N,) int64, contiguous
    masks: list[dict] | None  # N RLEs
    keypoints: np.ndarray | None  # (N, P, 3)
    mask_scores: np.ndarray | None  # (N,)


class COCOEvaluator(DatasetEvaluator):
    """AP of boxes, masks and keypoints as COCO defines it, over the whole data set and per class.

    Of outputs with `proposals`, also the average recall of these.
    """

    results_file = "coco_instances_results.json"
    max_dets_default = MAX_DETECTIONS
    known_tasks: Sequence[str] = KNOWN_TASKS
    rotated = False  # whether boxes have angles

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | Mapping | None = None,
        distributed: bool = True,
        output_dir: str | os.PathLike[str] | None = None,
        *,
        max_dets_per_image: int | None = None,
        use_fast_impl: bool = True,
        kpt_oks_sigmas: Sequence[float] = (),
        allow_cached_coco: bool = False,
    ) -> None:
        """Read the ground truth.

        Args:
            dataset_name: its metadata's `json_file` is the ground truth; a data set without one
                is converted to COCO json.
            tasks: of "bbox", "segm", "keypoints", "boundary"; None (or a config, as old scripts
                pass) takes what the outputs hold of the first three.
            distributed: whether the processes have parts of the data set, to be gathered on the
                main process; otherwise each evaluates what it was given.
            output_dir: for `coco_instances_results.json`, `instances_predictions.pth` and the
                converted ground truth; None writes nothing.
            max_dets_per_image: best detections that count per image and class; None is COCO's 100.
            use_fast_impl: hotcoco where it is installed; False takes pycocotools.
            kpt_oks_sigmas: of keypoints, one a point; empty takes COCO's.
            allow_cached_coco: take a conversion that lies in `output_dir` from an earlier run,
                which is wrong if the data set has changed since.

        Raises:
            ConfigError: unknown tasks, or sigmas that are not as many as the keypoints.
            DataError: a broken ground truth.
        """
        tasks = None if isinstance(tasks, Mapping) else tasks
        self._tasks = None if tasks is None else checked_tasks(tasks, self.known_tasks)
        self._distributed = distributed
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._max_detections = max_dets_per_image or self.max_dets_default
        self._sigmas = tuple(kpt_oks_sigmas) or OKS_SIGMAS
        self._backend: str | Curves | None = None if use_fast_impl else "pycocotools"
        self._metadata = MetadataCatalog.get(dataset_name)
        self._found: list[_Found] = []
        self._proposals: list[ImageProposals] = []
        self._ground_truth = None
        if self._evaluates:
            truth = self._ground_truth = self._read_ground_truth(dataset_name, allow_cached_coco)
            if kpt_oks_sigmas and truth.keypoints.shape[1] > 0:
                check_sigmas(truth, self._sigmas)

    @property
    def _evaluates(self) -> bool:
        return comm.is_main_process() or not self._distributed

    def _read_ground_truth(self, dataset_name: str, allow_cached: bool) -> GroundTruth:
        return read_dataset_ground_truth(
            dataset_name, self._output_dir, allow_cached=allow_cached, rotated=self.rotated
        )

    def reset(self) -> None:
        """Forget all predictions."""
        self._found, self._proposals = [], []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take in one batch; masks are kept as run lengths.

        Args:
            inputs: with `image_id`.
            outputs: with `instances`: `pred_boxes`, `scores`, `pred_classes`, and maybe
                `pred_masks` (N, H, W), `mask_scores` (N,), by which masks rank in place of
                `scores`, and `pred_keypoints` (N, P, 3), and/or with `proposals`:
                `proposal_boxes` and `objectness_logits`; in the frame of the original image.
        """
        for image, output in zip(inputs, outputs, strict=True):
            if "image_id" not in image:
                raise DataError(
                    f"the record of {image.get('file_name', 'an image')} has no image_id, which "
                    "evaluation needs; give each record of the data set one"
                )
            if "instances" in output:
                found = _compact(image["image_id"], output["instances"], self.rotated)
                self._found.append(found)
            if "proposals" in output:
                self._proposals.append(compact_proposals(image["image_id"], output["proposals"]))

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Task -> metric -> value in percent; None where another process evaluates.

        Metrics are AP, AP50, AP75, APs, APm, APl (keypoints have no APs), and with several classes
        AP-<class>; NaN where there is nothing to find, or nothing was found at all. Those of the
        task `box_proposals` are AR@100, ARs@100, ..., ARl@1000. {} without annotations.
        """
        found, proposals = self._found, self._proposals
        if self._distributed:
            found = [one for part in comm.gather(found) for one in part]
            proposals = [one for part in comm.gather(proposals) for one in part]
        if not self._evaluates:
            return None
        truth = self._ground_truth
        assert truth is not None, "the process that evaluates has read the ground truth"
        if not proposals:
            return self._evaluate_instances(found, truth)
        if self._output_dir is not None:
            write_proposals(self._output_dir / "box_proposals.pkl", proposals)
        results = self._evaluate_instances(found, truth) if found else {}
        if truth.annotated:
            results["box_proposals"] = average_recalls(proposals, truth)
        return results

    def _evaluate_instances(
        self, found: list[_Found], truth: GroundTruth
    ) -> dict[str, dict[str, float]]:
        predictions = _join(found, truth, self._category_of_class(truth))
        if self._output_dir is not None:
            _write(self._output_dir / self.results_file, found, predictions, truth)
        if not found:
            logger.warning("No image was predicted: nothing to evaluate")
            return {}
        if not truth.annotated:
            logger.info("%s has no annotations: predictions are only written", truth.source)
            return {}
        seen = len(np.unique([truth.image_index[one.image_id] for one in found]))
        if seen < len(truth.image_ids):
            logger.warning(
                "Only %d of %d images were predicted; the objects of the others count as missed",
                seen,
                len(truth.image_ids),
            )
        return {
            task: self._evaluate_task(task, truth, predictions)
            for task in self._tasks_of(found, truth)
        }

    def _tasks_of(self, found: list[_Found], truth: GroundTruth) -> Sequence[str]:
        if self._tasks:
            return self._tasks
        has = {"segm": any(one.masks is not None for one in found), "boundary": False}
        has["keypoints"] = any(one.keypoints is not None for one in found)
        if has["keypoints"] and truth.keypoints.shape[1] == 0:
            logger.warning("%s has no keypoints: those predicted are not evaluated", truth.source)
            has["keypoints"] = False
        return [task for task in self.known_tasks if has.get(task, True)]

    def _evaluate_task(
        self, task: str, truth: GroundTruth, predictions: Predictions
    ) -> dict[str, float]:
        if len(predictions) == 0:
            logger.warning("Nothing was found in any image: no %s results", task)
            return dict.fromkeys(REPORTED[task], float("nan"))
        metrics = coco_metrics(
            truth,
            predictions,
            task,
            max_detections=self._max_detections,
            sigmas=self._sigmas,
            backend=self._backend,
        )
        return report(task, metrics, truth)

    def _category_of_class(self, truth: GroundTruth) -> list[int]:
        """Index into truth.category_ids for each contiguous class."""
        id_map = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if id_map is None:
            return list(range(len(truth.category_ids)))
        try:
            by_class = {k: truth.category_index[category] for category, k in id_map.items()}
        except KeyError as error:
            raise DataError(
                f"thing_dataset_id_to_contiguous_id of {self._metadata.name} has the category "
                f"{error}, which {truth.source} lacks"
            ) from None
        # Where stuff is numbered together with things, these have gaps.
        return [by_class.get(k, -1) for k in range(max(by_class, default=-1) + 1)]


def _compact(image_id: Hashable, instances: Instances, rotated: bool) -> _Found:
    found = instances.to("cpu")
    boxes = _boxes(image_id, found.pred_boxes, rotated)
    scores = found.scores.detach().double().numpy()
    keypoints = mask_scores = None
    if found.has("mask_scores"):
        mask_scores = found.mask_scores.detach().double().numpy()
    if found.has("pred_keypoints"):
        keypoints = found.pred_keypoints.detach().double().numpy().copy()
        keypoints[..., :2] -= 0.5  # COCO's are indices of pixels, the model's places on the image
    for numbers in (boxes, scores, keypoints, mask_scores):
        if numbers is not None and not np.isfinite(numbers).all():
            raise DataError(f"image {image_id}: the model's boxes or scores are NaN or infinite")
    return _Found(
        image_id=image_id,
        boxes=boxes,
        scores=scores,
        classes=found.pred_classes.numpy(),
        masks=encode_masks(found.pred_masks) if found.has("pred_masks") else None,
        keypoints=keypoints,
        mask_scores=mask_scores,
    )


def _boxes(image_id: Hashable, boxes: Boxes, rotated: bool) -> np.ndarray:
    """(N, 4) XYWH, or (N, 5) XYWHA."""
    numbers = boxes.tensor.detach().double()
    if not isinstance(boxes, RotatedBoxes):
        mode = BoxMode.XYWHA_ABS if rotated else BoxMode.XYWH_ABS
        return BoxMode.convert(numbers, BoxMode.XYXY_ABS, mode).numpy()
    if not rotated:
        raise DataError(f"image {image_id}: the boxes are rotated; use RotatedCOCOEvaluator")
    return numbers.numpy()


def _join(found: list[_Found], truth: GroundTruth, category_of_class: list[int]) -> Predictions:
    """All images' objects, in the ground truth's terms."""
    if unknown := [one.image_id for one in found if one.image_id not in truth.image_index]:
        raise DataError(f"{truth.source} has no image of the predicted image_id {unknown[0]!r}")
    images = [truth.image_index[one.image_id] for one in found]
    classes = np.concatenate([np.zeros(0, np.int64), *(one.classes for one in found)])
    if len(classes) and classes.max() >= len(category_of_class):
        raise DataError(
            f"the model predicts class {classes.max()}, but {truth.source} has "
            f"{len(category_of_class)} categories; the model's NUM_CLASSES "
            "(MODEL.ROI_HEADS, RETINANET, FCOS or YOLACT) must agree with it"
        )
    category = np.array(category_of_class, np.int64)[classes]
    if (category < 0).any():
        raise DataError(
            f"the model predicts class {classes[category < 0][0]} as an object, which "
            f"thing_dataset_id_to_contiguous_id does not name for {truth.source}"
        )
    masks = None
    if any(one.masks is not None for one in found):
        masks = [mask for one in found for mask in one.masks or []]
    poses = [one.keypoints for one in found if one.keypoints is not None and len(one.keypoints)]
    keypoints = mask_scores = None
    if any(one.keypoints is not None for one in found):
        keypoints = np.concatenate(poses or [truth.keypoints[:0]])
    if any(one.mask_scores is not None for one in found):
        ranks = [one.scores if one.mask_scores is None else one.mask_scores for one in found]
        mask_scores = np.concatenate(ranks)
    return Predictions(
        image=np.repeat(np.array(images, np.int64), [len(one.scores) for one in found]),
        category=category,
        scores=np.concatenate([np.zeros(0), *(one.scores for one in found)]),
        boxes=np.concatenate([truth.boxes[:0], *(one.boxes for one in found)]),
        masks=masks,
        keypoints=keypoints,
        mask_scores=mask_scores,
    )


def _write(file: Path, found: list[_Found], predictions: Predictions, truth: GroundTruth) -> None:
    """detectron2's two files; the .pth has classes as the model counts them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    by_image = [{"image_id": one.image_id, "instances": _rows(one)} for one in found]
    as_pth = file.with_name("instances_predictions.pth")
    write_atomically(as_pth, lambda stream: torch.save(by_image, stream))
    rows = [row for one in by_image for row in one["instances"]]
    for row, category in zip(rows, predictions.category.tolist(), strict=True):
        row["category_id"] = truth.category_ids[category]
    write_text_atomically(file, json.dumps(rows))


def _rows(one: _Found) -> list[dict[str, Any]]:
    """One image's objects as records of a results file."""
    columns = {
        "category_id": one.classes.tolist(),
        "bbox": one.boxes.tolist(),
        "score": one.scores.tolist(),
    }
    if one.masks is not None:
        columns["segmentation"] = one.masks
    if one.mask_scores is not None:
        columns["mask_score"] = one.mask_scores.tolist()
    if one.keypoints is not None:
        columns["keypoints"] = one.keypoints.reshape(len(one.scores), -1).tolist()
    objects = zip(*columns.values(), strict=True)
    return [dict(zip(columns, values, strict=True), image_id=one.image_id) for values in objects]
