"""Reads an LVIS file (v0.5 or v1): COCO's format, and for each image what was looked for in it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from segdet.data.defects import Defect, located
from segdet.data.readers.coco_annotation import whole_number
from segdet.data.readers.coco_json import CocoFile, parse_json, paused_gc, read_tree, rows_of
from segdet.errors import DataError

# Source: LVIS (arXiv:1908.03195), section 3.1: verified absent, and present but not all marked.
FEDERATED_KEYS = ("neg_category_ids", "not_exhaustive_category_ids")
FREQUENCIES = ("r", "c", "f")  # rare, common, frequent


def read_lvis_json(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    *,
    extra_annotation_keys: Iterable[str] = (),
) -> CocoFile:
    """Read an LVIS json by the rules of `read_coco_json`.

    Args:
        json_file: the annotations.
        image_root: COCO's folder; images lie in its folders train2017, val2017, test2017, as
            their `coco_url` says. An image without one is found by its `file_name`.
        extra_annotation_keys: further keys of an annotation to copy into its record.

    Returns:
        Records that also have `neg_category_ids` and `not_exhaustive_category_ids` (ids of the
        file), and metadata that also has `class_image_count` (rows of `id` and `image_count`) and
        `class_frequency` ("r", "c" or "f" by class), where the file tells.

    Raises:
        DataError: the file, or one record in it, is not what it should be.
    """
    file = Path(json_file)
    with paused_gc():
        tree = parse_json(file)
        categories = rows_of(file, tree, "categories")
        images = rows_of(file, tree, "images")
        name_categories(categories)
        for row in images:
            name_image(row)
        data = read_tree(file, tree, str(image_root), tuple(extra_annotation_keys))
    id_map = data.metadata["thing_dataset_id_to_contiguous_id"]
    listed = {row["id"]: row for row in images}
    for record in data.records:
        row = listed[record["image_id"]]
        for key in FEDERATED_KEYS:
            try:
                record[key] = read_class_ids(row, key, id_map)
            except DataError as error:
                raise located(f"{file}: image {record['image_id']}", error) from None
    data.metadata.update(_counts(file, categories))
    return data


def read_lvis_categories(json_file: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata that `read_lvis_json` gives, of the categories alone.

    Raises:
        DataError: the file cannot be read, or has no categories.
    """
    file = Path(json_file)
    with paused_gc():
        categories = rows_of(file, parse_json(file), "categories")
    name_categories(categories)
    tree = {"images": [], "categories": categories}
    return read_tree(file, tree, "", ()).metadata | _counts(file, categories)


def name_categories(rows: list[dict[str, Any]]) -> None:
    """Give each category its first synonym as its name, as detectron2 does."""
    for row in rows:
        synonyms = row.get("synonyms")
        if isinstance(synonyms, list) and synonyms:
            row["name"] = synonyms[0]


def name_image(row: dict[str, Any]) -> None:
    """Give an image the path below COCO's folder that its address ends with."""
    url = row.get("coco_url")
    if isinstance(url, str) and url.count("/"):
        row["file_name"] = "/".join(url.split("/")[-2:])


def read_class_ids(row: dict[str, Any], key: str, id_map: dict[int, int]) -> list[int]:
    """One of `FEDERATED_KEYS` of an image's row: ids of categories."""
    values = row.get(key, [])
    if not isinstance(values, list):
        message = f"{key} must be a list of category ids, is {values!r:.80}"
        raise Defect("wrong-type", message, key)
    ids = [whole_number(value, key) for value in values]
    if unknown := [one for one in ids if one not in id_map]:
        message = f"{key} holds {unknown[0]}, which is no category of this file"
        raise Defect("category-unknown", message, key)
    return ids


def _counts(file: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How often each class is seen; nothing where the file does not say it of all."""
    rows = sorted(rows, key=lambda row: row["id"])
    known: dict[str, Any] = {}
    if rows and all("image_count" in row for row in rows):
        known["class_image_count"] = [
            {"id": row["id"], "image_count": row["image_count"]} for row in rows
        ]
    if rows and all("frequency" in row for row in rows):
        for row in rows:
            try:
                check_frequency(row)
            except Defect as error:
                raise located(f"{file}: category {row['id']}", error) from None
        known["class_frequency"] = [row["frequency"] for row in rows]
    return known


def check_frequency(row: dict[str, Any]) -> None:
    """Refuse a category of another frequency than `FREQUENCIES`."""
    if row["frequency"] not in FREQUENCIES:
        message = f"frequency must be one of {', '.join(FREQUENCIES)}, is {row['frequency']!r}"
        raise Defect("frequency-invalid", message, "frequency")
