"""A mask in whatever form it comes, as pixels and as polygons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from segdet.data.rle import decode_rle
from segdet.structures import PolygonMasks, polygons_to_bitmask
from segdet.structures.polygons import signed_polygon_area

Point = tuple[int, int]  # x, y of a pixel's corner


class GenericMask:
    """One object's mask.

    Args:
        mask_or_polygons: (H, W) pixels, an RLE dict, or polygons: lists x, y, x, y, ...
        height: of the image.
        width: of the image.
    """

    def __init__(self, mask_or_polygons: Any, height: int, width: int) -> None:
        self.height, self.width = height, width
        self._mask: np.ndarray | None = None
        self._polygons: list[np.ndarray] | None = None
        self._has_holes = False
        if isinstance(mask_or_polygons, list):
            self._polygons = [np.asarray(part, np.float64) for part in mask_or_polygons]
            return
        is_rle = isinstance(mask_or_polygons, dict)
        mask = decode_rle(mask_or_polygons) if is_rle else as_array(mask_or_polygons)
        if mask.shape != (height, width):
            raise ValueError(f"the mask is {mask.shape}, the image ({height}, {width})")
        self._mask = mask.astype(np.uint8)

    @property
    def mask(self) -> np.ndarray:
        """(H, W) uint8, 1 inside."""
        if self._mask is None:
            self._mask = self.polygons_to_mask(self.polygons)
        return self._mask

    @property
    def polygons(self) -> list[np.ndarray]:
        """The outlines of the parts, each x, y, x, y, ...; holes are left out."""
        if self._polygons is None:
            self._polygons, self._has_holes = self.mask_to_polygons(self.mask)
        return self._polygons

    @property
    def has_holes(self) -> bool:
        """Whether the polygons lack a hole of the mask; polygons that were given have none."""
        return self._has_holes if self.polygons else False

    def mask_to_polygons(self, mask: np.ndarray) -> tuple[list[np.ndarray], bool]:
        """The outlines of a mask's parts, and whether there are holes.

        They run along the sides of pixels, so that `polygons_to_mask` gives the mask again where
        it has no holes. Pixels that touch at a corner alone belong to different parts.
        """
        loops = [np.array(one, np.float64).reshape(-1) for one in outlines(as_array(mask) != 0)]
        outer = [loop for loop in loops if signed_polygon_area(loop) > 0]
        return outer, len(outer) < len(loops)

    def polygons_to_mask(self, polygons: Sequence[Any]) -> np.ndarray:
        """(H, W) uint8."""
        parts = [np.asarray(part, np.float64) for part in polygons]
        return polygons_to_bitmask(parts, self.height, self.width).astype(np.uint8)

    def area(self) -> int:
        """Pixels inside."""
        return int(self.mask.sum())

    def bbox(self) -> np.ndarray:
        """(4,) the box around it, XYXY; zeros where it is empty."""
        ys, xs = np.nonzero(self.mask)
        if len(xs) == 0:
            return np.zeros(4)
        return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], np.float64)


def outlines(mask: np.ndarray) -> list[list[Point]]:
    """Closed paths along pixel sides, the inside on their right.

    Args:
        mask: (H, W) bool.

    Returns:
        Parts, which run clockwise on the screen, and holes, which run the other way.
    """
    following = _sides(np.pad(mask, 1))
    loops = []
    for start in sorted(following):  # the leftmost that is left: one path alone goes through it
        if start in following:
            loops.append(_loop(following, start))
    return loops


def _loop(following: dict[Point, list[Point]], start: Point) -> list[Point]:
    """The corners of a path at which it turns; its sides are taken out of `following`."""
    here, step = start, (0, 0)
    loop: list[Point] = []
    while not loop or here != start:
        ends = following[here]
        right = here[0] - step[1], here[1] + step[0]
        end = right if right in ends else ends[-1]
        ends.remove(end)
        if not ends:
            del following[here]
        new_step = end[0] - here[0], end[1] - here[1]
        if new_step != step:
            loop.append(here)
        here, step = end, new_step
    return loop


def _sides(padded: np.ndarray) -> dict[Point, list[Point]]:
    """Corner -> corners that a side leads to; of a mask with a margin of one pixel."""
    inside = padded[1:-1, 1:-1]
    neighbours = {  # what lies beyond a side; the side, from corner to corner of a pixel at 0, 0
        ((0, 0), (1, 0)): padded[:-2, 1:-1],
        ((1, 0), (1, 1)): padded[1:-1, 2:],
        ((1, 1), (0, 1)): padded[2:, 1:-1],
        ((0, 1), (0, 0)): padded[1:-1, :-2],
    }
    following: dict[Point, list[Point]] = {}
    for ((x0, y0), (x1, y1)), beyond in neighbours.items():
        for y, x in np.argwhere(inside & ~beyond).tolist():
            following.setdefault((x + x0, y + y0), []).append((x + x1, y + y1))
    return following


def as_array(value: Any) -> np.ndarray:
    """A tensor, Boxes or anything that numpy takes, as an array."""
    value = getattr(value, "tensor", value)
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def each_mask(masks: Any) -> list[Any]:
    """One mask after the other, of whatever holds them."""
    return masks.polygons if isinstance(masks, PolygonMasks) else list(masks)
