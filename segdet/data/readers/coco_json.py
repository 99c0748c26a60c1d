"""Reads a COCO instance file into detectron2's standard dicts, refusing what training cannot use.

docs/data.md states each rule; training code behind this reader may rely on them.
"""

from __future__ import annotations

import gc
import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdet.data.defects import Defect, Drop, located
from segdet.data.image_io import image_size_of
from segdet.data.limits import check_file
from segdet.data.readers.coco_annotation import read_annotation, whole_number
from segdet.data.tar_shards import is_shards, member_path
from segdet.errors import DataError

logger = logging.getLogger("segdet.data")


@dataclass(frozen=True, kw_only=True)
class CocoFile:
    """What a COCO instance file holds."""

    records: list[dict[str, Any]]  # standard dicts, sorted by image id
    metadata: dict[str, Any]  # thing_classes, thing_dataset_id_to_contiguous_id


def read_coco_json(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    *,
    extra_annotation_keys: Iterable[str] = (),
) -> CocoFile:
    """Read a COCO json of instances (boxes, polygons, RLE, keypoints).

    Args:
        json_file: the annotations; a file without the key "annotations" gives records without it.
        image_root: the folder that `file_name` is relative to and may not leave; "" takes every
            `file_name` as it stands.
        extra_annotation_keys: further keys of an annotation to copy into its record.

    Returns:
        The records and metadata. Annotations that are well formed but useless (an empty box,
        an empty mask) are left out, with one counted warning per reason.

    Raises:
        DataError: the file, or one record in it, is not what it should be.
    """
    # Garbage collection among millions of new objects adds half to the time (27 s -> 42 s).
    with paused_gc():
        file = Path(json_file)
        return read_tree(file, parse_json(file), str(image_root), tuple(extra_annotation_keys))


@contextmanager
def paused_gc() -> Iterator[None]:
    """No garbage collection in this context."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def read_tree(
    file: Path, tree: dict[str, Any], image_root: str, extra_annotation_keys: tuple[str, ...]
) -> CocoFile:
    """What `read_coco_json` does once the file is parsed.

    Args:
        file: for messages.
        tree: its content.
        image_root: as there.
        extra_annotation_keys: as there.
    """
    id_map, names = read_categories(file, rows_of(file, tree, "categories"))
    images = read_images(file, rows_of(file, tree, "images"), image_root)
    if "annotations" in tree:
        annotations = rows_of(file, tree, "annotations")
        _attach_annotations(file, annotations, images, id_map, extra_annotation_keys)
    records = in_order_of_ids(file, images)
    metadata = {"thing_classes": names, "thing_dataset_id_to_contiguous_id": id_map}
    return CocoFile(records=records, metadata=metadata)


def in_order_of_ids(file: Path, images: dict[Any, dict[str, Any]]) -> list[dict[str, Any]]:
    """The records by image id.

    Raises:
        DataError: ids that cannot be compared.
    """
    try:
        return [images[image_id] for image_id in sorted(images)]
    except TypeError:
        message = f"{file}: image ids are partly numbers, partly text; use one"
        raise Defect("ids-of-two-kinds", message, "id") from None


def parse_json(file: Path) -> dict[str, Any]:
    """The object that an annotation file holds.

    Raises:
        DataError: it cannot be read, or is none.
    """
    try:
        check_file(file)
        tree = json.loads(file.read_bytes(), object_pairs_hook=unique_keys)
    except OSError as error:
        message = f"{file}: cannot be read ({error.strerror or error})"
        raise Defect("file-unreadable", message) from None
    except Defect as error:
        raise located(file, error) from None
    except RecursionError:
        message = f"{file}: is nested too deeply for an annotation file"
        raise Defect("json-invalid", message) from None
    except ValueError as error:  # JSONDecodeError says line and column; or a broken encoding
        raise Defect("json-invalid", f"{file}: is not valid JSON ({error})") from None
    if not isinstance(tree, dict):
        hint = "; a results file is no ground truth" if isinstance(tree, list) else ""
        raise Defect(
            "wrong-type",
            f"{file}: must be an object with images, annotations and categories, "
            f"is {_kind(tree)}{hint}",
        )
    return tree


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a json; refuses a key that it has twice."""
    record = dict(pairs)
    if len(record) != len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise Defect("key-twice", f"an object has the key {key!r} twice; keep one", key)
    return record


def _kind(value: Any) -> str:
    return {list: "a list", dict: "an object", str: "text", type(None): "null"}.get(
        type(value), f"{value!r}"
    )


def rows_of(file: Path, tree: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """A list of objects in the file's object.

    Raises:
        DataError: it is missing or is none.
    """
    if key not in tree:
        message = f"{file}: has no key {key!r} (it has {', '.join(tree) or 'none'})"
        raise Defect("key-missing", message, key)
    rows = tree[key]
    if not isinstance(rows, list):
        raise Defect("wrong-type", f"{file}: {key!r} must be a list, is {_kind(rows)}", key)
    for i, row in enumerate(rows):
        try:
            check_row(row)
        except Defect as error:
            raise Defect(error.kind, f"{file}: {key}[{i}] {error}", key) from None
    return rows


def check_row(row: Any) -> None:
    """Refuse what is no object."""
    if type(row) is not dict:
        raise Defect("wrong-type", f"must be an object, is {_kind(row)}")


_ROWS = {"categories": "category", "images": "image", "annotations": "annotation"}


def name_of(row: dict[str, Any], table: str, number: int) -> str:
    """What messages call a row: by its id, or by its place where it has none."""
    named = isinstance(row.get("id"), int | float | str)
    return f"{_ROWS[table]} {row['id']}" if named else f"{table}[{number}]"


def read_categories(file: Path, rows: list[dict]) -> tuple[dict[int, int], list[str]]:
    """Dataset id -> contiguous id, and names by contiguous id; both in order of the ids.

    Raises:
        DataError: an id or a name is missing, or an id occurs twice.
    """
    names: dict[int, str] = {}
    for i, row in enumerate(rows):
        try:
            category_id, name = read_category_row(row, names)
        except DataError as error:
            raise located(f"{file}: {name_of(row, 'categories', i)}", error) from None
        names[category_id] = name
    twice = [name for name, n in Counter(names.values()).items() if n > 1]
    if twice:
        logger.warning("%s: categories share the name %s", file, ", ".join(map(repr, twice)))
    order = sorted(names)
    return {category_id: k for k, category_id in enumerate(order)}, [names[i] for i in order]


def read_category_row(row: dict[str, Any], known: Container[int]) -> tuple[int, str]:
    """Id and name of a category; `known` are the ids before it."""
    category_id = whole_number(row.get("id"), "id")
    if category_id in known:
        raise Defect("id-twice", f"two categories have the id {category_id}", "id")
    if not isinstance(row.get("name"), str):
        raise Defect("name-invalid", f"name must be text, is {row.get('name')!r}", "name")
    return category_id, row["name"]


def read_images(file: Path, rows: list[dict], root: str) -> dict[int | str, dict[str, Any]]:
    """Id -> standard dict without annotations.

    Raises:
        DataError: an id, a file name or a size cannot be used.
    """
    images: dict[int | str, dict[str, Any]] = {}
    for i, row in enumerate(rows):
        try:
            image_id = read_image_id(row, images)
            images[image_id] = _read_image(row, image_id, root)
        except DataError as error:
            raise located(f"{file}: {name_of(row, 'images', i)}", error) from None
    return images


def read_image_id(row: dict[str, Any], known: Container[int | str]) -> int | str:
    """The id of an image; `known` are the ids before it."""
    image_id = row.get("id")
    if not isinstance(image_id, str):
        image_id = whole_number(image_id, "id")
    if image_id in known:
        raise Defect("id-twice", f"two images have the id {image_id}", "id")
    return image_id


def _read_image(row: dict[str, Any], image_id: int | str, root: str) -> dict[str, Any]:
    path = file_below(root, row.get("file_name"))
    size = read_size(row, path)
    height, width = image_size_of(path) if size is None else size
    return {"file_name": path, "height": height, "width": width, "image_id": image_id}


def read_size(row: dict[str, Any], path: str) -> tuple[int, int] | None:
    """(height, width) that a row says; None where it says none. `path` is for messages."""
    if row.get("width") is None and row.get("height") is None:
        return None
    height = whole_number(row.get("height"), "height")
    width = whole_number(row.get("width"), "width")
    if height < 1 or width < 1:
        raise Defect(
            "size-invalid",
            f"width and height must be >= 1, are {width} and {height} ({path})",
            "width, height",
        )
    return height, width


def file_below(root: str, name: Any) -> str:
    """The path of a `file_name` below a folder; with "" as the folder, the name as it stands.

    A folder may be tar files, see `tar_shards.member_path`.

    Raises:
        DataError: it is no text, or leaves the folder.
    """
    if not isinstance(name, str) or not name:
        raise Defect("file-name-invalid", f"file_name must be text, is {name!r}", "file_name")
    if root and (os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir):
        raise Defect(
            "file-name-outside",
            f"file_name {name!r} leaves the image folder {root}; make it relative to that folder, "
            'or give "" as the folder to take paths as they stand',
            "file_name",
        )
    return (
        member_path(root, os.path.normpath(name)) if is_shards(root) else os.path.join(root, name)
    )


def _attach_annotations(
    file: Path,
    rows: list[dict],
    images: dict[int | str, dict[str, Any]],
    id_map: dict[int, int],
    extra_keys: tuple[str, ...],
) -> None:
    """Give each image record its list `annotations`, in file order."""
    for record in images.values():
        record["annotations"] = []
    places: defaultdict[str, list[str]] = defaultdict(list)  # remark -> the annotations
    ids: set[int] = set()
    for i, row in enumerate(rows):
        where = name_of(row, "annotations", i)
        remarks: list[Defect] = []
        try:
            annotation_id = read_annotation_id(row, remarks)
            if annotation_id in ids and not may_repeat_ids(file):
                raise id_twice()
            if annotation_id is not None:
                ids.add(annotation_id)
            image = image_of(row, images)
            record = read_annotation(row, image, id_map, remarks)
            record.update({key: row[key] for key in extra_keys if key in row})
            image["annotations"].append(record)
        except Drop as drop:
            remarks.append(drop)
        except DataError as error:
            raise located(f"{file}: {where}", error) from None
        for remark in remarks:
            places[str(remark)].append(where)
    for remark, where in places.items():
        shown = ", ".join(where[:5]) + (", ..." if len(where) > 5 else "")
        logger.warning("%s: %d x %s (%s)", file, len(where), remark, shown)


def read_annotation_id(row: dict[str, Any], remarks: list[Defect]) -> int | None:
    """The id of an annotation, None where it has none."""
    if "id" in row:
        return whole_number(row["id"], "id")
    remarks.append(Defect("id-missing", "annotation without id", "id"))
    return None


def may_repeat_ids(file: Path) -> bool:
    """Whether annotations of a file may have the same id: the official minival split's do."""
    return "minival" in file.name


def id_twice() -> Defect:
    """What is said of an annotation whose id another one has."""
    return Defect("id-twice", "another annotation has the same id", "id")


def image_of(row: dict, images: dict[int | str, dict[str, Any]]) -> dict[str, Any]:
    """The record of the image that an annotation belongs to.

    Raises:
        DataError: there is none.
    """
    image_id = row.get("image_id")
    if not isinstance(image_id, str):
        image_id = whole_number(image_id, "image_id")
    if image_id not in images:
        message = f"image_id {image_id!r} is no image of this file"
        raise Defect("image-unknown", message, "image_id")
    return images[image_id]
