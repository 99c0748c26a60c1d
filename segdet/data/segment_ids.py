"""Maps of segment ids as COCO's panoptic pictures hold them: id = R + 256 G + 256^2 B.

Source: the panoptic format of cocodataset.org; the names of functions are panopticapi's.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

import numpy as np
from PIL import Image

from segdet.data.defects import Defect
from segdet.data.image_io import opened
from segdet.errors import DataError

ID_LIMIT = 256**3  # ids are below


def rgb2id(color: np.ndarray) -> np.ndarray:
    """Ids of colours.

    Args:
        color: (..., 3) uint8 RGB.

    Returns:
        (...,) int32 in [0, 256^3).
    """
    parts = color.astype(np.int32)
    return parts[..., 0] | parts[..., 1] << 8 | parts[..., 2] << 16


def id2rgb(id_map: np.ndarray) -> np.ndarray:
    """Colours of ids.

    Args:
        id_map: (...,) integers in [0, 256^3).

    Returns:
        (..., 3) uint8 RGB.
    """
    ids = np.asarray(id_map)
    if ids.dtype.kind not in "iu":
        raise DataError(f"segment ids must be integers, are {ids.dtype}")
    if ids.size and not 0 <= ids.min() <= ids.max() < ID_LIMIT:
        raise DataError(
            f"segment ids must be in [0, {ID_LIMIT}), as three bytes hold them; they are in "
            f"[{ids.min()}, {ids.max()}]"
        )
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)


def read_segment_ids(file_name: str | os.PathLike[str]) -> np.ndarray:
    """Read a panoptic picture; alpha is dropped, a palette is expanded.

    Returns:
        (H, W) int32 ids; 0 belongs to no segment.

    Raises:
        DataError: the file is absent or broken, or is a grey picture.
    """
    with opened(file_name) as image:
        if image.mode not in ("RGB", "RGBA", "P"):
            message = f"panoptic pictures hold ids as RGB, this is mode {image.mode}"
            raise Defect("map-malformed", message, "file_name")
        if image.mode == "P":
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        return rgb2id(np.asarray(image))


def write_segment_ids(file_name: str | os.PathLike[str], id_map: np.ndarray) -> None:
    """Write a panoptic picture.

    Args:
        file_name: a PNG.
        id_map: (H, W) integers in [0, 256^3).
    """
    Image.fromarray(id2rgb(id_map)).save(file_name)


def segments_of_labels(
    labels: np.ndarray, label_divisor: int, things: Collection[int]
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Segments of a map that says them in its values, as those of bottom-up models do.

    Args:
        labels: (H, W) integers: class * label_divisor + number of the instance; -1 is none.
        label_divisor: above the number of instances of any class.
        things: the classes of things.

    Returns:
        The map of ids, where 0 is no segment, and `id`, `category_id` and `isthing` of each.
    """
    ids = np.asarray(labels) + 1
    found = [(one, (one - 1) // label_divisor) for one in np.unique(ids).tolist() if one != 0]
    return ids, [{"id": one, "category_id": k, "isthing": k in things} for one, k in found]
