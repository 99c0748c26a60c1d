from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pycocotools.mask as mask_util
import torch
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[np.floating[Any]]
Polygon = Numbers  # x0, y0, x1, y1, ...
Box = Numbers  # (4,) XYXY

# pycocotools walks an outline in steps of 1/5 pixel and allocates every step as it goes: beyond
# this length (pixels) what lies off the canvas is cut away first. Below it results are its own.
_LONGEST_OUTLINE = 1 << 20


def check_points(polygon: Polygon) -> None:
    """Raise a ValueError unless `polygon` is a flat array of at least 3 points."""
    if polygon.ndim != 1 or polygon.size < 6 or polygon.size % 2:
        raise ValueError(
            f"a polygon is a flat list of at least 3 points x, y; got shape {polygon.shape}"
        )


def polygon_area(polygon: Polygon) -> float:
    """Area of a simple polygon in square pixels."""
    return abs(signed_polygon_area(polygon))


def signed_polygon_area(polygon: Polygon) -> float:
    """By the shoelace formula; positive of polygons that run clockwise on the screen."""
    x, y = polygon[0::2], polygon[1::2]
    return float(0.5 * (np.dot(y, np.roll(x, 1)) - np.dot(x, np.roll(y, 1))))


def polygons_to_bitmask(polygons: Sequence[Polygon], height: int, width: int) -> NDArray[np.bool_]:
    """Rasterise the union of polygons as COCO's own tools do.

    Source: pycocotools' polygon-to-RLE conversion, which it calls.

    Args:
        polygons: flat x, y coordinates in pixels; they may leave the canvas. None gives an
            empty mask.
        height: rows of the canvas.
        width: columns.

    Returns:
        (height, width) bool.

    Raises:
        ValueError: a polygon is not at least 3 finite points.
    """
    rles = _rles(polygons, height, width)
    if not rles:
        return np.zeros((height, width), np.bool_)
    return mask_util.decode(mask_util.merge(rles)).astype(np.bool_)


def rasterized_area(polygons: Sequence[Polygon], box: Box) -> int:
    """Pixels of the part of an object inside a box, as COCO's own tools rasterise it.

    Source: the MaskIoU targets of Mask Scoring R-CNN and CenterMask2, with their two quirks: the
    box's sides are cut to whole pixels, and where polygons overlap, pixels count twice.

    Args:
        polygons: flat x, y coordinates in the frame of the box.
        box: (4,) XYXY, its corner anywhere.
    """
    width, height = (int(side) for side in box[2:] - box[:2])
    moved = [(polygon.reshape(-1, 2) - box[:2]).reshape(-1) for polygon in polygons]
    rles = _rles(moved, height, width)
    return int(cast(Any, mask_util.area)(rles).sum()) if rles else 0


def rasterize_polygons_within_box(polygons: Sequence[Polygon], box: Box, mask_size: int) -> Tensor:
    """The part of an object inside a box, stretched to a square mask.

    Source: the mask targets of detectron2, which follow Mask R-CNN (arXiv:1703.06870).

    Args:
        polygons: flat x, y coordinates in the frame of the box.
        box: (4,) XYXY; sides below 0.1 pixel count as 0.1.
        mask_size: M, the side of the result.

    Returns:
        (M, M) bool.
    """
    scale = mask_size / np.maximum(box[2:] - box[:2], 0.1)  # in the box's own precision
    moved = [((polygon.reshape(-1, 2) - box[:2]) * scale).reshape(-1) for polygon in polygons]
    return torch.as_tensor(polygons_to_bitmask(moved, mask_size, mask_size))


def _rles(polygons: Sequence[Polygon], height: int, width: int) -> list[Any]:
    """Each polygon on the canvas, as pycocotools' RLE; none for an empty canvas."""
    outlines = [_outline(polygon, height, width) for polygon in polygons]
    outlines = [outline for outline in outlines if len(outline) >= 6]
    if not outlines or height <= 0 or width <= 0:
        return []
    # The stubs know neither a list of arrays nor the list of RLEs that comes of it.
    return cast(Any, mask_util.frPyObjects)(outlines, height, width)


def _outline(polygon: Polygon, height: int, width: int) -> Polygon:
    """Check one polygon, which pycocotools does not, and cut it down where it is vast."""
    check_points(polygon)
    if np.abs(polygon).max() <= _LONGEST_OUTLINE / polygon.size:  # a bound; False for NaN
        return polygon
    points = polygon.reshape(-1, 2)
    finite = np.isfinite(points).all(1)
    if not finite.all():
        worst = int(finite.argmin())
        raise ValueError(f"point {worst} of a polygon is ({points[worst, 0]}, {points[worst, 1]})")
    points = np.clip(points, -1e9, 1e9)
    if np.abs(points - np.roll(points, 1, 0)).max(1).sum() <= _LONGEST_OUTLINE:
        return polygon
    for axis, limit in ((0, width + 1), (1, height + 1)):
        points = _cut(points, points[:, axis] + 1)
        points = _cut(points, limit - points[:, axis])
    return points.reshape(-1)


def _cut(points: Numbers, depth: Numbers) -> Numbers:
    """Keep the part of a polygon on one side of a line (Sutherland and Hodgman 1974).

    Args:
        points: (V, 2).
        depth: (V,) distance of each point to the line, negative on the side to drop.
    """
    following, inside = np.roll(depth, -1), depth >= 0
    crosses = inside != np.roll(inside, -1)
    share = np.where(crosses, depth / np.where(crosses, depth - following, 1), 0)[:, None]
    crossings = points + share * (np.roll(points, -1, 0) - points)
    return np.stack([points, crossings], 1)[np.stack([inside, crosses], 1)]
