"""Panoptic and semantic annotation: jsons of segments, and pictures of ids and labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segdet.data.check.findings import Checked, Findings, Picture
from segdet.data.check.json_parts import whole
from segdet.data.check.shapes import APART
from segdet.data.check.tables import NamedRow, Tables
from segdet.data.check.work import spread
from segdet.data.defects import Defect
from segdet.data.image_io import image_size_of, read_labels
from segdet.data.readers.coco_json import image_of
from segdet.data.readers.panoptic_json import (
    check_isthing,
    read_picture_name,
    read_segment,
    segment_rows,
    separated_metadata,
    standard_metadata,
)
from segdet.data.readers.sem_seg_folder import files_below, read_class_names
from segdet.data.rle import tight_box
from segdet.data.segment_ids import read_segment_ids
from segdet.data.sem_seg import IGNORE_LABEL, check_size_of_map, labels_of_segments


class SegmentMap(NamedTuple):
    """A picture of segments, and what its json says of it."""

    record: str
    path: str
    size: dict[str, int]  # "width" and "height" of its image; {} where unknown
    segments: list[dict[str, Any]]  # rows as a reader gives them
    is_whole: bool  # whether these are all rows


def check_panoptic(
    json_file: Path,
    image_root: str,
    panoptic_root: str,
    *,
    separated: bool = True,
    photos: Mapping[Any, str] | None = None,
    open_images: bool = True,
    workers: int = 1,
) -> Checked:
    """Check a panoptic json and its pictures of segments; other pictures are listed.

    Args:
        json_file: the annotations.
        image_root: the folder of the images.
        panoptic_root: the folder of the pictures of segments.
        separated: the form that it is read in, see `read_panoptic_json`.
        photos: image id -> picture, where the json does not name them.
        open_images: open the pictures of segments.
        workers: processes.
    """
    try:
        tables = Tables(json_file, image_root, whole(json_file), sizes_from_files=open_images)
    except Defect as error:
        findings = Findings(json_file)
        findings.take(error)
        return Checked(str(json_file), findings)
    if tables.read():
        if photos is not None:
            _name_photos(tables, photos)
        try:
            metadata = _number_classes(tables, separated)
            annotations = tables.table("annotations")
        except Defect as error:
            tables.findings.take(error)
            return tables.checked()
        maps = list(_read_annotations(tables, annotations, metadata, panoptic_root, separated))
        if open_images:
            what = f"{json_file.name}: segments"
            for found in spread(_open_segments, json_file, maps, workers=workers, what=what):
                tables.findings.extend(found)
    return tables.checked()


def _name_photos(tables: Tables, photos: Mapping[Any, str]) -> None:
    tables.pictures = []
    for image_id, image in tables.images.items():
        if image_id in photos:
            size = image["height"], image["width"]
            tables.pictures.append(Picture(image["record"], photos[image_id], size))
        else:
            tables.findings.add("image-unknown", image["record"], "there is no picture of it", "id")


def _number_classes(tables: Tables, separated: bool) -> dict[str, Any]:
    rows = []
    for record, row in tables.categories:
        known = len(tables.findings)
        tables.attempt(record, check_isthing, row)
        rows.append(row if len(tables.findings) == known else row | {"isthing": 1})
    return (separated_metadata if separated else standard_metadata)(rows)


def _read_annotations(
    tables: Tables,
    annotations: Sequence[NamedRow],
    metadata: dict[str, Any],
    panoptic_root: str,
    separated: bool,
) -> Iterator[SegmentMap]:
    """Check the rows; gives those whose picture is there."""
    contiguous = metadata["thing_dataset_id_to_contiguous_id"]
    things = {k: tables.category_ids[one] for one, k in contiguous.items()}
    annotated: set[int | str] = set()
    columns: list[tuple[int, int, float]] = []
    for i, (_, row) in enumerate(annotations):
        image = tables.attempt(f"annotations[{i}]", image_of, row, tables.images)
        if image is None:
            continue
        record = image["record"]
        if record in annotated:
            tables.findings.add("annotated-twice", record, "has two annotations", "image_id")
            continue
        annotated.add(record)
        path = tables.attempt(record, read_picture_name, row, panoptic_root)
        rows = tables.attempt(record, segment_rows, row.get("segments_info"))
        ids: set[int] = set()
        known = metadata, separated, ids
        read = [tables.attempt(record, read_segment, one, *known) for one in rows or ()]
        segments = [one for one in read if one is not None]
        for one in segments:
            tables.summary.crowds += one["iscrowd"]
            if one["isthing"] and not one["iscrowd"]:
                columns.append((image["number"], things[one["category_id"]], _area_of(one)))
        if path is not None:
            size = {k: image[k] for k in ("width", "height") if image[k] != math.inf}
            is_whole = rows is not None and len(segments) == len(rows)
            yield SegmentMap(record, path, size, segments, is_whole)
    if columns:
        image_numbers, classes, areas = zip(*columns, strict=True)
        tables.summary.with_mask = len(columns)
        tables.summary.count_objects(
            np.array(image_numbers), np.array(classes), np.array(areas, np.float64)
        )
    for image in tables.images.values():
        if image["record"] not in annotated:
            message = "no annotation is of this image"
            tables.findings.add("image-without-annotation", image["record"], message)


def _area_of(segment: dict[str, Any]) -> float:
    area = segment.get("area")
    return float(area) if isinstance(area, int | float) and 0 <= area < math.inf else 0.0


def _open_segments(json_file: Path, map_: SegmentMap) -> Findings:
    findings = Findings(json_file)
    try:
        ids = read_segment_ids(map_.path)
        check_size_of_map(map_.path, ids, map_.size)
        if map_.is_whole:  # otherwise what is missing has been named
            labels_of_segments(map_.path, ids, map_.segments)
    except Defect as error:
        findings.take(error, map_.record)
        return findings
    for segment in map_.segments:
        mask = ids == segment["id"]
        if mask.any():
            _compare_segment(mask, segment, map_.record, findings)
    return findings


def _compare_segment(
    mask: np.ndarray, segment: dict[str, Any], record: str, findings: Findings
) -> None:
    """The file's bbox and area against the picture."""
    x0, y0, x1, y1 = tight_box(mask) or (0, 0, 0, 0)
    box, area, name = segment.get("bbox"), segment.get("area"), f"segment {segment['id']}"
    real = [x0, y0, x1 - x0, y1 - y0]
    if isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box):
        allowed = max(APART[0], APART[1] * max(real[2:]))
        if max(abs(a - b) for a, b in zip(box, real, strict=True)) > allowed:
            message = f"{name}: bbox is {box}, its pixels lie in {real} (x, y, width, height)"
            findings.add("box-off-its-mask", record, message, "segments_info")
    if isinstance(area, int | float) and abs(area - mask.sum()) > max(32, 0.1 * mask.sum()):
        message = f"{name}: area is {area:g}, it has {mask.sum()} pixels"
        findings.add("area-off-its-mask", record, message, "segments_info")


class LabelMap(NamedTuple):
    """A label map and its picture."""

    record: str  # their name without suffix
    path: str
    image_path: str


def check_sem_seg(
    sem_seg_root: str,
    image_root: str,
    classes: str,
    *,
    open_images: bool = True,
    workers: int = 1,
) -> Checked:
    """Check folders of label maps and pictures; the pictures are listed.

    Args:
        sem_seg_root: folder of the label maps.
        image_root: folder of the pictures.
        classes: the file that names the classes.
        open_images: open the label maps.
        workers: processes.
    """
    checked = Checked(f"{sem_seg_root}:{image_root}")
    findings = Findings(sem_seg_root)
    try:
        checked.summary.classes = read_class_names(classes)["stuff_classes"]
    except Defect as error:
        findings.take(error)
    try:
        labels, images = files_below(sem_seg_root), files_below(image_root)
    except Defect as error:
        findings.take(error)
        checked.findings = findings
        return checked
    for files, others, partner in ((labels, images, "picture"), (images, labels, "label map")):
        for stem in sorted(files.keys() - others.keys()):
            findings.add("partner-missing", stem, f"{files[stem]} has no {partner}")
    stems = sorted(labels.keys() & images.keys())
    if not stems:
        findings.add("nothing-pairs", "", f"no label map has the name of a picture in {image_root}")
    checked.pictures = [Picture(stem, images[stem], None) for stem in stems]
    checked.summary.images = len(stems)
    if open_images:
        maps = [LabelMap(stem, labels[stem], images[stem]) for stem in stems]
        context = sem_seg_root, checked.summary.classes
        done = spread(_open_labels, context, maps, workers=workers, what="label maps")
        for found, pixels in done:
            findings += found
            checked.summary.pixels_of_class.update(pixels)
            checked.summary.images_of_class.update(pixels.keys())
    checked.findings = findings
    return checked


def _open_labels(
    context: tuple[str, Sequence[str]], map_: LabelMap
) -> tuple[Findings, Counter[int]]:
    """What is wrong with a label map, and the pixels of each class."""
    root, classes = context
    findings, pixels = Findings(root), Counter()
    try:
        labels = read_labels(map_.path)
        values, counts = np.unique(labels, return_counts=True)
        pixels = Counter(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        pixels.pop(IGNORE_LABEL, None)
        unknown = [value for value in pixels if value >= len(classes)]
        for value in unknown if classes else ():
            message = f"{map_.path}: label {value} is no class, there are {len(classes)}"
            findings.add("label-unknown", map_.record, message)
            del pixels[value]
        height, width = image_size_of(map_.image_path)
        check_size_of_map(map_.path, labels, {"height": height, "width": width})
    except Defect as error:
        if error.kind not in ("image-missing", "image-unreadable") or map_.path in str(error):
            findings.take(error, map_.record)  # the picture itself is opened elsewhere
    return findings, pixels
