"""Precision by recall, and numbers of each class and size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segdet.evaluation.average_precision import RECALLS, count_objects, precision_recall
from segdet.evaluation.matching import IOUS, Matches

CURVE_IOUS = (0.5, 0.75)


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Precision at 101 recalls; NaN where a class has no object."""

    recalls: np.ndarray  # (101,) 0 to 1
    ious: tuple[float, ...]  # C of them
    precision: np.ndarray  # (C, K, 101) in [0, 1]
    mean_precision: np.ndarray  # (C, 101) over classes


@dataclass(frozen=True, kw_only=True)
class Tables:
    """AP and recall in [0, 1], NaN where there is no object; A sizes as in `SIZES`, K classes."""

    objects: np.ndarray  # (A, K) int64, without crowds
    detections: np.ndarray  # (K,) int64, those that count
    ap: np.ndarray  # (A, K) mean over the IoUs 0.50:0.95
    ap50: np.ndarray  # (A, K)
    ap75: np.ndarray  # (A, K)
    recall: np.ndarray  # (A, K) the highest, mean over the IoUs

    def over_classes(self) -> dict[str, np.ndarray]:
        """Each of the four numbers as (A,) means over the classes that have objects."""
        return {name: nan_mean(getattr(self, name), axis=1) for name in MEASURES}


MEASURES = ("ap", "ap50", "ap75", "recall")


def curves_and_tables(matches: Matches) -> tuple[Curves, Tables]:
    """Both, from one accumulation; their numbers are COCO's."""
    precision, recall = precision_recall(matches)  # (T, 101, K, A), (T, K, A)
    precision = np.where(precision < 0, np.nan, precision)
    recall = np.where(recall < 0, np.nan, recall)
    places = [int(np.flatnonzero(np.isclose(IOUS, iou))[0]) for iou in CURVE_IOUS]
    chosen = precision[places, :, :, 0].transpose(0, 2, 1)
    ap = precision.mean(1).transpose(0, 2, 1)  # (T, A, K)
    classes = len(matches.truth.category_ids)
    return Curves(
        recalls=RECALLS,
        ious=CURVE_IOUS,
        precision=chosen,
        mean_precision=nan_mean(chosen, axis=1),
    ), Tables(
        objects=count_objects(matches),
        detections=np.bincount(matches.found.category[matches.order], minlength=classes),
        ap=ap.mean(0),
        ap50=ap[places[0]],
        ap75=ap[places[1]],
        recall=recall.mean(0).T,
    )


def nan_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of those that are not NaN; NaN, without a warning, where all are."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis) / known.sum(axis)
