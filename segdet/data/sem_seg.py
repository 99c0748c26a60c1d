"""Semantic label maps: read from files, or made from panoptic pictures on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from segdet.data.defects import Defect
from segdet.data.image_io import read_labels
from segdet.data.segment_ids import read_segment_ids

IGNORE_LABEL = 255
LABEL_KEYS = (  # of a record, that `read_sem_seg` looks at
    *("sem_seg_file_name", "pan_seg_file_name", "segments_info", "sem_seg_label"),
    *("height", "width"),
)


def has_sem_seg(record: dict[str, Any]) -> bool:
    """Whether `read_sem_seg` finds labels: a file of them, or segments that say theirs."""
    return "sem_seg_file_name" in record or "sem_seg_label" in _first_segment(record)


def _first_segment(record: dict[str, Any]) -> dict[str, Any]:
    """The record itself where all is void: its reader says there whether its set has labels."""
    if "pan_seg_file_name" not in record or "segments_info" not in record:
        return {}
    return next(iter(record["segments_info"]), record)


def read_sem_seg(record: dict[str, Any]) -> np.ndarray:
    """The semantic label map of a record for which `has_sem_seg` holds.

    Args:
        record: a standard dict with `sem_seg_file_name`; or with `pan_seg_file_name` and
            `segments_info`, whose rows have `id` and `sem_seg_label` (without rows the record
            itself has it: the label of all that is void).

    Returns:
        (H, W) integers, `IGNORE_LABEL` where there is none.

    Raises:
        DataError: the file cannot be used, or is not of the size that the record says.
    """
    from_file = "sem_seg_file_name" in record
    file = record["sem_seg_file_name" if from_file else "pan_seg_file_name"]
    labels = read_labels(file) if from_file else read_segment_ids(file)
    check_size_of_map(file, labels, record)
    return labels if from_file else labels_of_segments(file, labels, record["segments_info"])


def check_size_of_map(file: str, labels: np.ndarray, record: dict[str, Any]) -> None:
    """Compare a map with the size in its record, where that has one.

    Raises:
        DataError: they differ.
    """
    height, width = labels.shape
    known = record.get("width", width), record.get("height", height)
    if known != (width, height):
        raise Defect(
            "map-size",
            f"{file}: the map is {width} x {height} (width x height), its picture is "
            f"{known[0]} x {known[1]}",
        )


def labels_of_segments(
    file: str, ids: np.ndarray, segments: Sequence[dict[str, Any]]
) -> np.ndarray:
    """The semantic label of each pixel of a panoptic map; where it has no segment, it is ignored.

    Args:
        file: of the map, for messages.
        ids: (H, W) segment ids, 0 for none.
        segments: rows with `id` and `sem_seg_label`.

    Returns:
        (H, W) uint8.

    Raises:
        DataError: the map has a segment that the rows lack, or lacks one of theirs.
    """
    label_of = {0: IGNORE_LABEL} | {row["id"]: row["sem_seg_label"] for row in segments}
    known = np.array(sorted(label_of))
    place = np.searchsorted(known, ids).clip(max=len(known) - 1)
    unknown = ids[known[place] != ids]
    if len(unknown):
        message = f"{file}: has pixels of segment {unknown[0]}, which segments_info lacks"
        raise Defect("segment-unknown", message, "segments_info")
    absent = known[np.bincount(place.reshape(-1), minlength=len(known)) == 0]
    if absent.any():
        message = f"{file}: segment {absent.max()} of segments_info has no pixel"
        raise Defect("segment-without-pixels", message, "segments_info")
    return np.array([label_of[one] for one in known.tolist()], np.uint8)[place]
