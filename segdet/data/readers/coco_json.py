"""Reads a COCO instance file into detectron2's standard dicts, refusing what training cannot use.

docs/data.md states each rule; training code behind this reader may rely on them.
"""

from __future__ import annotations

import gc
import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdet.data.image_io import image_size_of
from segdet.data.readers.coco_annotation import Drop, read_annotation, whole_number
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
        raise DataError(f"{file}: image ids are partly numbers, partly text; use one") from None


def parse_json(file: Path) -> dict[str, Any]:
    """The object that an annotation file holds.

    Raises:
        DataError: it cannot be read, or is none.
    """
    try:
        tree = json.loads(file.read_bytes(), object_pairs_hook=_unique_keys)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from None
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    except RecursionError:
        raise DataError(f"{file}: is nested too deeply for an annotation file") from None
    except ValueError as error:  # JSONDecodeError says line and column; or a broken encoding
        raise DataError(f"{file}: is not valid JSON ({error})") from None
    if not isinstance(tree, dict):
        hint = "; a results file is no ground truth" if isinstance(tree, list) else ""
        raise DataError(
            f"{file}: must be an object with images, annotations and categories, "
            f"is {_kind(tree)}{hint}"
        )
    return tree


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise DataError(f"an object has the key {key!r} twice; keep one")
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
        raise DataError(f"{file}: has no key {key!r} (it has {', '.join(tree) or 'none'})")
    rows = tree[key]
    if not isinstance(rows, list):
        raise DataError(f"{file}: {key!r} must be a list, is {_kind(rows)}")
    for i, row in enumerate(rows):
        if type(row) is not dict:
            raise DataError(f"{file}: {key}[{i}] must be an object, is {_kind(row)}")
    return rows


def read_categories(file: Path, rows: list[dict]) -> tuple[dict[int, int], list[str]]:
    """Dataset id -> contiguous id, and names by contiguous id; both in order of the ids.

    Raises:
        DataError: an id or a name is missing, or an id occurs twice.
    """
    names: dict[int, str] = {}
    for i, row in enumerate(rows):
        try:
            category_id = whole_number(row.get("id"), "id")
        except DataError as error:
            raise DataError(f"{file}: categories[{i}]: {error}") from None
        if category_id in names:
            raise DataError(f"{file}: two categories have the id {category_id}")
        if not isinstance(row.get("name"), str):
            raise DataError(
                f"{file}: category {category_id}: name must be text, is {row.get('name')!r}"
            )
        names[category_id] = row["name"]
    twice = [name for name, n in Counter(names.values()).items() if n > 1]
    if twice:
        logger.warning("%s: categories share the name %s", file, ", ".join(map(repr, twice)))
    order = sorted(names)
    return {category_id: k for k, category_id in enumerate(order)}, [names[i] for i in order]


def read_images(file: Path, rows: list[dict], root: str) -> dict[int | str, dict[str, Any]]:
    """Id -> standard dict without annotations.

    Raises:
        DataError: an id, a file name or a size cannot be used.
    """
    images: dict[int | str, dict[str, Any]] = {}
    for i, row in enumerate(rows):
        image_id = row.get("id")
        try:
            if not isinstance(image_id, str):
                image_id = whole_number(image_id, "id")
        except DataError as error:
            raise DataError(f"{file}: images[{i}]: {error}") from None
        if image_id in images:
            raise DataError(f"{file}: two images have the id {image_id}")
        try:
            images[image_id] = _read_image(row, image_id, root)
        except DataError as error:
            raise DataError(f"{file}: image {image_id}: {error}") from None
    return images


def _read_image(row: dict[str, Any], image_id: int | str, root: str) -> dict[str, Any]:
    path = file_below(root, row.get("file_name"))
    if row.get("width") is None and row.get("height") is None:
        height, width = image_size_of(path)
    else:
        height, width = (
            whole_number(row.get("height"), "height"),
            whole_number(row.get("width"), "width"),
        )
    if height < 1 or width < 1:
        raise DataError(f"width and height must be >= 1, are {width} and {height} ({path})")
    return {"file_name": path, "height": height, "width": width, "image_id": image_id}


def file_below(root: str, name: Any) -> str:
    """The path of a `file_name` below a folder; with "" as the folder, the name as it stands.

    Raises:
        DataError: it is no text, or leaves the folder.
    """
    if not isinstance(name, str) or not name:
        raise DataError(f"file_name must be text, is {name!r}")
    if root and (os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir):
        raise DataError(
            f"file_name {name!r} leaves the image folder {root}; make it relative to that folder, "
            'or give "" as the folder to take paths as they stand'
        )
    return os.path.join(root, name)


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
        where = f"annotation {row['id']}" if "id" in row else f"annotations[{i}]"
        remarks = [] if "id" in row else ["annotation without id"]
        try:
            if "id" in row:
                annotation_id = whole_number(row["id"], "id")
                # The official minival split repeats ids.
                if annotation_id in ids and "minival" not in file.name:
                    raise DataError("another annotation has the same id")
                ids.add(annotation_id)
            image = image_of(row, images)
            record = read_annotation(row, image, id_map, remarks)
            record.update({key: row[key] for key in extra_keys if key in row})
            image["annotations"].append(record)
        except Drop as drop:
            remarks.append(str(drop))
        except DataError as error:
            raise DataError(f"{file}: {where}: {error}") from None
        for remark in remarks:
            places[remark].append(where)
    for remark, where in places.items():
        shown = ", ".join(where[:5]) + (", ..." if len(where) > 5 else "")
        logger.warning("%s: %d x %s (%s)", file, len(where), remark, shown)


def image_of(row: dict, images: dict[int | str, dict[str, Any]]) -> dict[str, Any]:
    """The record of the image that an annotation belongs to.

    Raises:
        DataError: there is none.
    """
    image_id = row.get("image_id")
    if not isinstance(image_id, str):
        image_id = whole_number(image_id, "image_id")
    if image_id not in images:
        raise DataError(f"image_id {image_id!r} is no image of this file")
    return images[image_id]
