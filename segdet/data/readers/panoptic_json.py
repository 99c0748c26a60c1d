"""Reads COCO panoptic annotation: a json of segments, and pictures of their ids.

docs/data.md states each rule.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segdet.data.defects import Defect, located
from segdet.data.readers.coco_annotation import whole_number
from segdet.data.readers.coco_json import (
    CocoFile,
    file_below,
    image_of,
    in_order_of_ids,
    parse_json,
    paused_gc,
    read_categories,
    read_images,
    rows_of,
)
from segdet.data.rle import encode_rle, tight_box
from segdet.data.segment_ids import ID_LIMIT, read_segment_ids
from segdet.data.sem_seg import IGNORE_LABEL, check_size_of_map, labels_of_segments
from segdet.errors import DataError
from segdet.structures import BoxMode

logger = logging.getLogger("segdet.data")

_THINGS_COLOR = [82, 18, 128]


def read_panoptic_json(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    panoptic_root: str | os.PathLike[str],
    *,
    separated: bool = True,
    with_objects: bool = False,
) -> CocoFile:
    """Read a COCO panoptic json.

    Args:
        json_file: the annotations.
        image_root: the folder that the images' `file_name` is relative to.
        panoptic_root: the folder that the annotations' `file_name` is relative to.
        separated: number things and stuff apart, as `separated_metadata` does; otherwise
            together, as `standard_metadata`.
        with_objects: read the pictures too, for `annotations` with masks (RLE) of the things.

    Returns:
        Records with `pan_seg_file_name` and `segments_info`: rows of `id`, `category_id`
        (contiguous), `isthing`, `iscrowd`, `sem_seg_label`, and the file's `bbox` and `area`;
        where there is none, the record has `sem_seg_label`, which is to ignore.

    Raises:
        DataError: the file, a record in it or a picture is not what it should be.
    """
    file = Path(json_file)
    with paused_gc():
        tree = parse_json(file)
        categories = read_panoptic_categories(file, tree)
        metadata = (separated_metadata if separated else standard_metadata)(categories)
        images = read_images(file, rows_of(file, tree, "images"), str(image_root))
        segmented = _read_annotations(file, tree, images, str(panoptic_root), metadata, separated)
    if lacking := len(images) - len(segmented):
        logger.warning("%s: left out %d images without annotation", file, lacking)
    records = in_order_of_ids(file, segmented)
    if with_objects:
        for record, objects in zip(records, _objects_of(file, records), strict=True):
            record["annotations"] = objects
    return CocoFile(records=records, metadata=metadata)


def read_panoptic_categories(file: Path, tree: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a file's categories, checked.

    Raises:
        DataError: an id, a name or `isthing` is missing or wrong.
    """
    rows = rows_of(file, tree, "categories")
    read_categories(file, rows)
    for row in rows:
        try:
            check_isthing(row)
        except Defect as error:
            raise located(f"{file}: category {row['id']} ({row['name']})", error) from None
    return rows


def check_isthing(row: dict[str, Any]) -> None:
    """Refuse a category that is neither things nor stuff."""
    if row.get("isthing") not in (0, 1):
        message = f"isthing must be 1 for things and 0 for stuff, is {row.get('isthing')!r}"
        raise Defect("isthing-invalid", message, "isthing")


def separated_metadata(categories: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Things and stuff numbered apart, as Panoptic FPN wants them.

    Args:
        categories: rows of `id`, `name`, `isthing`, maybe `color`.

    Returns:
        Things are 0, 1, ... in the order of their ids, as an instance json has them; the i-th
        stuff of the list is i + 1, and 0 is "things" as a whole.
    """
    things = sorted((row for row in categories if row["isthing"]), key=lambda row: row["id"])
    stuff = [row for row in categories if not row["isthing"]]
    if len(stuff) >= 255:
        message = f"label maps have room for 254 classes of stuff, there are {len(stuff)}"
        raise Defect("too-many-classes", message)
    no_category = min([0, *(row["id"] - 1 for row in categories)])  # 0, unless a class has that
    metadata = {
        "thing_classes": [row["name"] for row in things],
        "thing_dataset_id_to_contiguous_id": {row["id"]: k for k, row in enumerate(things)},
        "stuff_classes": ["things", *(_short(row["name"]) for row in stuff)],
        "stuff_dataset_id_to_contiguous_id": {
            no_category: 0,
            **{row["id"]: k for k, row in enumerate(stuff, 1)},
        },
    }
    if all("color" in row for row in categories):
        metadata["thing_colors"] = [list(row["color"]) for row in things]
        metadata["stuff_colors"] = [_THINGS_COLOR, *(list(row["color"]) for row in stuff)]
    return metadata


def _short(name: str) -> str:
    return name.removesuffix("-merged").removesuffix("-other")


def standard_metadata(categories: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Things and stuff numbered together, in the order of the list.

    Args:
        categories: as for `separated_metadata`.

    Returns:
        `thing_classes` and `stuff_classes` are both all names; the maps of ids tell them apart.
    """
    if len(categories) > 255:
        message = f"label maps have room for 255 classes, there are {len(categories)}"
        raise Defect("too-many-classes", message)
    names = [row["name"] for row in categories]
    place = {row["id"]: k for k, row in enumerate(categories)}
    isthing = {row["id"]: bool(row["isthing"]) for row in categories}
    metadata = {
        "thing_classes": names,
        "stuff_classes": list(names),
        "thing_dataset_id_to_contiguous_id": {i: k for i, k in place.items() if isthing[i]},
        "stuff_dataset_id_to_contiguous_id": {i: k for i, k in place.items() if not isthing[i]},
    }
    if all("color" in row for row in categories):
        colors = [list(row["color"]) for row in categories]
        metadata |= {"thing_colors": colors, "stuff_colors": list(colors)}
    return metadata


def _read_annotations(
    file: Path,
    tree: dict[str, Any],
    images: dict[int | str, dict[str, Any]],
    root: str,
    metadata: dict[str, Any],
    separated: bool,
) -> dict[int | str, dict[str, Any]]:
    """The images' records that are annotated, with their segments."""
    segmented = {}
    for i, row in enumerate(rows_of(file, tree, "annotations")):
        try:
            image = image_of(row, images)
        except DataError as error:
            raise located(f"{file}: annotations[{i}]", error) from None
        image_id = image["image_id"]
        try:
            if image_id in segmented:
                raise Defect("annotated-twice", "has two annotations", "image_id")
            picture = read_picture_name(row, root)
            segments = read_segments(row.get("segments_info"), metadata, separated)
        except DataError as error:
            raise located(f"{file}: image {image_id}", error) from None
        segmented[image_id] = image | {
            "pan_seg_file_name": picture,
            "segments_info": segments,
        }
        if not segments:
            segmented[image_id]["sem_seg_label"] = IGNORE_LABEL
    return segmented


def read_picture_name(row: dict[str, Any], root: str) -> str:
    """The picture of an annotation's segments, in the folder `root`."""
    picture = file_below(root, row.get("file_name"))
    if not os.path.isfile(picture):
        raise Defect("file-missing", f"{picture} does not exist", "file_name")
    return picture


def read_segments(rows: Any, metadata: dict[str, Any], separated: bool) -> list[dict[str, Any]]:
    """The `segments_info` of an image, checked, with contiguous classes.

    Args:
        rows: as in the file.
        metadata: from `separated_metadata` or `standard_metadata`.
        separated: which of the two.

    Raises:
        DataError: a row breaks a rule; the message names the segment and the field.
    """
    rows, ids = segment_rows(rows), set()
    return [read_segment(row, metadata, separated, ids) for row in rows]


def segment_rows(rows: Any) -> list[dict[str, Any]]:
    """The rows of `segments_info`; refuses what is no list of objects."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        message = f"segments_info must be a list of objects, is {rows!r:.80}"
        raise Defect("wrong-type", message, "segments_info")
    return rows


def read_segment(
    row: dict[str, Any], metadata: dict[str, Any], separated: bool, known: set[int]
) -> dict[str, Any]:
    """One row of `segments_info`; adds its id to those before it, `known`."""
    segment_id = whole_number(row.get("id"), "the id of a segment")
    if not 0 < segment_id < ID_LIMIT:
        message = f"the id of a segment must be in [1, {ID_LIMIT}), is {segment_id}"
        raise Defect("segment-id-invalid", message, "segments_info")
    if segment_id in known:
        raise Defect("id-twice", f"two segments have the id {segment_id}", "segments_info")
    known.add(segment_id)
    category_id = whole_number(row.get("category_id"), f"segment {segment_id}: category_id")
    isthing = category_id in metadata["thing_dataset_id_to_contiguous_id"]
    ids = metadata[f"{'thing' if isthing else 'stuff'}_dataset_id_to_contiguous_id"]
    if category_id not in ids:
        message = f"segment {segment_id}: category_id {category_id} is no category of this file"
        raise Defect("category-unknown", message, "segments_info")
    if row.get("iscrowd", 0) not in (0, 1):
        message = f"segment {segment_id}: iscrowd must be 0 or 1, is {row['iscrowd']!r}"
        raise Defect("iscrowd-invalid", message, "segments_info")
    return {
        "id": segment_id,
        "category_id": ids[category_id],
        "isthing": isthing,
        "iscrowd": int(row.get("iscrowd", 0)),
        "sem_seg_label": 0 if separated and isthing else ids[category_id],
        **{key: row[key] for key in ("bbox", "area") if key in row},
    }


_last_objects: dict[Any, bytes] = {}  # what was read -> pickled objects; of the last file alone


def _objects_of(file: Path, records: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The things of each record as annotations.

    An evaluation asks for a data set several times, and decoding its pictures takes long: what
    was read last is kept, for as long as rows and pictures stay as they are.
    """
    rows, state = hashlib.sha256(), []
    for record in records:
        rows.update(repr(sorted(record.items())).encode())
        picture = os.stat(record["pan_seg_file_name"])
        state.append((picture.st_mtime_ns, picture.st_size))
    key = rows.digest(), *state
    if key not in _last_objects:
        _last_objects.clear()
        objects = []
        for record in records:
            try:
                objects.append(_objects(record))
            except DataError as error:
                raise DataError(f"{file}: image {record['image_id']}: {error}") from None
        _last_objects[key] = pickle.dumps(objects)
    return pickle.loads(_last_objects[key])


def _objects(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The things of a record as annotations, with their masks."""
    file, segments = record["pan_seg_file_name"], record["segments_info"]
    ids = read_segment_ids(file)
    check_size_of_map(file, ids, record)
    labels_of_segments(file, ids, segments)  # refuses a picture that the rows do not fit
    return [_object(ids == row["id"], row) for row in segments if row["isthing"]]


def _object(mask: np.ndarray, segment: dict[str, Any]) -> dict[str, Any]:
    box = tight_box(mask)
    assert box is not None, "each segment has a pixel"
    return {
        "iscrowd": segment["iscrowd"],
        "category_id": segment["category_id"],
        "bbox": [float(v) for v in box],
        "bbox_mode": BoxMode.XYXY_ABS,
        "segmentation": encode_rle(mask),
    }
