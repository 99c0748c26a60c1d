"""Crops at random places."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segdet.data.transforms.augmentation import Augmentation
from segdet.data.transforms.transform import (
    CropTransform,
    NoOpTransform,
    PadTransform,
    Transform,
    TransformList,
)


class RandomCrop(Augmentation):
    """Cuts out a rectangle at a random place.

    Args:
        crop_type: how `crop_size` is meant: "absolute" pixels; "absolute_range" of pixels, one
            draw for each side; "relative" to the image; "relative_range", from that to 1.
        crop_size: (height, width), or (low, high) for "absolute_range".
    """

    TYPES = ("absolute", "absolute_range", "relative", "relative_range")

    def __init__(self, crop_type: str, crop_size: tuple[float, float]) -> None:
        if crop_type not in self.TYPES:
            raise ValueError(f"crop_type must be one of {', '.join(self.TYPES)}, is {crop_type!r}")
        self.crop_type, self.crop_size = crop_type, tuple(crop_size)

    def get_transform(self, image: np.ndarray) -> Transform:
        """The crop of one drawn size and place."""
        h, w = image.shape[:2]
        crop_h, crop_w = self.get_crop_size((h, w))
        y0 = np.random.randint(h - crop_h + 1)
        x0 = np.random.randint(w - crop_w + 1)
        return CropTransform(x0, y0, crop_w, crop_h, w, h)

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Draw the (height, width) of a crop of an image of that size; at least 1 each."""
        h, w = image_size
        if self.crop_type == "absolute":
            crop_h, crop_w = self.crop_size
        elif self.crop_type == "absolute_range":
            low, high = (int(v) for v in self.crop_size)
            crop_h = np.random.randint(min(h, low), min(h, high) + 1)
            crop_w = np.random.randint(min(w, low), min(w, high) + 1)
        else:
            share = self.crop_size
            if self.crop_type == "relative_range":
                low = np.asarray(share, np.float32)
                share = low + np.random.rand(2) * (1 - low)
            crop_h, crop_w = h * share[0] + 0.5, w * share[1] + 0.5
        return min(h, max(1, int(crop_h))), min(w, max(1, int(crop_w)))


class RandomCropWithInstance(RandomCrop):
    """Cuts out a rectangle that holds the centre of an object, drawn from all of them."""

    def get_transform(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, image: np.ndarray, boxes: np.ndarray
    ) -> Transform:
        """The crop of one drawn size, object and place; of any place where there is no object."""
        if len(boxes) == 0:
            return super().get_transform(image)
        x0, y0, x1, y1 = boxes[np.random.randint(len(boxes))]
        size = self.get_crop_size(image.shape[:2])
        return crop_around(((y0 + y1) / 2, (x0 + x1) / 2), size, image.shape[:2])


def crop_around(
    point: tuple[float, float], crop_size: tuple[int, int], image_size: tuple[int, int]
) -> CropTransform:
    """A random crop that holds a point of the image.

    Args:
        point: (y, x) in pixels.
        crop_size: (height, width), at most those of the image.
        image_size: (height, width).
    """
    size = np.asarray(crop_size, np.int64)
    low = np.maximum(np.floor(point).astype(np.int64) - size, 0)
    high = np.minimum(np.ceil(point).astype(np.int64), np.asarray(image_size) - size)
    y0 = int(np.random.randint(low[0], max(high[0], low[0]) + 1))
    x0 = int(np.random.randint(low[1], max(high[1], low[1]) + 1))
    return CropTransform(x0, y0, int(size[1]), int(size[0]))


class RandomCrop_CategoryAreaConstraint(Augmentation):
    """Cuts out a rectangle that no single class fills.

    Args:
        crop_type: as for `RandomCrop`.
        crop_size: likewise.
        single_category_max_area: the largest share of the labelled pixels that a class may have; 1
            allows any crop. After 10 draws the last is taken.
        ignored_category: a label that does not count, such as 255.
    """

    TRIES = 10

    def __init__(
        self,
        crop_type: str,
        crop_size: tuple[float, float],
        single_category_max_area: float = 1.0,
        ignored_category: int | None = None,
    ) -> None:
        self.crop_aug = RandomCrop(crop_type, crop_size)
        self.single_category_max_area = single_category_max_area
        self.ignored_category = ignored_category

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> Transform:
        """The first of a few drawn crops that will do."""
        crop = self.crop_aug.get_transform(image)
        for _ in range(self.TRIES - 1):
            if self._is_mixed(crop.apply_segmentation(sem_seg)):
                break
            crop = self.crop_aug.get_transform(image)
        return crop

    def _is_mixed(self, labels: np.ndarray) -> bool:
        if self.single_category_max_area >= 1:
            return True
        values, counts = np.unique(labels, return_counts=True)
        counts = counts[values != self.ignored_category]
        return len(counts) > 1 and counts.max() < counts.sum() * self.single_category_max_area


class FixedSizeCrop(Augmentation):
    """Crops at a random place where the image is larger, and pads where it is smaller.

    Args:
        crop_size: (height, width) of the result.
        pad: pad right and bottom to that size.
        pad_value: of images.
        seg_pad_value: of label maps.
    """

    def __init__(
        self,
        crop_size: tuple[int, int],
        pad: bool = True,
        pad_value: float = 128.0,
        seg_pad_value: int = 255,
    ) -> None:
        self.crop_size, self.pad = tuple(crop_size), pad
        self.pad_value, self.seg_pad_value = pad_value, seg_pad_value

    def get_transform(self, image: np.ndarray) -> Transform:
        """The crop, followed by the padding."""
        h, w = image.shape[:2]
        crop_h, crop_w = min(h, self.crop_size[0]), min(w, self.crop_size[1])
        # One draw for both axes, as in detectron2.
        place = np.random.uniform(0.0, 1.0)
        y0, x0 = round((h - crop_h) * place), round((w - crop_w) * place)
        crop = CropTransform(x0, y0, crop_w, crop_h, w, h)
        if not self.pad:
            return crop
        right, bottom = self.crop_size[1] - crop_w, self.crop_size[0] - crop_h
        values = {"pad_value": self.pad_value, "seg_pad_value": self.seg_pad_value}
        return TransformList([crop, PadTransform(0, 0, right, bottom, crop_w, crop_h, **values)])


class MinIoURandomCrop(Augmentation):
    """Cuts out a rectangle that every box overlaps enough, or nothing.

    Source: SSD (Liu et al. 2016, arXiv:1512.02325), section 2.2.

    Args:
        min_ious: of which one is drawn for each image, beside "any crop" and "no crop".
        min_crop_size: lowest share of width and of height.
    """

    TRIES = 50  # of one drawn minimum

    def __init__(
        self,
        min_ious: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
        min_crop_size: float = 0.3,
    ) -> None:
        self.min_ious, self.min_crop_size = tuple(min_ious), min_crop_size

    def get_transform(self, image: np.ndarray, boxes: np.ndarray) -> Transform:
        """The crop; it also holds the middle of a box, if there are boxes."""
        h, w = image.shape[:2]
        choices = (1.0, *self.min_ious, 0.0)
        while True:
            min_iou = choices[np.random.randint(len(choices))]
            if min_iou == 1:
                return NoOpTransform()
            for _ in range(self.TRIES):
                new_w, new_h = (np.random.uniform(self.min_crop_size * s, s) for s in (w, h))
                x0, y0 = int(np.random.uniform(w - new_w)), int(np.random.uniform(h - new_h))
                new_w, new_h = int(new_w), int(new_h)
                if min(new_w, new_h) < 1 or not 0.5 <= new_h / new_w <= 2:
                    continue
                window = np.array([x0, y0, x0 + new_w, y0 + new_h])
                if _holds(window, np.asarray(boxes).reshape(-1, 4), min_iou):
                    return CropTransform(x0, y0, new_w, new_h, w, h)


def _holds(window: np.ndarray, boxes: np.ndarray, min_iou: float) -> bool:
    """Whether every box has that IoU with a window, and one its middle in it."""
    if len(boxes) == 0:
        return True
    sides = np.minimum(boxes[:, 2:], window[2:]) - np.maximum(boxes[:, :2], window[:2])
    shared = sides.clip(min=0).prod(1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (window[2:] - window[:2]).prod()
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((middles > window[:2]) & (middles < window[2:])).all(1)
    return bool((shared / (area - shared)).min() >= min_iou and inside.any())
