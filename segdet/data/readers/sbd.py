"""Reads the Semantic Boundaries Dataset (Hariharan et al. 2011): Pascal VOC's objects as masks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segdet.data.defects import Defect, located
from segdet.data.readers.mat_file import read_mat_struct
from segdet.data.readers.pascal_voc import CLASS_NAMES, read_names
from segdet.data.rle import encode_rle, tight_box
from segdet.structures import BoxMode


def load_sbd_instances(
    dirname: str | os.PathLike[str], split: str, class_names: Sequence[str] = CLASS_NAMES
) -> list[dict[str, Any]]:
    """Read a split as standard dicts, in the order of its list; segmentations are RLE.

    Args:
        dirname: the release's `dataset`: holds `img`, `inst` and the lists.
        split: "train", "val" or another one of which there is a list, `{split}.txt`.
        class_names: `category_id` is the place in it; the files count classes from 1.

    Raises:
        DataError: a file is missing or broken, or an object is of another class.
    """
    records = []
    for name in read_names(sbd_list(dirname, split)):
        file = sbd_file(dirname, name)
        segments, categories = read_sbd_objects(file)
        annotations = list(_annotations(segments, categories, len(class_names), file))
        records.append(
            {
                "file_name": sbd_image(dirname, name),
                "image_id": name,
                "height": segments.shape[0],
                "width": segments.shape[1],
                "annotations": annotations,
            }
        )
    return records


def sbd_file(dirname: str | os.PathLike[str], name: str) -> Path:
    """Where the objects of a picture are."""
    return Path(dirname, "inst", f"{name}.mat")


def sbd_image(dirname: str | os.PathLike[str], name: str) -> str:
    """Where a picture is."""
    return os.path.join(dirname, "img", f"{name}.jpg")


def sbd_list(dirname: str | os.PathLike[str], split: str) -> Path:
    """Where a split's pictures are listed."""
    return Path(dirname, f"{split}.txt")


def read_sbd_objects(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the objects of a picture.

    Returns:
        (H, W) with the number of each pixel's object from 1, 0 for none; (N,) each object's class,
        as the file numbers them.

    Raises:
        DataError: the file is missing or broken.
    """
    fields = read_mat_struct(file, "GTinst")
    for key in ("Segmentation", "Categories"):
        if key not in fields:
            has = ", ".join(fields) or "none"
            raise Defect("key-missing", f"{file}: GTinst has no numbers {key} (it has {has})", key)
    segments, categories = fields["Segmentation"], fields["Categories"].reshape(-1)
    if segments.ndim != 2 or segments.size == 0:
        problem = f"must be a picture, has shape {segments.shape}"
    elif not 0 <= segments.min() <= segments.max() <= len(categories):
        problem = (
            f"holds {segments.min()} to {segments.max()}, must be within 0 and "
            f"{len(categories)}, the number of Categories"
        )
    else:
        return segments, categories
    raise Defect("segmentation-malformed", f"{file}: Segmentation {problem}", "Segmentation")


def sbd_class(category: float, num_classes: int) -> int:
    """The place of a class that a file numbers from 1."""
    if category not in range(1, num_classes + 1):
        message = f"class {category:g} must be a whole number in [1, {num_classes}]"
        raise Defect("class-unknown", message, "Categories")
    return int(category) - 1


def _annotations(
    segments: np.ndarray, categories: np.ndarray, num_classes: int, file: Path
) -> Iterator[dict[str, Any]]:
    for number, category in enumerate(categories.tolist(), start=1):
        try:
            category_id = sbd_class(category, num_classes)
        except Defect as error:
            raise located(f"{file}: object {number}", error) from None
        mask = segments == number
        box = tight_box(mask)
        if box is not None:
            yield {
                "category_id": category_id,
                "bbox": [float(side) for side in box],
                "bbox_mode": BoxMode.XYXY_ABS,
                "segmentation": encode_rle(mask),
                "iscrowd": 0,
            }
