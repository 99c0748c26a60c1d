"""Reads the data of Panoptic FPN: things as objects, stuff as label maps, from where they are."""

from __future__ import annotations

import os
from pathlib import Path as File
from typing import Any

from segdet.data.readers.coco_json import CocoFile, parse_json, read_coco_json
from segdet.data.readers.panoptic_json import (
    read_panoptic_categories,
    read_panoptic_json,
    separated_metadata,
)
from segdet.data.readers.sem_seg_folder import read_sem_seg_folder
from segdet.errors import DataError

Path = str | os.PathLike[str]


def read_panoptic_separated(
    image_root: Path,
    panoptic_json: Path,
    panoptic_root: Path,
    *,
    instances_json: Path = "",
    sem_seg_root: Path = "",
    with_classes: bool = True,
) -> CocoFile:
    """Read objects and label maps.

    Args:
        image_root: folder of the pictures.
        panoptic_json: COCO panoptic; of it only the classes count where the two other sources are
            there.
        panoptic_root: its folder of segment pictures.
        instances_json: a COCO json of the things; "" takes them from the segments.
        sem_seg_root: folder of label maps, 0 for all things; where it is absent they are made
            from the segments as they are needed.
        with_classes: False if they are known: a file is not read for them alone.

    Returns:
        Records with `annotations`, and what `read_sem_seg` makes label maps of.

    Raises:
        DataError: a file cannot be used, or they do not belong together.
    """
    maps = _label_maps(sem_seg_root, image_root)
    if not instances_json:
        data = read_panoptic_json(panoptic_json, image_root, panoptic_root, with_objects=True)
        for record in data.records if maps else ():
            record["sem_seg_file_name"] = _partner(maps, record, sem_seg_root)
        return data
    objects = read_coco_json(instances_json, image_root)
    if maps:
        for record in objects.records:
            record["sem_seg_file_name"] = _partner(maps, record, sem_seg_root)
        if not with_classes:
            return objects
        metadata = _read_classes(panoptic_json)
        _check_things(instances_json, objects.metadata, panoptic_json, metadata)
        return CocoFile(records=objects.records, metadata=metadata)
    panoptic = read_panoptic_json(panoptic_json, image_root, panoptic_root)
    _check_things(instances_json, objects.metadata, panoptic_json, panoptic.metadata)
    segmented = {record["image_id"]: record for record in panoptic.records}
    for record in objects.records:
        if record["image_id"] not in segmented:
            raise DataError(
                f"{panoptic_json}: image {record['image_id']} of {instances_json} has no annotation"
            )
        record |= {
            key: value
            for key, value in segmented[record["image_id"]].items()
            if key in ("pan_seg_file_name", "segments_info", "sem_seg_label")
        }
    return CocoFile(records=objects.records, metadata=panoptic.metadata)


def read_stuff_only(
    image_root: Path,
    panoptic_json: Path,
    panoptic_root: Path,
    *,
    sem_seg_root: Path = "",
    with_classes: bool = True,
) -> CocoFile:
    """Read label maps alone; arguments as for `read_panoptic_separated`."""
    if os.path.isdir(sem_seg_root):
        metadata = _read_classes(panoptic_json) if with_classes else {}
        return CocoFile(records=read_sem_seg_folder(sem_seg_root, image_root), metadata=metadata)
    return read_panoptic_json(panoptic_json, image_root, panoptic_root)


def _read_classes(panoptic_json: Path) -> dict[str, Any]:
    file = File(panoptic_json)
    return separated_metadata(read_panoptic_categories(file, parse_json(file)))


def _check_things(
    instances_json: Path, objects: dict[str, Any], panoptic_json: Path, metadata: dict[str, Any]
) -> None:
    key = "thing_dataset_id_to_contiguous_id"
    if objects[key] != metadata[key]:
        raise DataError(
            f"{instances_json} has the categories {list(objects[key])}, the things of "
            f"{panoptic_json} are {list(metadata[key])}"
        )


def _label_maps(sem_seg_root: Path, image_root: Path) -> dict[str, str]:
    """Picture -> label map; empty where there is no such folder."""
    if not os.path.isdir(sem_seg_root):
        return {}
    pairs = read_sem_seg_folder(sem_seg_root, image_root)
    return {pair["file_name"]: pair["sem_seg_file_name"] for pair in pairs}


def _partner(maps: dict[str, str], record: dict[str, Any], sem_seg_root: Path) -> str:
    if record["file_name"] not in maps:
        raise DataError(f"{record['file_name']} has no label map in {sem_seg_root}")
    return maps[record["file_name"]]
