"""CVAT's export "CVAT for images 1.1": one XML of all images."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

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
from segdet.data.limits import check_image
from segdet.data.readers.pascal_voc import parse_xml
from segdet.errors import DataError

_SHAPES = ("polygon", "box", "ellipse", "mask")
_WITHOUT_AREA = ("polyline", "points", "cuboid", "skeleton", "tag")


def read_cvat(source: Path) -> Labels:
    """Read an `annotations.xml`; shapes with one `group_id` and label are one object.

    Source: docs.cvat.ai, "CVAT for image 1.1", annotations format.

    Args:
        source: the file.

    Raises:
        DataError: it is none, or a shape in it cannot be used.
    """
    tree = parse_xml(source)
    if tree.tag != "annotations" or tree.find("track") is not None:
        raise DataError(f'{source}: is no export "CVAT for images 1.1" (of a video, export frames)')
    names = [node.text or "" for node in tree.iterfind("meta//labels/label/name")]
    left_out: Counter[str] = Counter()
    images = (_read(source, node, left_out) for node in tree.iterfind("image"))
    return Labels(images, list(dict.fromkeys(names)), left_out)


def _read(source: Path, node: ElementTree.Element, left_out: Counter[str]) -> LabelledImage:
    name = node.get("name")
    where = f"{source}: image {node.get('id')}"
    if not name:
        raise DataError(f"{where}: has no name")
    try:
        height, width = (int(v) for v in _numbers(node, "height", "width"))
        if min(height, width) < 1:
            raise DataError(f"height and width must be >= 1, are {height} and {width}")
        check_image(width, height)
    except DataError as error:
        raise located(where, error) from None
    objects = join_groups(_objects(node, where, (height, width), left_out))
    return LabelledImage(name, height, width, objects)


def _objects(
    image: ElementTree.Element, where: str, size: tuple[int, int], left_out: Counter[str]
) -> Iterator[tuple[str | None, LabelledObject]]:
    for i, node in enumerate(image):
        if node.tag in _WITHOUT_AREA:
            left_out[node.tag] += 1
        elif node.tag in _SHAPES:
            place, group = f"{where}: shape {i}", node.get("group_id", "0")
            try:
                made = _object(node, place, size)
            except DataError as error:
                raise located(place, error) from None
            yield None if group == "0" else group, made


def _object(node: ElementTree.Element, where: str, size: tuple[int, int]) -> LabelledObject:
    name = node.get("label")
    if not name:
        raise DataError(f"a {node.tag} has no label")
    if node.tag == "box":
        x0, y0, x1, y1 = _numbers(node, "xtl", "ytl", "xbr", "ybr")
        turn, polygon = _rotation(node), rectangle(x0, y0, x1, y1)
        return LabelledObject(name, where, [_turned(polygon, turn) if turn else polygon])
    if node.tag == "ellipse":
        x, y, a, b = _numbers(node, "cx", "cy", "rx", "ry")
        return LabelledObject(name, where, [ellipse(x, y, a, b, _rotation(node))])
    if node.tag == "mask":
        return LabelledObject(name, where, mask=_mask(node, *size))
    pairs = [pair.split(",") for pair in node.get("points", "").split(";")]
    try:
        points = np.array(pairs, np.float64).reshape(-1, 2)
    except ValueError:
        points = np.zeros((0, 2))
    if len(points) < 3 or {len(pair) for pair in pairs} != {2}:
        raise DataError(
            f"points of a polygon must be x,y;x,y;x,y..., are {node.get('points')!r:.80}"
        )
    return LabelledObject(name, where, [points.reshape(-1).tolist()])


def _numbers(node: ElementTree.Element, *keys: str) -> list[float]:
    return [number_of(node.get(key), f"{key} of a {node.tag}") for key in keys]


def _rotation(node: ElementTree.Element) -> float:
    """Degrees."""
    return number_of(node.get("rotation", "0"), f"rotation of a {node.tag}")


def _turned(polygon: list[float], degrees: float) -> list[float]:
    """A polygon turned around its centre, from x to y."""
    points = np.reshape(polygon, (-1, 2))
    centre, turn = points.mean(0), math.radians(degrees)
    matrix = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    return ((points - centre) @ matrix + centre).reshape(-1).tolist()


def _mask(node: ElementTree.Element, height: int, width: int) -> np.ndarray:
    """The mask of a node: runs of background and foreground in turn, row by row of its box."""
    x, y, w, h = (int(v) for v in _numbers(node, "left", "top", "width", "height"))
    try:
        runs = [int(word) for word in node.get("rle", "").split(",")]
    except ValueError:
        raise DataError(f"rle of a mask must be numbers, is {node.get('rle')!r:.80}") from None
    if min(x, y, w, h) < 0 or x + w > width or y + h > height:
        raise DataError(f"a mask of {w} x {h} at {x}, {y} does not fit the image")
    if min(runs) < 0 or sum(runs) != w * h:
        raise DataError(f"rle of a mask must be {w} x {h} pixels, is {sum(runs)}")
    mask = np.zeros((height, width), bool)
    bits = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    mask[y : y + h, x : x + w] = bits.reshape(h, w)
    return mask
