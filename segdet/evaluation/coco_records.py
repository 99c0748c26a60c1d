"""Ground truth and predictions of COCO evaluation as columns.

Ids stay at this border: inside, images and categories are counted from 0, so that ids in files may
be text, huge or 0.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_api

from segdet.data.catalog import MetadataCatalog
from segdet.data.datasets.coco import convert_to_coco_json
from segdet.data.readers.coco_json import CocoFile, paused_gc, read_coco_json
from segdet.errors import DataError
from segdet.evaluation.rle import compress
from segdet.structures import BoxMode


@dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """A data set's annotations, N of them."""

    source: str  # the file, for messages
    annotated: bool  # False for a test set, whose file holds images and categories alone
    image_ids: list[Hashable]  # as the file writes them, ascending
    image_sizes: np.ndarray  # (images, 2) int64, (height, width)
    category_ids: list[int]  # ascending; the order of per-category results
    category_names: list[str]
    image: np.ndarray  # (N,) int64 index into image_ids
    category: np.ndarray  # (N,) int64 index into category_ids
    boxes: np.ndarray  # (N, 4) float64 XYWH; of rotated boxes (N, 5) XYWHA
    areas: np.ndarray  # (N,) float64, the file's "area": decides small, medium, large
    crowd: np.ndarray  # (N,) bool, regions that may hold any number of objects
    masks: list  # N polygon lists or compressed RLE dicts; None where only a box is known
    # (N, P, 3) float64 x, y of pixels and visibility; P is 0 in data without keypoints.
    keypoints: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 3)))

    def __len__(self) -> int:
        return len(self.boxes)

    @cached_property
    def image_index(self) -> dict[Hashable, int]:
        """Image id -> its place in image_ids."""
        return {key: i for i, key in enumerate(self.image_ids)}

    @cached_property
    def category_index(self) -> dict[int, int]:
        """Category id -> its place in category_ids."""
        return {key: i for i, key in enumerate(self.category_ids)}


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """A model's objects over a whole data set, N of them; ties in score keep this order."""

    image: np.ndarray  # (N,) int64 index into GroundTruth.image_ids
    category: np.ndarray  # (N,) int64 index into GroundTruth.category_ids
    scores: np.ndarray  # (N,) float64
    boxes: np.ndarray | None = None  # (N, 4) or (N, 5) float64, as GroundTruth's
    masks: list[dict] | None = None  # N compressed RLE dicts of the image's size
    keypoints: np.ndarray | None = None  # (N, P, 3) float64 x, y of pixels, score
    mask_scores: np.ndarray | None = None  # (N,) float64; None where masks rank by `scores`

    def __len__(self) -> int:
        return len(self.scores)

    def ranked_by_mask(self) -> Predictions:
        """With `mask_scores`, if there are such, as `scores`."""
        return self if self.mask_scores is None else replace(self, scores=self.mask_scores)


def read_ground_truth(
    json_file: str | os.PathLike[str], image_root: str = "", *, rotated: bool = False
) -> GroundTruth:
    """Read a COCO instances json by the same rules as training does (docs/data.md).

    Args:
        json_file: the annotations.
        image_root: the images' folder; needed only where the file lacks image sizes.
        rotated: whether boxes become XYWHA; upright ones get the angle 0.

    Returns:
        The annotations that reader keeps. An absent "area" is counted from the mask or the box.

    Raises:
        DataError: the file or a record in it is broken, or a box is rotated and should not be.
    """
    with paused_gc():
        file = read_coco_json(json_file, image_root, extra_annotation_keys=("id", "area"))
        return GroundTruth(**columns_of(file, str(json_file), rotated=rotated))


def read_dataset_ground_truth(
    name: str, output_dir: Path | None = None, *, allow_cached: bool = False, rotated: bool = False
) -> GroundTruth:
    """Read the annotations of a data set by its name.

    Args:
        name: its metadata's `json_file` is read; a data set without one is converted.
        output_dir: for the conversion; None keeps it nowhere.
        allow_cached: take a conversion that lies there already.
        rotated: as for `read_ground_truth`.

    Raises:
        DataError: no such data set, or a broken one.
    """
    metadata = MetadataCatalog.get(name)
    if (json_file := metadata.get("json_file")) is not None:
        return read_ground_truth(json_file, str(metadata.get("image_root", "")), rotated=rotated)
    with tempfile.TemporaryDirectory() as temporary:
        file = (output_dir or Path(temporary)) / converted_name(name)
        convert_to_coco_json(name, file, allow_cached=allow_cached)
        return read_ground_truth(file, rotated=rotated)


def converted_name(dataset_name: str) -> str:
    """The file that a data set without a COCO json is converted to."""
    name = re.sub(r"[^\w.-]+", "_", dataset_name)  # which may be made of paths
    return f"{name}_coco_format.json"


def columns_of(file: CocoFile, source: str, *, rotated: bool = False) -> dict[str, Any]:
    """The fields of `GroundTruth`.

    Args:
        file: read with the extra annotation keys "id" and "area".
        source: its name, for messages.
        rotated: see `read_ground_truth`.
    """
    categories = file.metadata["thing_dataset_id_to_contiguous_id"]
    sizes = [(record["height"], record["width"]) for record in file.records]
    rows = [
        (i, annotation)
        for i, record in enumerate(file.records)
        for annotation in record.get("annotations", ())
    ]
    masks = [_compressed(a.get("segmentation"), *sizes[i]) for i, a in rows]
    areas = [_area(a, mask, sizes[i], source) for (i, a), mask in zip(rows, masks, strict=True)]
    return {
        "source": source,
        "annotated": any("annotations" in record for record in file.records),
        "image_ids": [record["image_id"] for record in file.records],
        "image_sizes": np.array(sizes, dtype=np.int64).reshape(-1, 2),
        "category_ids": list(categories),
        "category_names": list(file.metadata["thing_classes"]),
        "image": np.array([i for i, _ in rows], dtype=np.int64),
        "category": np.array([a["category_id"] for _, a in rows], dtype=np.int64),
        "boxes": _boxes([a for _, a in rows], source, rotated),
        "areas": np.array(areas, dtype=np.float64),
        "crowd": np.array([a["iscrowd"] for _, a in rows], dtype=bool),
        "masks": masks,
        "keypoints": _keypoints([a for _, a in rows], source),
    }


def _boxes(annotations: list[dict[str, Any]], file: str, rotated: bool) -> np.ndarray:
    """(N, 4) XYWH, or (N, 5) XYWHA."""
    if rotated:
        mode = BoxMode.XYWHA_ABS
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], mode) for a in annotations]
        return np.array(boxes, dtype=np.float64).reshape(-1, 5)
    for a in annotations:
        if a["bbox_mode"] == BoxMode.XYWHA_ABS:
            raise DataError(
                f"{file}: annotation {a.get('id', 'without id')} has a rotated box; evaluate with "
                "RotatedCOCOEvaluator"
            )
    return np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)


def _keypoints(annotations: list[dict[str, Any]], file: str) -> np.ndarray:
    """(N, P, 3); objects without keypoints have P points that are not labelled."""
    numbers = max((len(a.get("keypoints", ())) for a in annotations), default=0)
    if numbers == 0:
        return np.zeros((len(annotations), 0, 3))
    columns = np.zeros((len(annotations), numbers))
    for row, annotation in zip(columns, annotations, strict=True):
        points = annotation.get("keypoints")
        if points is None:
            continue
        if len(points) != numbers:
            raise DataError(
                f"{file}: annotation {annotation.get('id', 'without id')} has {len(points) // 3} "
                f"keypoints, others have {numbers // 3}"
            )
        row[:] = points
    columns = columns.reshape(len(annotations), numbers // 3, 3)
    columns[..., :2] -= 0.5  # the reader moved them to the middles of pixels
    return columns


def _compressed(segmentation: Any, height: int, width: int) -> Any:
    """Run lengths given as a list of numbers become COCO's string; the rest stays as it is."""
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
        return compress(segmentation["counts"], height, width)
    return segmentation


def _area(
    annotation: dict[str, Any], mask: Any, size: tuple[int, int], file: str | os.PathLike[str]
) -> float:
    area = annotation.get("area")
    if area is None:
        if mask is None:
            return annotation["bbox"][2] * annotation["bbox"][3]
        parts = mask_api.frPyObjects(mask, *size) if isinstance(mask, list) else [mask]
        return float(mask_api.area(mask_api.merge(parts)))
    if type(area) not in (int, float) or not 0 <= area < math.inf:
        where = f"{file}: annotation {annotation.get('id', 'without id')}"
        raise DataError(f"{where}: area must be a finite number >= 0, is {area!r}")
    return area
