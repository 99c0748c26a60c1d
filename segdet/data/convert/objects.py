"""Labelled images on their way from a tool's format into a COCO json."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segdet.data.readers.coco_annotation import MAX_COORDINATE
from segdet.data.rle import encode_rle, tight_box
from segdet.errors import DataError
from segdet.structures import polygon_area
from segdet.utils.writing import write_text_atomically

Polygon = list[float]  # x, y, x, y, ... in pixels
_FINITE = f"finite and at most {MAX_COORDINATE:g}"


@dataclass
class LabelledObject:
    """An object of one class: polygons, or a mask, or a box alone."""

    name: str  # of its class
    where: str  # the file, and the line or shape in it
    polygons: list[Polygon] = field(default_factory=list)
    mask: np.ndarray | None = None  # (H, W) bool, of the image's size
    box: tuple[float, float, float, float] | None = None  # XYXY, where there is no mask

    def __post_init__(self) -> None:
        for numbers in (*self.polygons, self.box or ()):
            if not (np.abs(numbers) <= MAX_COORDINATE).all():  # NaN neither
                worst = next(value for value in numbers if not abs(value) <= MAX_COORDINATE)
                raise DataError(f"coordinates must be {_FINITE}, one is {worst}")


@dataclass
class LabelledImage:
    """An image and its objects."""

    file_name: str  # below the folder of images
    height: int
    width: int
    objects: list[LabelledObject]


@dataclass
class Labels:
    """What a reader of a tool's files gives."""

    images: Iterable[LabelledImage]
    # In the order of their ids; () takes the classes that occur, by name.
    classes: Sequence[str] = ()
    left_out: Counter[str] = field(default_factory=Counter)  # kinds of shapes without an area


def coco_of(labels: Labels) -> dict[str, Any]:
    """The COCO json of labelled images.

    Ids count from 1. Polygons stay as they are, masks become RLE; boxes and areas are those of the
    mask, cut to the image.

    Raises:
        DataError: two images have one name, or an object is of another class than is listed.
    """
    images, annotations, names = [], [], []
    seen: set[str] = set()
    first_of: dict[str, str] = {}  # class -> where it is first
    for number, image in enumerate(labels.images, 1):
        if image.file_name in seen:
            raise DataError(f"two labels are of one image, {image.file_name}")
        seen.add(image.file_name)
        size = {"width": image.width, "height": image.height}
        images.append({"id": number, "file_name": image.file_name, **size})
        for one in image.objects:
            shape = _shape_of(one, image)
            annotations.append({"id": len(annotations) + 1, "image_id": number, **shape})
            names.append(one.name)
            first_of.setdefault(one.name, one.where)
    classes = list(labels.classes) or sorted(set(names))
    ids = {name: k for k, name in enumerate(classes, 1)}
    if unknown := [name for name in first_of if name not in ids]:
        where, listed = first_of[unknown[0]], ", ".join(classes)
        raise DataError(f"{where}: is of the class {unknown[0]!r}, listed are {listed}")
    for row, name in zip(annotations, names, strict=True):
        row["category_id"] = ids[name]
    categories = [{"id": k, "name": name} for name, k in ids.items()]
    return {"images": images, "categories": categories, "annotations": annotations}


def _shape_of(one: LabelledObject, image: LabelledImage) -> dict[str, Any]:
    """`bbox`, `area`, `iscrowd` and `segmentation` of an object."""
    if one.mask is not None:
        x0, y0, x1, y1 = tight_box(one.mask) or (0, 0, 0, 0)
        area = float(np.count_nonzero(one.mask))
        segmentation: Any = encode_rle(one.mask)
    elif one.polygons:
        points = np.concatenate([np.reshape(part, (-1, 2)) for part in one.polygons])
        (x0, y0), (x1, y1) = points.min(0).tolist(), points.max(0).tolist()
        area = sum(polygon_area(np.asarray(part)) for part in one.polygons)
        segmentation = one.polygons
    else:
        assert one.box is not None, "an object has a shape"
        x0, y0, x1, y1 = one.box
        area, segmentation = (x1 - x0) * (y1 - y0), []
    x0, x1 = (min(max(x, 0), image.width) for x in (x0, x1))
    y0, y1 = (min(max(y, 0), image.height) for y in (y0, y1))
    shape = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": area, "iscrowd": 0}
    return {**shape, "segmentation": segmentation}


def number_of(value: Any, what: str) -> float:
    """A coordinate, length or angle, also from its text.

    Raises:
        DataError: it is none; the message begins with `what`.
    """
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= MAX_COORDINATE:
        raise DataError(f"{what} must be a number, {_FINITE}, is {value!r:.80}")
    return number


def ellipse(x: float, y: float, a: float, b: float, degrees: float = 0) -> Polygon:
    """A polygon of the area of an ellipse, about as long as a pixel from corner to corner.

    Args:
        x: centre, in pixels.
        y: likewise.
        a: half axis, along x before the turn.
        b: the other one.
        degrees: turn, from x to y.
    """
    corners = int(min(max(math.tau * max(a, b), 12), 360))
    angle = np.linspace(0, math.tau, corners, endpoint=False)
    # Corners on the ellipse itself would make its area smaller.
    grown = math.sqrt(math.tau / corners / math.sin(math.tau / corners))
    turn, (u, v) = math.radians(degrees), (a * grown * np.cos(angle), b * grown * np.sin(angle))
    points = np.stack(
        [x + u * math.cos(turn) - v * math.sin(turn), y + u * math.sin(turn) + v * math.cos(turn)],
        axis=1,
    )
    return points.reshape(-1).tolist()


def rectangle(x0: float, y0: float, x1: float, y1: float) -> Polygon:
    """The polygon of a box."""
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def join_groups(objects: Iterable[tuple[Any, LabelledObject]]) -> list[LabelledObject]:
    """Shapes with the same group and class as one object; those of the group None stay alone."""
    groups: dict[Any, LabelledObject] = {}
    joined = []
    for group, one in objects:
        first = groups.get((group, one.name))
        if group is None or first is None:
            joined.append(one)
            groups[group, one.name] = one
        elif one.mask is not None and first.mask is not None:
            first.mask = first.mask | one.mask
        elif one.mask is None and first.mask is None:
            first.polygons += one.polygons
        else:
            raise DataError(f"{one.where}: its group is partly polygons, partly a mask")
    return joined


def write_coco(tree: dict[str, Any], file: Path) -> None:
    """Write a COCO json."""
    write_text_atomically(file, json.dumps(tree, allow_nan=False))
