"""Which detection finds which object: COCO's rules, with all that happened kept for analysis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask as mask_api

from segdet.evaluation.coco_metrics import MAX_DETECTIONS, with_a_mask_for_all
from segdet.evaluation.coco_records import GroundTruth, Predictions

IOUS = np.linspace(0.5, 0.95, 10)
SIZES = ("all", "small", "medium", "large")
# Pixels of area, both ends included.
SIZE_RANGES = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]], dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Matches:
    """How N detections and G objects of a data set go together.

    Axes: A sizes in the order of `SIZES`, T thresholds in that of `IOUS`. Rows of detections and
    objects are those of `Predictions` and `GroundTruth`.
    """

    truth: GroundTruth  # for "segm" every object has a mask
    found: Predictions  # for "segm" `scores` are those that masks rank by
    kind: str  # "bbox" or "segm"
    # (M,) int64: the detections that count, the best 100 of each image and class; by image, the
    # best first. Those of image i are order[starts[i] : starts[i + 1]].
    order: np.ndarray
    starts: np.ndarray  # (images + 1,) int64
    # (G,) int64, the objects by image; those of image i are object_order[object_starts[i] : ...].
    object_order: np.ndarray
    object_starts: np.ndarray  # (images + 1,) int64
    # One (D, G) float64 an image, in the two orders: IoU of all its detections and objects, of
    # whatever classes; with a crowd, the share of the detection that lies on it.
    overlaps: list[np.ndarray]
    matched: np.ndarray  # (A, T, N) int64: the object found, -1 for none
    ignored: np.ndarray  # (A, T, N) bool: neither hit nor false alarm; all that do not count
    object_ignored: np.ndarray  # (A, G) bool: crowds and those of another size

    def hits(self, size: int = 0) -> np.ndarray:
        """(T, N) bool: the detections that are right."""
        return (self.matched[size] >= 0) & ~self.ignored[size]

    def rows_of(self, image: int) -> tuple[np.ndarray, np.ndarray]:
        """(D,) detections that count and (G,) objects of an image, as in `overlaps`."""
        detections = self.order[self.starts[image] : self.starts[image + 1]]
        return detections, self.object_order[
            self.object_starts[image] : self.object_starts[image + 1]
        ]


def match_detections(
    truth: GroundTruth, found: Predictions, kind: str, *, max_detections: int = MAX_DETECTIONS
) -> Matches:
    """Match as COCO does, at 10 IoUs and for objects of 4 ranges of size.

    Source: cocoapi's COCOeval, `evaluateImg`: from the best detection down, each takes the free
    object of its class with the highest IoU; the last of several equal ones; a crowd, which any
    number may take, only if there is no object to take.

    Args:
        truth: the annotations.
        found: with `boxes` for "bbox", with `masks` for "segm".
        kind: "bbox" or "segm".
        max_detections: the best of an image and class that count.

    Raises:
        ValueError: another kind, or predictions without what it needs.
    """
    given = {"bbox": found.boxes, "segm": found.masks}
    if given.get(kind) is None:
        raise ValueError(f"there is nothing to match by {kind!r}: it must be bbox or segm, given")
    if kind == "segm":
        truth, found = with_a_mask_for_all(truth), found.ranked_by_mask()
    images = np.arange(len(truth.image_ids) + 1)
    order, object_order = _counted(found, max_detections), np.argsort(truth.image, kind="stable")
    starts = np.searchsorted(found.image[order], images)
    object_starts = np.searchsorted(truth.image[object_order], images)
    low, high = SIZE_RANGES.T[:, :, None]
    matches = Matches(
        truth=truth,
        found=found,
        kind=kind,
        order=order,
        starts=starts,
        object_order=object_order,
        object_starts=object_starts,
        overlaps=[],
        matched=np.full((len(SIZES), len(IOUS), len(found)), -1, dtype=np.int64),
        ignored=np.ones((len(SIZES), len(IOUS), len(found)), dtype=bool),
        object_ignored=(truth.areas < low) | (truth.areas > high) | truth.crowd,
    )
    areas = detection_areas(found, kind)[order]
    matches.ignored[:, :, order] = ((areas < low) | (areas > high))[:, None]
    for i in range(len(truth.image_ids)):
        detections, objects = matches.rows_of(i)
        table = _overlaps(truth, found, kind, detections, objects)
        matches.overlaps.append(table)
        _match_image(matches, table, detections, objects)
    return matches


def _counted(found: Predictions, max_detections: int) -> np.ndarray:
    """(M,) the detections that count, by image, the best first; ties keep their order."""
    by_class = np.lexsort((-found.scores, found.category, found.image))  # which is stable
    group = np.stack([found.image[by_class], found.category[by_class]])
    begins = np.flatnonzero(np.any(np.diff(group, prepend=-1), axis=0))
    sizes = np.diff(begins, append=len(by_class))
    rank = np.arange(len(by_class)) - np.repeat(begins, sizes)
    counted = np.sort(by_class[rank < max_detections])
    return counted[np.lexsort((-found.scores[counted], found.image[counted]))]


def detection_areas(found: Predictions, kind: str) -> np.ndarray:
    """(N,) float64 pixels of the masks, or of the boxes."""
    if kind == "segm":
        masks: Any = found.masks
        parts = [mask_api.area(masks[i : i + 100]) for i in range(0, len(masks), 100)]
        return np.concatenate([np.zeros(0), *parts])
    assert found.boxes is not None, "boxes are evaluated"
    return found.boxes[:, 2] * found.boxes[:, 3]


def _overlaps(
    truth: GroundTruth, found: Predictions, kind: str, detections: np.ndarray, objects: np.ndarray
) -> np.ndarray:
    """(D, G) IoU in one image."""
    if len(detections) == 0 or len(objects) == 0:
        return np.zeros((len(detections), len(objects)))
    crowd: Any = truth.crowd[objects].astype(np.uint8).tolist()
    if kind == "bbox":
        assert found.boxes is not None, "boxes are evaluated"
        pair: Any = found.boxes[detections], truth.boxes[objects]
    else:
        masks: Any = found.masks
        height, width = truth.image_sizes[truth.image[objects[0]]].tolist()
        of_objects = [run_lengths(truth.masks[g], height, width) for g in objects]
        pair = [masks[d] for d in detections], of_objects
    return np.asarray(mask_api.iou(pair[0], pair[1], crowd))


def run_lengths(mask: Any, height: int, width: int) -> Any:
    """Compressed RLE of polygons or of an RLE."""
    if not isinstance(mask, list):
        return mask
    return mask_api.merge(mask_api.frPyObjects(mask, height, width))


def _match_image(
    matches: Matches, overlap: np.ndarray, detections: np.ndarray, objects: np.ndarray
) -> None:
    """Write down, class by class, what the (D,) detections of an image find of (G,) objects."""
    category, classes = matches.truth.category[objects], matches.found.category[detections]
    for one in np.intersect1d(classes, category):
        rows, columns = np.flatnonzero(classes == one), np.flatnonzero(category == one)
        own, finders = objects[columns], detections[rows]
        ignored = matches.object_ignored[:, own]
        table = overlap[np.ix_(rows, columns)]
        chosen = _match(table, ignored, matches.truth.crowd[own])  # (A, T, D)
        hit = chosen >= 0
        matches.matched[:, :, finders] = np.where(hit, own[chosen], -1)
        of_ignored = np.take_along_axis(ignored[:, None], chosen.clip(0), axis=2)
        matches.ignored[:, :, finders] = np.where(hit, of_ignored, matches.ignored[:, :, finders])


def _match(overlap: np.ndarray, ignored: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """The column that each detection takes.

    Args:
        overlap: (D, G) of one image and class, the best detection first.
        ignored: (A, G) bool.
        crowd: (G,) bool.

    Returns:
        (A, T, D) int64, -1 for none.
    """
    least = np.minimum(IOUS, 1 - 1e-10)[:, None]
    taken = np.zeros((len(SIZES), len(IOUS), overlap.shape[1]), dtype=bool)
    chosen = np.full((len(SIZES), len(IOUS), len(overlap)), -1, dtype=np.int64)
    sizes, ious = np.ogrid[: len(SIZES), : len(IOUS)]
    last = overlap.shape[1] - 1
    for d, row in enumerate(overlap):
        if row.max() < IOUS[0]:
            continue
        free = (row >= least) & ~taken  # (A, T, G)
        real = free & ~ignored[:, None]  # beats a region to ignore, however high that one's IoU
        worth = np.where(np.where(real.any(2, keepdims=True), real, free), row, -1)
        best = last - worth[:, :, ::-1].argmax(2)
        hit = free[sizes, ious, best]
        chosen[:, :, d] = np.where(hit, best, -1)
        taken[sizes, ious, best] |= hit & ~crowd[best]
    return chosen
