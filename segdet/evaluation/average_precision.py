"""Average precision from matches: precision at 101 recalls, and AP of many resampled data sets."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from segdet.evaluation.matching import IOUS, SIZES, Matches

RECALLS = np.linspace(0, 1, 101)
_EPS = np.spacing(1)  # COCO's, so that numbers are equal to the last digit


def precision_recall(matches: Matches) -> tuple[np.ndarray, np.ndarray]:
    """Precision at 101 recalls, and the highest recall.

    Source: cocoapi's COCOeval, `accumulate`.

    Returns:
        Precision (T, 101, K, A) and recall (T, K, A), in [0, 1]; -1 where a class has no object.
    """
    classes = len(matches.truth.category_ids)
    precision = np.full((len(IOUS), len(RECALLS), classes, len(SIZES)), -1.0)
    recall = np.full((len(IOUS), classes, len(SIZES)), -1.0)
    positives = count_objects(matches)
    for k, rows in enumerate(ranked_by_class(matches)):
        counted = ~matches.ignored[:, :, rows]
        hits = counted & (matches.matched[:, :, rows] >= 0)
        ranks = counted.cumsum(2)
        for a in np.flatnonzero(positives[:, k]):
            for t in range(len(IOUS)):
                found = ranks[a, t, hits[a, t]]
                precision[t, :, k, a] = precision_at_recalls(found, positives[a, k])
                recall[t, k, a] = len(found) / positives[a, k]
    return precision, recall


def count_objects(matches: Matches) -> np.ndarray:
    """(A, K) int64: the objects of each size and class that are to be found."""
    classes = len(matches.truth.category_ids)
    return np.stack(
        [
            np.bincount(matches.truth.category[~ignored], minlength=classes)
            for ignored in matches.object_ignored
        ]
    )


def ranked_by_class(matches: Matches) -> list[np.ndarray]:
    """The detections of each class that count, the best first, as rows of `Predictions`."""
    found = matches.found
    ranked = matches.order[np.argsort(-found.scores[matches.order], kind="stable")]
    by_class = ranked[np.argsort(found.category[ranked], kind="stable")]
    classes = np.arange(len(matches.truth.category_ids) + 1)
    begins = np.searchsorted(found.category[by_class], classes)
    return [by_class[a:b] for a, b in pairwise(begins)]


def precision_at_recalls(ranks: np.ndarray, positives: int) -> np.ndarray:
    """(101,) the highest precision at each recall or beyond it; 0 where that is not reached.

    Args:
        ranks: (hits,) of each hit, from 1, among the detections of its class that are not ignored.
        positives: the objects to be found.
    """
    if len(ranks) == 0:
        return np.zeros(len(RECALLS))
    hits = np.arange(1, len(ranks) + 1, dtype=np.float64)
    best = np.maximum.accumulate((hits / (ranks + _EPS))[::-1])[::-1]
    place = np.searchsorted(hits / positives, RECALLS, side="left")
    return np.where(place < len(best), best[place.clip(max=len(best) - 1)], 0)


def resampled_ap(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """AP of data sets in which each image stands as often as its weight says.

    Args:
        matches: of the whole data set.
        weights: (B, images) whole numbers, of B data sets.

    Returns:
        (B, T, K) float64; NaN where a class has no object.
    """
    classes = len(matches.truth.category_ids)
    ap = np.full((len(weights), len(IOUS), classes), np.nan)
    real, right = ~matches.object_ignored[0], matches.hits()
    for k, rows in enumerate(ranked_by_class(matches)):
        objects = matches.truth.image[real & (matches.truth.category == k)]
        positives = weights[:, objects].sum(1)  # (B,)
        shares = weights[:, matches.found.image[rows]]  # (B, D)
        ranks = shares.cumsum(1)
        hits = right[:, rows]
        for t, ignored in enumerate(matches.ignored[0][:, rows]):
            counted = ranks - (shares * ignored).cumsum(1) if ignored.any() else ranks
            ap[:, t, k] = _weighted_ap(counted[:, hits[t]], shares[:, hits[t]], positives)
    return ap


def _weighted_ap(ranks: np.ndarray, shares: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """(B,) mean precision over 101 recalls; NaN without objects.

    Args:
        ranks: (B, hits) whole numbers, of each hit among the detections that count.
        shares: (B, hits) whole numbers, how often a hit is there.
        positives: (B,) whole numbers, the objects to be found.
    """
    hits = shares.cumsum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        best = np.maximum.accumulate((hits / (ranks + _EPS))[:, ::-1], axis=1)[:, ::-1]
        reached = np.searchsorted(RECALLS, hits / positives[:, None], side="right")
    points = np.diff(reached, axis=1, prepend=0)  # how many recalls a hit is the first to reach
    return np.where(positives > 0, (points * best).sum(1) / len(RECALLS), np.nan)
