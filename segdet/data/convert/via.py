"""VGG Image Annotator's jsons: an export of annotations, or a whole project; versions 1 and 2."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segdet.data.convert.objects import (
    LabelledImage,
    LabelledObject,
    Labels,
    ellipse,
    number_of,
    rectangle,
)
from segdet.data.defects import located
from segdet.data.image_io import image_size_of
from segdet.data.readers.coco_json import file_below, parse_json
from segdet.errors import DataError

ONLY_CLASS = "object"  # of regions, where the file has no attribute
_WITHOUT_AREA = ("point", "polyline")


def read_via(source: Path, images: Path, attribute: str | None = None) -> Labels:
    """Read a json.

    Source: robots.ox.ac.uk/~vgg/software/via, "VIA annotation file format".

    Args:
        source: the file.
        images: folder of the images, whose sizes the file does not say.
        attribute: of regions, that names their class; None takes the only one that there is.

    Raises:
        DataError: the file or a region cannot be used.
    """
    tree = parse_json(source)
    metadata = tree.get("_via_img_metadata", tree)
    if not isinstance(metadata, dict):
        raise DataError(f"{source}: _via_img_metadata must be an object, is {metadata!r:.80}")
    entries = list(metadata.values())
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("filename"), str):
            raise DataError(f"{source}: is no json of VIA: an entry has no filename")
        if not isinstance(regions := entry.get("regions") or [], list | dict):
            message = f"regions must be a list or an object, is {regions!r:.80}"
            raise DataError(f"{source}: {entry['filename']}: {message}")
    keys = sorted({key for entry in entries for r in _regions(entry) for key in _attributes(r)})
    if attribute is None:
        if len(keys) > 1:
            listed = ", ".join(keys)
            raise DataError(
                f"{source}: regions have the attributes {listed}; give --attribute NAME"
            )
        attribute = keys[0] if keys else None
    elif attribute not in keys:
        raise DataError(f"{source}: no region has the attribute {attribute!r}; there are {keys}")
    left_out: Counter[str] = Counter()
    found = (_read(source, entry, images, attribute, left_out) for entry in entries)
    return Labels(found, left_out=left_out)


def _regions(entry: dict[str, Any]) -> Sequence[Any]:
    """A list; version 1 has a map of numbers to regions."""
    regions = entry.get("regions") or []
    return list(regions.values()) if isinstance(regions, dict) else regions


def _attributes(region: Any) -> dict[str, Any]:
    found = region.get("region_attributes") if isinstance(region, dict) else None
    return found if isinstance(found, dict) else {}


def _read(
    source: Path,
    entry: dict[str, Any],
    images: Path,
    attribute: str | None,
    left_out: Counter[str],
) -> LabelledImage:
    name = entry["filename"]
    try:
        height, width = image_size_of(file_below(str(images), name))
    except DataError as error:
        raise located(source, error) from None
    objects: list[LabelledObject] = []
    for i, region in enumerate(_regions(entry)):
        where = f"{source}: {name}, region {i}"
        try:
            objects += _objects(region, where, attribute, left_out)
        except DataError as error:
            raise located(where, error) from None
    return LabelledImage(name, height, width, objects)


def _objects(
    region: Any, where: str, attribute: str | None, left_out: Counter[str]
) -> Iterator[LabelledObject]:
    """The object of a region; nothing of what has no area."""
    shape = region.get("shape_attributes") if isinstance(region, dict) else None
    kind = shape.get("name") if isinstance(shape, dict) else None
    if not isinstance(shape, dict) or not isinstance(kind, str):
        raise DataError("must have shape_attributes with a name")
    if kind in _WITHOUT_AREA:
        left_out[kind] += 1
        return
    name = ONLY_CLASS if attribute is None else _class_of(_attributes(region), attribute)
    if kind == "polygon":
        xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
        try:
            points = np.array([xs, ys], np.float64).T
        except (TypeError, ValueError, OverflowError):
            points = np.zeros((0, 2))
        if points.ndim != 2 or len(points) < 3:
            message = "all_points_x and all_points_y must be as many numbers, 3 or more"
            raise DataError(message)
        yield LabelledObject(name, where, [points.reshape(-1).tolist()])
    elif kind == "rect":
        x, y, w, h = _numbers(shape, "x", "y", "width", "height")
        yield LabelledObject(name, where, [rectangle(x, y, x + w, y + h)])
    elif kind == "circle":
        x, y, r = _numbers(shape, "cx", "cy", "r")
        yield LabelledObject(name, where, [ellipse(x, y, r, r)])
    elif kind == "ellipse":
        x, y, a, b = _numbers(shape, "cx", "cy", "rx", "ry")
        turn = math.degrees(number_of(shape.get("theta", 0), "theta of an ellipse"))
        yield LabelledObject(name, where, [ellipse(x, y, a, b, turn)])
    else:
        raise DataError(f"a shape {kind!r} is not known")


def _numbers(shape: dict[str, Any], *keys: str) -> list[float]:
    return [number_of(shape.get(key), f"{key} of a {shape['name']}") for key in keys]


def _class_of(attributes: dict[str, Any], attribute: str) -> str:
    """A text, or of a checkbox the only name that is ticked."""
    value = attributes.get(attribute)
    if isinstance(value, dict):
        ticked = [key for key, is_set in value.items() if is_set]
        value = ticked[0] if len(ticked) == 1 else None
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"attribute {attribute!r} names no class, is {attributes.get(attribute)!r}")
    return value.strip()
