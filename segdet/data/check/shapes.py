"""Boxes, polygons and areas of many annotations at once: what no reader minds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BORDER = 1.0  # pixels that a shape may stand out of its image
# How far the sides of a box and of its mask may be apart: pixels, and share of the box's side.
APART = 3.0, 0.1
AREA_FACTOR, AREA_PIXELS = 2.0, 32.0  # by how much "area" and the mask's may differ

Remark = tuple[int, str, str, str]  # number of the annotation, kind, message, field


@dataclass(frozen=True)
class Shapes:
    """N annotations that a reader takes."""

    sizes: np.ndarray  # (N, 2) width, height of their images; infinite where unknown
    boxes: np.ndarray  # (N, 4) XYXY
    extents: np.ndarray  # (N, 4) XYXY around the mask; NaN without one
    areas: np.ndarray  # (N,) as the file says; NaN where it says none
    mask_areas: np.ndarray  # (N,) pixels of an RLE; NaN of others
    polygons: Sequence[list[list[float]]]  # N times the polygons, maybe none


def remarks_on(shapes: Shapes) -> Iterator[Remark]:
    """What is odd about them."""
    yield from _boxes_past_border(shapes)
    yield from _boxes_off_masks(shapes)
    areas, unsure = yield from _polygons(shapes)
    yield from _areas_off_masks(shapes, areas, unsure)


def _boxes_past_border(shapes: Shapes) -> Iterator[Remark]:
    low, high = shapes.boxes[:, :2], shapes.boxes[:, 2:]
    out = ((low < -BORDER) | (high > shapes.sizes + BORDER)).any(1)
    for i in np.flatnonzero(out).tolist():
        width, height = shapes.sizes[i].tolist()
        box = _text(shapes.boxes[i])
        yield i, "box-past-border", f"bbox {box} leaves the image of {width:g} x {height:g}", "bbox"


def _boxes_off_masks(shapes: Shapes) -> Iterator[Remark]:
    limits = np.concatenate([shapes.sizes, shapes.sizes], axis=1)
    boxes, extents = shapes.boxes.clip(0, limits), shapes.extents.clip(0, limits)
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    allowed = np.maximum(APART[0], APART[1] * np.concatenate([sides, sides], axis=1))
    apart = (np.abs(boxes - extents) > allowed).any(1)  # False where there is no mask
    for i in np.flatnonzero(apart).tolist():
        message = f"bbox is {_text(shapes.boxes[i])}, the mask lies in {_text(shapes.extents[i])}"
        yield i, "box-off-its-mask", f"{message} (x0, y0, x1, y1)", "bbox"


def _text(box: np.ndarray) -> str:
    return f"[{', '.join(f'{v:g}' for v in box.tolist())}]"


def _polygons(shapes: Shapes) -> Iterator[Any]:
    """Remarks; returns the (N,) areas of their polygons and whether these are to be trusted."""
    import shapely

    counts = np.array([len(parts) for parts in shapes.polygons], np.int64)
    owner = np.repeat(np.arange(len(counts)), counts)
    parts = [part for one in shapes.polygons for part in one]
    lengths = np.array([len(part) for part in parts], np.int64) // 2
    total = int(lengths.sum())
    flat = np.fromiter(itertools.chain.from_iterable(parts), np.float64, 2 * total)
    points = flat.reshape(-1, 2)
    areas, unsure = np.zeros(len(counts)), np.zeros(len(counts), bool)
    if not len(parts):
        return areas, unsure
    first = np.cumsum(lengths) - lengths
    following = np.arange(total) + 1
    following[first + lengths - 1] = first
    x, y = points.T
    twice = np.add.reduceat(x * y[following] - x[following] * y, first)
    part_areas = np.abs(twice) / 2
    low, high = np.minimum.reduceat(points, first), np.maximum.reduceat(points, first)
    rings: Any = shapely.linearrings(points, indices=np.repeat(np.arange(len(parts)), lengths))
    odd = np.flatnonzero(~shapely.is_valid(shapely.polygons(rings)))
    enclosed = part_areas.copy()
    enclosed[odd] = shapely.area(shapely.make_valid(shapely.polygons(rings[odd])))
    # Thinner than this, hardly any pixel has its centre inside.
    empty = enclosed <= 1e-3 * np.maximum((high - low).max(1), 1)
    # Rings that only touch themselves enclose what the formula for simple rings says.
    crossing = ~empty & (np.abs(enclosed - part_areas) > np.maximum(1.0, 0.01 * enclosed))
    limits = shapes.sizes[owner]
    outside = ((low < -BORDER) | (high > limits + BORDER)).any(1)
    number = np.arange(len(parts)) - (np.cumsum(counts) - counts)[owner]
    kinds = {
        "polygon-without-area": (empty, "has no area"),
        "polygon-crosses-itself": (crossing, "crosses itself"),
        "polygon-past-border": (outside, "leaves the image"),
    }
    for kind, (found, says) in kinds.items():
        for part in np.flatnonzero(found).tolist():
            message = f"polygon {number[part]} of {counts[owner[part]]} {says}"
            yield int(owner[part]), kind, message, "segmentation"
    areas = np.bincount(owner, part_areas, len(counts))
    unsure = np.bincount(owner, crossing | outside | empty, len(counts)) > 0
    return areas, unsure


def _areas_off_masks(shapes: Shapes, areas: np.ndarray, unsure: np.ndarray) -> Iterator[Remark]:
    own = np.where(np.isnan(shapes.mask_areas), areas, shapes.mask_areas)
    known = np.isfinite(shapes.areas) & (own > 0) & ~unsure
    larger, smaller = np.maximum(shapes.areas, own), np.minimum(shapes.areas, own)
    off = known & (larger > AREA_FACTOR * smaller) & (larger - smaller > AREA_PIXELS)
    for i in np.flatnonzero(off).tolist():
        message = f"area is {shapes.areas[i]:g}, the mask has {own[i]:g} square pixels"
        yield i, "area-off-its-mask", message, "area"
