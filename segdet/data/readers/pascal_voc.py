"""Reads Pascal VOC's layout: a folder of pictures, one of XML files, lists of names."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdet.data.defects import Defect, located
from segdet.data.limits import check_file
from segdet.errors import DataError
from segdet.structures import BoxMode

# Source: the VOC2007 development kit, in its own order.
CLASS_NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)


@dataclass(frozen=True, kw_only=True)
class VocObject:
    """One `<object>` of an annotation file."""

    name: str  # of its class
    box: tuple[float, float, float, float]  # xmin, ymin, xmax, ymax; pixel indices from 1, incl.
    difficult: bool


@dataclass(frozen=True, kw_only=True)
class VocAnnotation:
    """An annotation file."""

    height: int
    width: int
    objects: list[VocObject]


def load_voc_instances(
    dirname: str | os.PathLike[str], split: str, class_names: Sequence[str] = CLASS_NAMES
) -> list[dict[str, Any]]:
    """Read a split as standard dicts, in the order of its list.

    Boxes become XYXY with the pixel (1, 1) of the files at 0; objects marked difficult are kept,
    as in detectron2.

    Args:
        dirname: holds `Annotations`, `ImageSets/Main` and `JPEGImages`.
        split: "train", "test", "val" or "trainval": a list of that name is there.
        class_names: `category_id` is the place in it.

    Raises:
        DataError: a file is missing or broken, or an object is of another class.
    """
    classes = {name: k for k, name in enumerate(class_names)}
    records = []
    for name in read_split(dirname, split):
        file = annotation_file(dirname, name)
        annotation = read_voc_annotation(file)
        records.append(
            {
                "file_name": os.path.join(dirname, "JPEGImages", f"{name}.jpg"),
                "image_id": name,
                "height": annotation.height,
                "width": annotation.width,
                "annotations": [_standard(one, classes, file) for one in annotation.objects],
            }
        )
    return records


def _standard(one: VocObject, classes: dict[str, int], file: Path) -> dict[str, Any]:
    try:
        category_id = class_of(one, classes)
    except Defect as error:
        raise located(file, error) from None
    x0, y0, x1, y1 = one.box
    return {
        "category_id": category_id,
        "bbox": [x0 - 1.0, y0 - 1.0, x1, y1],  # the last pixel belongs to the object
        "bbox_mode": BoxMode.XYXY_ABS,
    }


def class_of(one: VocObject, classes: dict[str, int]) -> int:
    """The number of an object's class."""
    if one.name not in classes:
        message = f"class {one.name!r} is none of {', '.join(classes)}"
        raise Defect("class-unknown", message, "name")
    return classes[one.name]


def read_split(dirname: str | os.PathLike[str], split: str) -> list[str]:
    """The names of a split's images, without suffix.

    Raises:
        DataError: there is no such list.
    """
    return read_names(Path(dirname, "ImageSets", "Main", f"{split}.txt"))


def read_names(file: Path) -> list[str]:
    """The first word of each line of a list.

    Raises:
        DataError: there is no such list.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        message = f"{file}: the list of images cannot be read ({error})"
        raise Defect("file-unreadable", message) from None
    return [line.split()[0] for line in lines if line.strip()]


def annotation_file(dirname: str | os.PathLike[str], name: str) -> Path:
    """Where the annotation of an image is."""
    return Path(dirname, "Annotations", f"{name}.xml")


def read_voc_annotation(file: Path) -> VocAnnotation:
    """Read one annotation file.

    Raises:
        DataError: it is absent, no XML, or lacks something; says what.
    """
    tree = parse_xml(file)
    try:
        height, width = read_size(tree)
        objects = [read_object(node) for node in tree.findall("object")]
    except DataError as error:
        raise located(file, error) from None
    return VocAnnotation(height=height, width=width, objects=objects)


def parse_xml(file: Path) -> ElementTree.Element:
    """The root of an annotation file."""
    try:
        check_file(file)
        return ElementTree.parse(file).getroot()
    except OSError as error:
        message = f"{file}: cannot be read ({error.strerror or error})"
        raise Defect("file-unreadable", message) from None
    except Defect as error:
        raise located(file, error) from None
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # or an unknown encoding
        raise Defect("xml-invalid", f"{file}: is not valid XML ({error})") from None


def read_size(tree: ElementTree.Element) -> tuple[int, int]:
    """(height, width) of the picture of an annotation file."""
    return int(_number(tree, "size/height")), int(_number(tree, "size/width"))


def read_object(node: ElementTree.Element) -> VocObject:
    """One `<object>`."""
    keys = ("xmin", "ymin", "xmax", "ymax")
    xmin, ymin, xmax, ymax = (_number(node, f"bndbox/{key}") for key in keys)
    box = (xmin, ymin, xmax, ymax)
    if xmax < xmin or ymax < ymin:
        message = f"a bndbox must have xmin <= xmax and ymin <= ymax, is {list(box)}"
        raise Defect("box-malformed", message, "bndbox")
    difficult = (node.findtext("difficult") or "0").strip()
    return VocObject(name=_text(node, "name"), box=box, difficult=difficult != "0")


def _text(node: ElementTree.Element, path: str) -> str:
    text = node.findtext(path)
    if text is None or not text.strip():
        raise Defect("key-missing", f"<{node.tag}> has no <{path}>", path)
    return text.strip()


def _number(node: ElementTree.Element, path: str) -> float:
    text = _text(node, path)
    try:
        value = float(text)
    except ValueError:
        raise Defect("not-a-number", f"<{path}> must be a number, is {text!r}", path) from None
    if not abs(value) < 1e5:  # also refuses NaN
        message = f"<{path}> must be a finite number of pixels, is {text!r}"
        raise Defect("not-finite", message, path)
    return value
