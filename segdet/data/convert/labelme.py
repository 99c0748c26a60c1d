"""LabelMe's files: a json for each image, beside it or elsewhere."""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image

from segdet.data.convert.objects import (
    LabelledImage,
    LabelledObject,
    Labels,
    ellipse,
    join_groups,
    number_of,
    rectangle,
)
from segdet.data.defects import located
from segdet.data.image_io import image_size_of
from segdet.data.readers.coco_json import parse_json
from segdet.errors import DataError

_WITHOUT_AREA = ("point", "points", "line", "linestrip")


def read_labelme(source: Path, images: Path) -> Labels:
    """Read a folder of jsons; shapes with one `group_id` and label are one object.

    Source: github.com/wkentaro/labelme, `labelme/label_file.py` and its shape types.

    Args:
        source: the folder, searched below too.
        images: folder of the images; each json names its own by `imagePath`.

    Raises:
        DataError: a json cannot be used, or its image is not there.
    """
    files = sorted(source.rglob("*.json"))
    if not files:
        raise DataError(f"{source} has no json of LabelMe")
    left_out: Counter[str] = Counter()
    return Labels((_read(file, images, left_out) for file in files), left_out=left_out)


def _read(file: Path, images: Path, left_out: Counter[str]) -> LabelledImage:
    tree = parse_json(file)
    path, shapes = tree.get("imagePath"), tree.get("shapes")
    if not isinstance(path, str) or not isinstance(shapes, list):
        raise DataError(f"{file}: is no file of LabelMe: it has no imagePath and shapes")
    name = _find(path, file, images)
    height, width = image_size_of(images / name)
    known = tree.get("imageHeight") or height, tree.get("imageWidth") or width
    if known != (height, width):
        message = f"imageHeight and imageWidth are {known[0]} and {known[1]}, the picture's are"
        raise DataError(f"{file}: {message} {height} and {width}")
    objects = []
    for i, shape in enumerate(shapes):
        where = f"{file}: shapes[{i}]"
        try:
            objects += _objects(shape, where, (height, width), left_out)
        except DataError as error:
            raise located(where, error) from None
    return LabelledImage(str(name), height, width, join_groups(objects))


def _find(path: str, file: Path, images: Path) -> Path:
    """The image below its folder; LabelMe writes the path from the json to it."""
    parts = PureWindowsPath(path).parts
    beside, root = (file.parent / Path(*parts)).resolve(), images.resolve()
    if beside.is_file() and beside.is_relative_to(root):
        return beside.relative_to(root)
    for name in (Path(*parts), Path(*parts[-1:])):
        if ".." not in name.parts and (images / name).is_file():
            return name
    raise DataError(f"{file}: imagePath {path!r} is not in {images}")


def _objects(
    shape: Any, where: str, size: tuple[int, int], left_out: Counter[str]
) -> Iterator[tuple[Any, LabelledObject]]:
    """Group and object of a shape; nothing of what has no area."""
    try:
        name, kind = shape["label"], shape.get("shape_type") or "polygon"
        points = np.asarray(shape["points"], np.float64).reshape(-1, 2)
        (x0, y0), (x1, y1) = points[0], points[-1]
    except (TypeError, KeyError, ValueError, IndexError, OverflowError):
        raise DataError("must have a label, and points [x, y]") from None
    if not isinstance(name, str):
        raise DataError(f"label must be text, is {name!r:.80}")
    for value in (points.min(), points.max()):  # NaN, if there is one
        number_of(float(value), "a coordinate of points")
    group = shape.get("group_id")
    if isinstance(group, list | dict):
        raise DataError(f"group_id must be a number or text, is {group!r:.80}")
    if kind == "polygon" and len(points) >= 3:
        yield group, LabelledObject(name, where, [points.reshape(-1).tolist()])
    elif kind == "rectangle" and len(points) in (2, 4):
        low, high = points.min(0).tolist(), points.max(0).tolist()
        yield group, LabelledObject(name, where, [rectangle(*low, *high)])
    elif kind == "circle" and len(points) == 2:
        radius = math.hypot(x1 - x0, y1 - y0)
        yield group, LabelledObject(name, where, [ellipse(x0, y0, radius, radius)])
    elif kind == "mask" and len(points) == 2:
        yield group, LabelledObject(name, where, mask=_mask(shape.get("mask"), points, *size))
    elif kind in _WITHOUT_AREA:
        left_out[kind] += 1
    else:
        raise DataError(f"a shape of type {kind!r} with {len(points)} points is not known")


def _mask(text: Any, points: np.ndarray, height: int, width: int) -> np.ndarray:
    """The mask of a shape, which is a PNG of its box."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(text))) as image:
            part = np.asarray(image.convert("L")) > 0
    except Exception as error:  # decoders raise whatever they like
        raise DataError(f"its mask is no PNG ({type(error).__name__}: {error})") from None
    x, y = (int(v) for v in points.min(0))
    mask = np.zeros((height, width), bool)
    if min(x, y) < 0 or y + part.shape[0] > height or x + part.shape[1] > width:
        raise DataError(f"its mask of {part.shape[1]} x {part.shape[0]} at {x}, {y} does not fit")
    mask[y : y + part.shape[0], x : x + part.shape[1]] = part
    return mask
