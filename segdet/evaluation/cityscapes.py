"""Cityscapes' scores of objects and of label maps.

Source: the benchmark's definitions as mcordts/cityscapesScripts computes them (evaluation/
evalInstanceLevelSemanticLabeling.py, evalPixelLevelSemanticLabeling.py); that package is not
needed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segdet.data.catalog import MetadataCatalog
from segdet.data.image_io import read_labels
from segdet.data.readers.cityscapes_labels import BY_ID, LABELS, THINGS, TRAINED
from segdet.errors import DataError
from segdet.evaluation.coco_report import table
from segdet.evaluation.evaluator import DatasetEvaluator, part_of
from segdet.evaluation.label_maps import best_labels, count_pairs, mean_of_known
from segdet.utils import comm

logger = logging.getLogger(__name__)

_OVERLAPS = np.arange(0.5, 1.0, 0.05)
_SMALLEST = 100  # pixels; smaller objects are regions where nothing counts
_VOID = [label.id for label in LABELS if label.is_ignored]

# Source: evalPixelLevelSemanticLabeling.py: mean pixels of an object in the training set.
_MEAN_SIZE = {
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}


class _CityscapesEvaluator(DatasetEvaluator):
    """What both share: the annotation pictures of an input.

    Args:
        dataset_name: its metadata has `gt_dir` and the class names, as the built-in sets do.
    """

    def __init__(self, dataset_name: str) -> None:
        self._metadata = MetadataCatalog.get(dataset_name)

    def _read(self, record: dict[str, Any], kind: str) -> np.ndarray:
        """(H, W) of the ids that belong to a picture; `kind` is "instanceIds" or "labelIds"."""
        image = Path(record["file_name"])
        stem = image.name.removesuffix("leftImg8bit.png")
        return read_labels(
            Path(self._metadata.gt_dir, image.parent.name, f"{stem}gtFine_{kind}.png")
        )


@dataclass(frozen=True, kw_only=True)
class _Matches:
    """How the N finds of an image lie on its ground truth."""

    labels: np.ndarray  # (N,) label ids
    scores: np.ndarray  # (N,)
    pixels: np.ndarray  # (N,)
    shared: np.ndarray  # (N, ids) pixels of each find and each value
    ids: np.ndarray  # (ids,) values of instanceIds.png
    sizes: np.ndarray  # (ids,) their pixels


class CityscapesInstanceEvaluator(_CityscapesEvaluator):
    """AP of masks by Cityscapes' rules: mean over IoU 0.50:0.05:0.95 and the 8 classes."""

    def reset(self) -> None:
        """Forget all predictions."""
        self._matches: list[_Matches] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Compare one batch with its annotation; nothing of the masks is kept.

        Args:
            inputs: with `file_name`.
            outputs: with `instances`: `pred_masks` (N, H, W), `mask_scores` or `scores`, and
                `pred_classes`, in the frame of the original image.
        """
        label_of = np.array([_by_name(name) for name in self._metadata.thing_classes])
        for record, output in zip(inputs, outputs, strict=True):
            truth = self._read(record, "instanceIds")
            found = part_of(output, "instances", self._metadata.name).to("cpu")
            masks = found.pred_masks.bool().numpy()
            if masks.shape[1:] != truth.shape:
                raise DataError(
                    f"{record['file_name']}: predicted masks are {masks.shape[1:]}, the annotation "
                    f"is {truth.shape} (height, width)"
                )
            ids, place, sizes = np.unique(truth, return_inverse=True, return_counts=True)
            place = place.reshape(truth.shape)
            rows = [np.bincount(place[mask], minlength=len(ids)) for mask in masks]
            shared = np.array(rows, np.int64).reshape(len(masks), len(ids))
            pixels = shared.sum(1)
            some = pixels > 0
            scores = found.mask_scores if found.has("mask_scores") else found.scores
            matches = _Matches(
                labels=label_of[found.pred_classes.numpy()][some],
                scores=scores.double().numpy()[some],
                pixels=pixels[some],
                shared=shared[some],
                ids=ids.astype(np.int64),
                sizes=sizes,
            )
            self._matches.append(matches)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """`segm`: AP, AP50 and AP-<class> in percent; NaN where there is nothing to find.

        None where another process evaluates.
        """
        matches = [one for part in comm.gather(self._matches) for one in part]
        if not comm.is_main_process():
            return None
        ap = 100 * np.array([[class_ap(matches, k.id, t) for t in _OVERLAPS] for k in THINGS])
        results = {"AP": mean_of_known(ap.ravel()), "AP50": mean_of_known(ap[:, 0])}
        by_class = {k.name: mean_of_known(row) for k, row in zip(THINGS, ap, strict=True)}
        logger.info("Evaluation results for segm (Cityscapes):\n%s", table(results))
        logger.info("segm AP per class:\n%s", table(by_class))
        return {"segm": results | {f"AP-{name}": value for name, value in by_class.items()}}


def class_ap(matches: Iterable[_Matches], label: int, overlap: float) -> float:
    """The AP of a class at one IoU, in [0, 1]; NaN where there is no object of it."""
    scores, is_true = [np.zeros(0)], [np.zeros(0, bool)]
    missed, is_there, is_found = 0, False, False
    for one in matches:
        mine = one.labels == label
        is_group = one.ids == label
        same = (one.ids // 1000 == label) | is_group
        counts = same & ~is_group & (one.sizes >= _SMALLEST)
        shared = one.shared[mine]
        iou = shared / (one.pixels[mine, None] + one.sizes - shared)
        hits = (iou > overlap) & same
        is_there |= bool(counts.any())
        is_found |= bool(mine.any())
        # An object found several times: its best find is true, the others are false.
        found_scores = one.scores[mine]
        for column in np.flatnonzero(counts):
            of_object = found_scores[hits[:, column]]
            missed += len(of_object) == 0
            scores.append(np.sort(of_object)[::-1])
            is_true.append(np.arange(len(of_object)) == 0)
        unmatched = ~hits.any(1)
        free = np.isin(one.ids, _VOID) | (same & ~counts)
        # Groups that are small weigh twice, as in the benchmark's own tool.
        twice = is_group & (one.sizes < _SMALLEST)
        ignored = shared[:, free].sum(1) + shared[:, twice].sum(1)
        is_false = unmatched & (ignored / one.pixels[mine] <= overlap)
        scores.append(found_scores[is_false])
        is_true.append(np.zeros(is_false.sum(), bool))
    if not is_there:
        return float("nan")
    return _area(np.concatenate(scores), np.concatenate(is_true), missed) if is_found else 0.0


def _area(scores: np.ndarray, is_true: np.ndarray, missed: int) -> float:
    """Area under the curve of precision and recall, each point as wide as half its neighbours."""
    if not is_true.any():
        return 0.0
    order = np.argsort(scores, kind="stable")
    starts = np.unique(scores[order], return_index=True)[1]
    hits_below = np.concatenate([[0], np.cumsum(is_true[order])])[starts]
    hits = is_true.sum() - hits_below  # of all finds from this score on
    precision = hits / (len(scores) - starts)
    recall = hits / (is_true.sum() + missed)
    recall = np.concatenate([recall[:1], recall, [0, 0]])
    widths = (recall[:-2] - recall[2:]) / 2
    return float((np.append(precision, 1) * widths).sum())


class CityscapesSemSegEvaluator(_CityscapesEvaluator):
    """IoU of label maps by Cityscapes' rules, of classes and of their categories.

    iIoU weighs each object's pixels so that small objects count as much as large ones.
    """

    def reset(self) -> None:
        """Forget all predictions."""
        count = len(LABELS)
        self._confusion = np.zeros((count, count), np.int64)  # rows truth, columns prediction
        # Weighted pixels of objects by label: of the right class, of the right category, all.
        self._weighed = np.zeros((3, count))

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Compare one batch with its annotation.

        Args:
            inputs: with `file_name`.
            outputs: with `sem_seg`: (19, H, W) scores of the trained classes, in the frame of the
                original image.
        """
        label_of = np.array([label.id for label in TRAINED])
        for record, output in zip(inputs, outputs, strict=True):
            truth = self._read(record, "labelIds")
            scores = part_of(output, "sem_seg", self._metadata.name)
            found = label_of[best_labels(scores, truth, record["file_name"])]
            if truth.max() >= len(LABELS):
                raise DataError(f"{record['file_name']}: labelIds.png has the id {truth.max()}")
            self._confusion += count_pairs(truth, found, len(LABELS))
            self._weigh(found, self._read(record, "instanceIds"))

    def _weigh(self, found: np.ndarray, ids: np.ndarray) -> None:
        for value in np.unique(ids[ids > 1000]).tolist():
            label = BY_ID[value // 1000]
            if label.is_ignored:
                continue
            pixels = found[ids == value]
            weight = _MEAN_SIZE[label.name] / len(pixels)
            of_category = [one.id for one in LABELS if one.category == label.category]
            right = [pixels == label.id, np.isin(pixels, of_category), np.ones(len(pixels), bool)]
            self._weighed[:, label.id] += [weight * int(part.sum()) for part in right]

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """`sem_seg`: IoU, iIoU, of categories IoU_sup, iIoU_sup, and IoU-<class>, in percent.

        None where another process evaluates.
        """
        parts = comm.gather((self._confusion, self._weighed))
        if not comm.is_main_process():
            return None
        confusion = np.sum([part[0] for part in parts], axis=0)
        weighed = np.sum([part[1] for part in parts], axis=0)
        classes = {label.name: [label.id] for label in TRAINED}
        categories: dict[str, list[int]] = {}
        for label in TRAINED:
            categories.setdefault(label.category, []).append(label.id)
        with_objects = [k for k, ids in categories.items() if all(i in _THING_IDS for i in ids)]
        iou = {name: 100 * _iou(confusion, ids) for name, ids in classes.items()}
        results = {
            "IoU": mean_of_known([*iou.values()]),
            "iIoU": mean_of_known(
                [100 * _iiou(confusion, weighed[0], weighed[2], [k.id]) for k in THINGS]
            ),
            "IoU_sup": mean_of_known([100 * _iou(confusion, ids) for ids in categories.values()]),
            "iIoU_sup": mean_of_known(
                [
                    100 * _iiou(confusion, weighed[1], weighed[2], categories[k])
                    for k in with_objects
                ]
            ),
        }
        logger.info("Evaluation results for sem_seg (Cityscapes):\n%s", table(results))
        logger.info("sem_seg IoU per class:\n%s", table(iou, "IoU"))
        return {"sem_seg": results | {f"IoU-{name}": value for name, value in iou.items()}}


_THING_IDS = {label.id for label in THINGS}


def _false_alarms(confusion: np.ndarray, ids: list[int]) -> int:
    """Pixels of other evaluated classes that were taken for one of `ids`."""
    others = [label.id for label in TRAINED if label.id not in ids]
    return int(confusion[np.ix_(others, ids)].sum())


def _iou(confusion: np.ndarray, ids: list[int]) -> float:
    hits, there = confusion[np.ix_(ids, ids)].sum(), confusion[ids].sum()
    total = there + _false_alarms(confusion, ids)
    return float(hits / total) if total else float("nan")


def _iiou(confusion: np.ndarray, hits: np.ndarray, there: np.ndarray, ids: list[int]) -> float:
    total = there[ids].sum() + _false_alarms(confusion, ids)
    return float(hits[ids].sum() / total) if total else float("nan")


def _by_name(name: str) -> int:
    for label in LABELS:
        if label.name == name:
            return label.id
    raise DataError(f"thing_classes has {name!r}, which is no class of Cityscapes")
