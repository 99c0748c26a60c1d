"""Panoptic quality (Kirillov et al. 2018, arXiv:1801.00868), with COCO's rules for void and crowd.

Source: the evaluation of cocodataset.org and panopticapi, whose numbers these are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from segdet.data.segment_ids import ID_LIMIT
from segdet.errors import DataError

TP, FP, FN, IOU = range(4)  # columns of counts
# IoUs of matches are doubles above 0.5, so whole multiples of this: as such they are summed without
# rounding, and sums do not depend on the order of images or the number of processes.
_IOU_UNIT = 2**-53


@dataclass(frozen=True, kw_only=True)
class PanopticMap:
    """The segments of one image, annotated or predicted."""

    ids: np.ndarray  # (H, W) integers; 0 is no segment
    segments: Sequence[Mapping[str, Any]]  # id, category_id; annotated: area, maybe iscrowd
    source: str  # for messages


class Quality(NamedTuple):
    """Means over categories that have something to count, in [0, 1]; NaN where n is 0."""

    pq: float
    sq: float
    rq: float
    n: int  # categories


def count_segments(truth: PanopticMap, found: PanopticMap, row_of: Mapping[Any, int]) -> np.ndarray:
    """Match the segments of an image and count, by category.

    A pair matches if the categories are equal and IoU is above 0.5, where pixels of the found
    segment that are void in the ground truth do not count for the union. Annotated crowds are
    neither matched nor missed; of several of one category the last counts. Found segments of
    which more than half is void or a crowd of their category are not false.

    Args:
        truth: the annotation; areas are taken from its records.
        found: the prediction.
        row_of: category id -> row of the result.

    Returns:
        (K, 4) Python integers: matches TP, false finds FP, missed FN, and the sum of the
        matches' IoU in units of 2^-53. Those of several images may be added.

    Raises:
        DataError: maps of different sizes, or a map and its records do not fit together.
    """
    if truth.ids.shape != found.ids.shape:
        raise DataError(
            f"{found.source}: the map is {found.ids.shape}, {truth.source} is {truth.ids.shape} "
            "(height, width)"
        )
    rows, found_rows = _rows(truth, row_of), _rows(found, row_of)  # (G,), (P,)
    shared = _shared_pixels(truth, found)  # (1 + G, 1 + P)
    void, inside = shared[0, 1:], shared[1:, 1:]
    area = np.array([_area(segment, truth.source) for segment in truth.segments]).reshape(-1)
    found_area = shared[:, 1:].sum(0)
    is_crowd = np.array([bool(s.get("iscrowd", 0)) for s in truth.segments], bool)

    iou = inside / (area[:, None] + found_area - inside - void)
    same = rows[:, None] == found_rows
    match = (iou > 0.5) & same & ~is_crowd[:, None]
    crowd_of = {rows[g]: g for g in np.flatnonzero(is_crowd)}
    is_last = np.isin(np.arange(len(rows)), list(crowd_of.values()))
    ignored = void + (inside * (same & is_last[:, None])).sum(0)
    is_false = ~match.any(0) & (ignored / found_area <= 0.5)

    counts = np.zeros((len(row_of), 4), object)
    matched, _ = np.nonzero(match)
    np.add.at(counts[:, TP], rows[matched], 1)
    np.add.at(counts[:, FP], found_rows[is_false], 1)
    np.add.at(counts[:, FN], rows[~match.any(1) & ~is_crowd], 1)
    units = [int(value) for value in iou[match] / _IOU_UNIT]
    np.add.at(counts[:, IOU], rows[matched], np.array(units, object))
    return counts


def category_quality(counts: np.ndarray) -> np.ndarray:
    """PQ, SQ and RQ of each category.

    Args:
        counts: (K, 4), sums of `count_segments`.

    Returns:
        (K, 3) in [0, 1]; NaN where nothing of a category was annotated or found. SQ is 0 where
        nothing matched.
    """
    tp, fp, fn = (counts[:, column].astype(np.float64) for column in (TP, FP, FN))
    iou = (counts[:, IOU] * _IOU_UNIT).astype(np.float64)
    total = tp + fp / 2 + fn / 2
    total[total == 0] = np.nan
    pq, rq = iou / total, tp / total
    return np.stack([pq, np.where(tp > 0, iou / np.maximum(tp, 1), rq), rq], axis=1)


def mean_quality(per_category: np.ndarray) -> Quality:
    """The means over the categories that are not NaN.

    Args:
        per_category: (K, 3), by `category_quality`.
    """
    known = per_category[~np.isnan(per_category[:, 0])]
    if len(known) == 0:
        return Quality(float("nan"), float("nan"), float("nan"), 0)
    pq, sq, rq = known.mean(0).tolist()
    return Quality(pq, sq, rq, len(known))


def _rows(one: PanopticMap, row_of: Mapping[Any, int]) -> np.ndarray:
    """(N,) the row of each segment's category."""
    try:
        return np.array([row_of[s["category_id"]] for s in one.segments], np.int64)
    except (KeyError, TypeError):
        wrong = next(s for s in one.segments if s.get("category_id") not in [*row_of])
    raise DataError(
        f"{one.source}: segment {wrong.get('id')} has category_id {wrong.get('category_id')!r}, "
        "which is not among the categories of the ground truth"
    )


def _shared_pixels(truth: PanopticMap, found: PanopticMap) -> np.ndarray:
    """(1 + G, 1 + P) pixels of each pair of segments, in the order of their records; 0 is void."""
    truth_ids, found_ids = (_ids(one) for one in (truth, found))
    shape = len(truth_ids), len(found_ids)
    pairs = _places(truth, truth_ids) * shape[1] + _places(found, found_ids)
    shared = np.bincount(pairs.ravel(), minlength=shape[0] * shape[1]).reshape(shape)
    for one, ids, axis in ((truth, truth_ids, 1), (found, found_ids, 0)):
        absent = np.flatnonzero(shared.sum(axis)[1:] == 0) + 1
        if len(absent):
            raise DataError(
                f"{one.source}: segment {ids[absent[0]]} of segments_info has no pixel in the map"
            )
    return shared


def _ids(one: PanopticMap) -> np.ndarray:
    """(1 + N,) int64: 0 and the segments' ids."""
    ids: dict[int, None] = {0: None}
    for segment in one.segments:
        value = segment.get("id")
        if not isinstance(value, int | np.integer) or not 0 < value < ID_LIMIT:
            raise DataError(
                f"{one.source}: the id of a segment must be in [1, {ID_LIMIT}), is {value!r}"
            )
        if value in ids:
            raise DataError(f"{one.source}: segments_info has segment {value} twice")
        ids[int(value)] = None
    return np.array(list(ids), np.int64)


def _places(one: PanopticMap, ids: np.ndarray) -> np.ndarray:
    """(H, W) int64: the place of each pixel's id in `ids`."""
    order = np.argsort(ids)
    place = np.minimum(np.searchsorted(ids[order], one.ids), len(ids) - 1)
    known = ids[order][place] == one.ids
    if not known.all():
        raise DataError(
            f"{one.source}: segments_info lacks the segment {one.ids[~known][0]} of the map"
        )
    return order[place]


def _area(segment: Mapping[str, Any], source: str) -> float:
    area = segment.get("area")
    if isinstance(area, bool) or not isinstance(area, int | float) or not 0 < area < np.inf:
        raise DataError(
            f"{source}: segment {segment['id']}: area must be a number above 0, is {area!r}"
        )
    return area
