"""LVIS files under a name: detectron2's functions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from segdet.data.builtin import BUILTIN, LvisFiles
from segdet.data.catalog import DatasetCatalog, MetadataCatalog
from segdet.data.coco_classes import coco_instances_metadata
from segdet.data.readers.lvis_json import read_lvis_categories, read_lvis_json
from segdet.errors import DataError

__all__ = ["get_lvis_instances_meta", "load_lvis_json", "register_lvis_instances"]


def load_lvis_json(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    dataset_name: str | None = None,
    extra_annotation_keys: list[str] | None = None,
) -> list[dict[str, Any]]:
    """Load an LVIS json as standard dicts, sorted by image id.

    Args:
        json_file: the annotations, of v0.5 or v1.
        image_root: COCO's folder, which holds train2017, val2017 and test2017.
        dataset_name: set the classes, their counts and frequencies in this name's metadata.
        extra_annotation_keys: further keys of annotations to keep.

    Raises:
        DataError: as `load_coco_json`.
    """
    data = read_lvis_json(json_file, image_root, extra_annotation_keys=extra_annotation_keys or ())
    if dataset_name is not None:
        MetadataCatalog.get(dataset_name).set(**data.metadata)
    return data.records


def register_lvis_instances(
    name: str,
    metadata: dict[str, Any],
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
) -> None:
    """Name an LVIS json so that configs can use it.

    Args:
        name: the new name.
        metadata: further facts for `MetadataCatalog.get(name)`; may be {}.
        json_file: the annotations; read when the data set is first asked for.
        image_root: COCO's folder.
    """
    json_file, image_root = os.fspath(json_file), os.fspath(image_root)
    DatasetCatalog.register(name, lambda: load_lvis_json(json_file, image_root, name))
    MetadataCatalog.get(name).set(
        json_file=json_file, image_root=image_root, evaluator_type="lvis", **metadata
    )


def get_lvis_instances_meta(dataset_name: str) -> dict[str, Any]:
    """The classes of an LVIS version.

    Args:
        dataset_name: what it contains decides: "cocofied" (COCO's classes), "v0.5" or "v1".

    Returns:
        `thing_classes`, for LVIS's own also `class_image_count`: from the version's annotation
        files, of which one must lie at its built-in place.

    Raises:
        DataError: an unknown version, or none of its files is there.
    """
    if "cocofied" in dataset_name:
        return coco_instances_metadata()
    version = next((one for one in ("lvis_v0.5", "lvis_v1") if one in dataset_name), None)
    if version is None:
        raise DataError(f"{dataset_name!r} names no version of LVIS; known: lvis_v0.5, lvis_v1")
    sets = {name: files for name, files in BUILTIN.items() if name.startswith(version)}
    places = [
        files.metadata()["json_file"]
        for name, files in sorted(sets.items(), reverse=True)  # val, small, before train
        if isinstance(files, LvisFiles) and "cocofied" not in name
    ]
    for place in places:
        if Path(place).is_file():
            return read_lvis_categories(place)
    raise DataError(f"the classes of {version} stand in its files, and none is at {places[0]}")
