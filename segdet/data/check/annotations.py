"""The annotations of a COCO json, row by row, as its reader would take them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segdet.data.check.findings import Findings
from segdet.data.check.json_parts import Part
from segdet.data.check.shapes import Shapes, remarks_on
from segdet.data.defects import Defect
from segdet.data.readers.coco_annotation import (
    XYXY,
    check_extent,
    read_box,
    read_category,
    read_iscrowd,
    read_keypoints,
    read_segmentation,
)
from segdet.data.readers.coco_json import check_row, image_of, name_of, read_annotation_id
from segdet.data.rle import rle_runs
from segdet.structures import BoxMode

_ANYWHERE = {"width": math.inf, "height": math.inf}  # an image of unknown size


@dataclass(frozen=True)
class Context:
    """What annotations are checked against."""

    file: Path
    images: dict[int | str, dict[str, Any]]  # id -> "width", "height", "number", "absent"
    category_ids: dict[int, int]  # id -> contiguous id
    keypoints: dict[int, int]  # contiguous id -> how many names of keypoints it has


class Row(NamedTuple):
    """An annotation that a reader takes."""

    number: int  # of the row
    name: str  # "annotation 7"
    image: dict[str, Any]
    category: int
    iscrowd: int
    box: list[float]
    polygons: list[list[float]]
    extent: XYXY | None
    mask_area: float
    area: float


@dataclass
class Outcome:
    """What a part of the annotations gave."""

    findings: Findings
    names: list[str] = field(default_factory=list)  # of all rows
    ids: list[int | None] = field(default_factory=list)  # of all rows; None where it is no number
    used: list[int | str] = field(default_factory=list)  # ids of images with an object
    row: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # of what follows
    image: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    category: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    crowd: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    has_mask: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    areas: np.ndarray = field(default_factory=lambda: np.zeros(0))  # of the box, if file says none


def check_part(context: Context, part: Part) -> Outcome:
    """Check the rows of a part of a file's annotations."""
    outcome = Outcome(Findings(context.file))
    kept: list[Row] = []
    for number, row in enumerate(part.read(), part.first):
        read = _check_row(row, number, context, outcome)
        if read is not None:
            kept.append(read)
    if kept:
        _look_at_shapes(kept, outcome)
    return outcome


def _try(errors: list[Defect], function: Any, *args: Any) -> Any:
    """What a reader's function gives; None, and an error more, where it refuses."""
    try:
        return function(*args)
    except Defect as error:
        errors.append(error)
        return None


def _check_row(row: Any, number: int, context: Context, outcome: Outcome) -> Row | None:
    """The row as a reader would take it; None where it would not."""
    errors: list[Defect] = []
    remarks: list[Defect] = []
    if _try(errors, check_row, row) is None and errors:
        name = f"annotations[{number}]"
        outcome.ids.append(None)
        outcome.names.append(name)
        outcome.findings.take(errors[0], name, number)
        return None
    name = name_of(row, "annotations", number)
    outcome.names.append(name)
    outcome.ids.append(_try(errors, read_annotation_id, row, remarks))
    image = _try(errors, image_of, row, context.images)
    category = _try(errors, read_category, row, context.category_ids)
    iscrowd = _try(errors, read_iscrowd, row)
    place = image or _ANYWHERE
    segmentation = row.get("segmentation")
    if isinstance(segmentation, dict) and place["width"] == math.inf:
        segmentation = None  # there is no size to compare it with
    mask = _try(errors, read_segmentation, segmentation, place, remarks)
    shape, extent = mask or (None, None)
    box = row.get("bbox")
    if box is not None or mask is not None:
        box = _try(errors, read_box, box, extent, place, remarks)
    if extent is not None:
        _try(errors, check_extent, extent, place)
    if row.get("keypoints"):
        points = _try(errors, read_keypoints, row["keypoints"])
        if points is not None:
            remarks += _remarks_on_keypoints(points, place, context.keypoints.get(category))
    area = _try(errors, _read_area, row, remarks)
    for error in (*errors, *remarks):
        outcome.findings.take(error, name, number)
    if image is not None and iscrowd == 0:
        outcome.used.append(row["image_id"])
    if errors or box is None:
        return None
    is_rle = isinstance(shape, dict)
    return Row(
        number=number,
        name=name,
        image=place,
        category=category,
        iscrowd=iscrowd,
        box=box,
        polygons=[] if is_rle or shape is None else shape,
        extent=extent,
        mask_area=float(rle_runs(shape)[1::2].sum()) if is_rle else math.nan,
        area=area,
    )


def _read_area(row: dict[str, Any], remarks: list[Defect]) -> float:
    area = row.get("area")
    if area is None:
        remarks.append(Defect("area-missing", "annotation without area", "area"))
        return math.nan
    if not isinstance(area, int | float) or not 0 <= area < math.inf:
        remarks.append(
            Defect("area-invalid", f"area must be a number >= 0, is {area!r:.80}", "area")
        )
        return math.nan
    return float(area)


def _remarks_on_keypoints(
    points: list[float], image: dict[str, Any], count: int | None
) -> Iterator[Defect]:
    if count is not None and len(points) != 3 * count:
        message = f"{len(points) // 3} keypoints, the category names {count}"
        yield Defect("keypoint-count", message, "keypoints")
    for i, (x, y, visibility) in enumerate(zip(*(points[k::3] for k in range(3)), strict=True)):
        if visibility not in (0, 1, 2):
            message = f"visibility of keypoint {i} must be 0, 1 or 2, is {visibility:g}"
            yield Defect("keypoint-visibility", message, "keypoints")
        elif visibility and not (0 <= x <= image["width"] and 0 <= y <= image["height"]):
            message = f"keypoint {i} at {x - 0.5:g}, {y - 0.5:g} is labelled but outside the image"
            yield Defect("keypoint-outside", message, "keypoints")


def _look_at_shapes(kept: list[Row], outcome: Outcome) -> None:
    """What only shows in the shapes themselves; and the columns of the outcome."""
    upright = np.array([_upright(row.box) for row in kept], np.float64)
    boxes = np.concatenate([upright[:, :2], upright[:, :2] + upright[:, 2:]], axis=1)
    nowhere = (math.nan,) * 4
    rotated = np.array([len(row.box) == 5 for row in kept])
    extents = np.array([row.extent or nowhere for row in kept], np.float64)
    shapes = Shapes(
        sizes=np.array([(r.image["width"], r.image["height"]) for r in kept], np.float64),
        boxes=boxes,
        extents=np.where(rotated[:, None], math.nan, extents),
        areas=np.array([row.area for row in kept]),
        mask_areas=np.array([row.mask_area for row in kept]),
        polygons=[row.polygons for row in kept],
    )
    for i, kind, message, what in remarks_on(shapes):
        outcome.findings.add(kind, kept[i].name, message, what, kept[i].number)
    outcome.row = np.array([row.number for row in kept])
    outcome.image = np.array([row.image["number"] for row in kept])
    outcome.category = np.array([row.category for row in kept])
    outcome.crowd = np.array([row.iscrowd for row in kept], bool)
    outcome.has_mask = np.array([row.extent is not None for row in kept])
    outcome.boxes = boxes
    areas = np.where(np.isnan(shapes.areas), upright[:, 2] * upright[:, 3], shapes.areas)
    outcome.areas = areas


def _upright(box: list[float]) -> list[float]:
    return box if len(box) == 4 else BoxMode.convert(box, BoxMode.XYWHA_ABS, BoxMode.XYWH_ABS)
