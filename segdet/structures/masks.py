from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segdet import ops
from segdet.structures.boxes import Boxes, Index
from segdet.structures.pasting import paste_masks_in_image
from segdet.structures.polygons import (
    Polygon,
    check_points,
    polygon_area,
    polygons_to_bitmask,
    rasterize_polygons_within_box,
)

__all__ = [
    "BitMasks",
    "PolygonMasks",
    "ROIMasks",
    "polygons_to_bitmask",
    "rasterize_polygons_within_box",
]

_PIXELS_AT_ONCE = 1 << 24  # of masks as floats: 64 MB


class BitMasks:
    """One mask per object, as pixels of the whole image.

    Attributes:
        tensor: (N, H, W) bool.
        image_size: (H, W).
    """

    tensor: Tensor

    def __init__(self, tensor: Tensor | NDArray[Any]) -> None:
        tensor = torch.as_tensor(tensor).to(torch.bool)
        if tensor.ndim != 3:
            raise ValueError(f"BitMasks takes an (N, H, W) tensor, got {tuple(tensor.shape)}")
        self.tensor = tensor
        self.image_size = (tensor.shape[1], tensor.shape[2])

    def to(self, *args: Any, **kwargs: Any) -> BitMasks:
        """The masks on a device; arguments of `Tensor.to`."""
        return BitMasks(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        """Where `tensor` is."""
        return self.tensor.device

    def __getitem__(self, item: Index) -> BitMasks:
        """The masks at an int (as one mask), a slice, a list, or an int64 or bool tensor."""
        if isinstance(item, int):
            return BitMasks(self.tensor[item][None])
        chosen = self.tensor[item]
        if chosen.ndim != 3:
            raise IndexError(f"indexing BitMasks with {item!r} gives {tuple(chosen.shape)}")
        return BitMasks(chosen)

    def __iter__(self) -> Iterator[Tensor]:
        """One (H, W) bool tensor per mask."""
        yield from self.tensor

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __repr__(self) -> str:
        return f"BitMasks(num_instances={len(self)}, image_size={self.image_size})"

    def nonempty(self) -> Tensor:
        """(N,) bool: the mask has a pixel."""
        return self.tensor.flatten(1).any(1)

    def area(self) -> Tensor:
        """(N,) int64 number of pixels."""
        return self.tensor.sum((1, 2))

    def get_bounding_boxes(self) -> Boxes:
        """The tight boxes; all zeros for an empty mask."""
        columns, rows = self.tensor.any(1), self.tensor.any(2)  # (N, W), (N, H)
        (x1, x2), (y1, y2) = _first_and_end(columns), _first_and_end(rows)
        return Boxes(torch.stack([x1, y1, x2, y2], 1).float())

    def crop_and_resize(
        self, boxes: Tensor, mask_size: int, objects: Tensor | None = None
    ) -> Tensor:
        """The part of each mask inside its box, stretched to a square: Mask R-CNN's targets.

        The result may differ from `PolygonMasks.crop_and_resize` at the corners of an object.

        Args:
            boxes: (N, 4) XYXY in pixels, the i-th for the i-th mask.
            mask_size: M, the side of the result.
            objects: (N,) int64, the mask of each box where that is not the i-th: takes less memory
                than indexing the masks before.

        Returns:
            (N, M, M) bool: the mean of the mask over each cell is at least 1/2.
        """
        if objects is None:
            _check_one_box_each(len(self), boxes)
            objects = torch.arange(len(boxes), device=self.device)
        dtype = boxes.dtype if boxes.dtype == torch.float64 else torch.float32
        boxes, objects = boxes.to(self.device, dtype), objects.to(self.device)
        crops = torch.empty(len(boxes), mask_size, mask_size, dtype=torch.bool, device=self.device)
        at_once = max(_PIXELS_AT_ONCE // max(self.image_size[0] * self.image_size[1], 1), 1)
        for first in range(0, len(self), at_once):
            masks, index = self.tensor[first : first + at_once], objects - first
            rows = torch.nonzero((index >= 0) & (index < len(masks))).squeeze(1)
            rois = torch.cat([index[rows, None].to(dtype), boxes[rows]], 1)  # (n, 5)
            means = ops.roi_align(masks[:, None].to(dtype), rois, mask_size, 1.0, 0, True)[:, 0]
            crops[rows] = means >= 0.5
        return crops

    @staticmethod
    def from_polygon_masks(
        polygon_masks: PolygonMasks | Sequence[Sequence[Polygon]], height: int, width: int
    ) -> BitMasks:
        """Rasterise polygons on a canvas of the given size."""
        if isinstance(polygon_masks, PolygonMasks):
            polygon_masks = polygon_masks.polygons
        masks = [polygons_to_bitmask(polygons, height, width) for polygons in polygon_masks]
        return BitMasks(np.stack(masks) if masks else np.zeros((0, height, width), np.bool_))

    @staticmethod
    def from_roi_masks(
        roi_masks: ROIMasks, boxes: Boxes | Tensor, height: int, width: int
    ) -> BitMasks:
        """Paste masks of regions on a canvas of the given size; see `ROIMasks.to_bitmasks`."""
        return roi_masks.to_bitmasks(boxes, height, width)

    @staticmethod
    def cat(bitmasks_list: Sequence[BitMasks]) -> BitMasks:
        """One BitMasks of all, in order."""
        return BitMasks(torch.cat([masks.tensor for masks in bitmasks_list]))


class PolygonMasks:
    """One list of polygons per object; the object is their union. Always on the CPU.

    Attributes:
        polygons: for each object its polygons, each a flat float64 array x0, y0, x1, y1, ...
            in absolute pixels, with at least 3 points.
    """

    polygons: list[list[Polygon]]

    def __init__(self, polygons: Sequence[Sequence[Polygon | Tensor | Sequence[float]]]) -> None:
        if not isinstance(polygons, (list, tuple)):
            raise ValueError(
                f"PolygonMasks takes a list of lists of polygons, got {type(polygons).__name__}"
            )
        self.polygons = [_polygons_of_one_object(parts) for parts in polygons]

    def to(self, *args: Any, **kwargs: Any) -> PolygonMasks:
        """Itself: polygons stay on the CPU."""
        return self

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def __getitem__(self, item: Index) -> PolygonMasks:
        """The objects at an int (as one object), a slice, a list, or an int64 or bool tensor."""
        if isinstance(item, int):
            return self._of([self.polygons[item]])
        if isinstance(item, slice):
            return self._of(self.polygons[item])
        chosen = torch.arange(len(self))[torch.as_tensor(item).cpu()]
        if chosen.ndim != 1:
            raise IndexError(f"indexing PolygonMasks needs one dimension, got {item!r}")
        return self._of([self.polygons[index] for index in chosen])

    @staticmethod
    def _of(polygons: list[list[Polygon]]) -> PolygonMasks:
        masks = PolygonMasks([])  # these polygons have been checked before
        masks.polygons = polygons
        return masks

    def __iter__(self) -> Iterator[list[Polygon]]:
        """The polygons of one object after the other."""
        return iter(self.polygons)

    def __len__(self) -> int:
        return len(self.polygons)

    def __repr__(self) -> str:
        return f"PolygonMasks(num_instances={len(self)})"

    def nonempty(self) -> Tensor:
        """(N,) bool: the object has a polygon."""
        return torch.tensor([len(parts) > 0 for parts in self.polygons], dtype=torch.bool)

    def area(self) -> Tensor:
        """(N,) float32 sums of the polygons' areas; an overlap of two counts twice."""
        return torch.tensor([sum(map(polygon_area, parts)) for parts in self.polygons])

    def get_bounding_boxes(self) -> Boxes:
        """The boxes around the vertices, the far corner not below 0; zeros without polygons."""
        boxes = np.zeros((len(self), 4))
        for box, parts in zip(boxes, self.polygons, strict=True):
            if parts:
                points = np.concatenate(parts).reshape(-1, 2)
                box[:2], box[2:] = points.min(0), np.maximum(points.max(0), 0)
        return Boxes(boxes)

    def crop_and_resize(
        self, boxes: Tensor, mask_size: int, objects: Tensor | None = None
    ) -> Tensor:
        """The part of each object inside its box, stretched to a square: Mask R-CNN's targets.

        Args:
            boxes: (N, 4) XYXY in pixels, the i-th for the i-th object.
            mask_size: M, the side of the result.
            objects: (N,) int64, the object of each box where that is not the i-th.

        Returns:
            (N, M, M) bool on the device of `boxes`.
        """
        if objects is None:
            _check_one_box_each(len(self), boxes)
        rows = range(len(boxes)) if objects is None else map(int, objects)
        crops = [
            rasterize_polygons_within_box(self.polygons[row], box, mask_size)
            for row, box in zip(rows, boxes.detach().cpu().numpy(), strict=True)
        ]
        if not crops:
            return torch.empty(0, mask_size, mask_size, dtype=torch.bool, device=boxes.device)
        return torch.stack(crops).to(boxes.device)

    @staticmethod
    def cat(polymasks_list: Sequence[PolygonMasks]) -> PolygonMasks:
        """One PolygonMasks of all, in order."""
        return PolygonMasks._of([parts for masks in polymasks_list for parts in masks.polygons])


class ROIMasks:
    """One small mask per region, in the frame of the region's box.

    Attributes:
        tensor: (N, M, M) probabilities.
    """

    def __init__(self, tensor: Tensor) -> None:
        if tensor.ndim != 3:
            raise ValueError(f"ROIMasks takes an (N, M, M) tensor, got {tuple(tensor.shape)}")
        self.tensor = tensor

    def to(self, device: torch.device | str) -> ROIMasks:
        """The masks on `device`."""
        return ROIMasks(self.tensor.to(device))

    @property
    def device(self) -> torch.device:
        """Where `tensor` is."""
        return self.tensor.device

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __getitem__(self, item: Index) -> ROIMasks:
        """The masks at an int (as one mask), a slice, a list, or an int64 or bool tensor."""
        return ROIMasks(self.tensor[item][None] if isinstance(item, int) else self.tensor[item])

    def __repr__(self) -> str:
        return f"ROIMasks(num_instances={len(self)})"

    def to_bitmasks(
        self, boxes: Boxes | Tensor, height: int, width: int, threshold: float = 0.5
    ) -> BitMasks:
        """Paste each mask into its box (N, 4) XYXY on a canvas; see `paste_masks_in_image`."""
        return BitMasks(paste_masks_in_image(self.tensor, boxes, (height, width), threshold))


def _first_and_end(present: Tensor) -> tuple[Tensor, Tensor]:
    """First index of a True and one past the last, for each row of (N, L); 0, 0 without any."""
    flags = present.to(torch.uint8)
    first, from_the_end = flags.argmax(1), flags.flip(1).argmax(1)
    return first, (flags.shape[1] - from_the_end) * present.any(1)


def _check_one_box_each(masks: int, boxes: Tensor) -> None:
    if boxes.shape != (masks, 4):
        raise ValueError(f"{masks} masks need boxes of shape ({masks}, 4), got {boxes.shape}")


def _polygons_of_one_object(parts: Sequence[Polygon | Tensor | Sequence[float]]) -> list[Polygon]:
    if not isinstance(parts, (list, tuple)):
        raise ValueError(
            f"PolygonMasks takes a list of polygons per object, got {type(parts).__name__}"
        )
    arrays: list[Polygon] = []
    for part in parts:
        numbers = part.cpu().numpy() if isinstance(part, Tensor) else part
        arrays.append(np.asarray(numbers, np.float64))
        check_points(arrays[-1])
    return arrays
