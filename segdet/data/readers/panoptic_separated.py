"""Reads the data of Panoptic FPN: things as objects, stuff as label maps, from where they are."""

from __future__ import annotations

import os
from typing import Any

from segdet.data.readers.coco_json import CocoFile, read_coco_json
from segdet.data.readers.panoptic_json import read_panoptic_json
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
) -> CocoFile:
    """Read objects and label maps.

    Args:
        image_root: folder of the pictures.
        panoptic_json: COCO panoptic; not read where the two other sources are there.
        panoptic_root: its folder of segment pictures.
        instances_json: a COCO json of the things; "" takes them from the segments.
        sem_seg_root: folder of label maps, 0 for all things; where it is absent they are made
            from the segments as they are needed.

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
        return objects
    panoptic = read_panoptic_json(panoptic_json, image_root, panoptic_root)
    key = "thing_dataset_id_to_contiguous_id"
    if objects.metadata[key] != panoptic.metadata[key]:
        raise DataError(
            f"{instances_json} has the categories {list(objects.metadata[key])}, the things of "
            f"{panoptic_json} are {list(panoptic.metadata[key])}"
        )
    segmented = {record["image_id"]: record for record in panoptic.records}
    for record in objects.records:
        if record["image_id"] not in segmented:
            raise DataError(
                f"{panoptic_json}: image {record['image_id']} of {instances_json} has no annotation"
            )
        for one in ("pan_seg_file_name", "segments_info"):
            record[one] = segmented[record["image_id"]][one]
    return CocoFile(records=objects.records, metadata=panoptic.metadata)


def read_stuff_only(
    image_root: Path, panoptic_json: Path, panoptic_root: Path, *, sem_seg_root: Path = ""
) -> CocoFile:
    """Read label maps alone; arguments as for `read_panoptic_separated`."""
    if os.path.isdir(sem_seg_root):
        return CocoFile(records=read_sem_seg_folder(sem_seg_root, image_root), metadata={})
    return read_panoptic_json(panoptic_json, image_root, panoptic_root)


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
