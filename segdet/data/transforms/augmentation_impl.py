"""The random augmentations of the official recipes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from PIL import Image

from segdet.data.transforms.augmentation import (
    AugInput,
    Augmentation,
    as_augmentation,
)
from segdet.data.transforms.transform import (
    HFlipTransform,
    NoOpTransform,
    ResizeTransform,
    Transform,
    VFlipTransform,
)

BILINEAR = Image.Resampling.BILINEAR


class RandomApply(Augmentation):
    """Runs an augmentation with some probability.

    Args:
        tfm_or_aug: an augmentation or a fixed transform.
        prob: in [0, 1].
    """

    def __init__(self, tfm_or_aug: Augmentation | Transform, prob: float = 0.5) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f"prob must be in [0, 1], is {prob}")
        self.aug, self.prob = as_augmentation(tfm_or_aug), prob

    def looks_at(self) -> list[str]:
        """What the augmentation sees."""
        return self.aug.looks_at()

    def __call__(self, aug_input: AugInput) -> Transform:
        """Run it or not; return what was done."""
        return self.aug(aug_input) if self._rand_range() < self.prob else NoOpTransform()


class RandomFlip(Augmentation):
    """Mirrors in one direction.

    Args:
        prob: in [0, 1].
        horizontal: mirror left and right.
        vertical: mirror top and bottom; exactly one of the two.
    """

    def __init__(
        self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False
    ) -> None:
        if horizontal == vertical:
            raise ValueError("choose one of horizontal and vertical; for both use two RandomFlips")
        self.prob, self.horizontal, self.vertical = prob, horizontal, vertical

    def get_transform(self, image: np.ndarray) -> Transform:
        """The flip, or nothing."""
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        height, width = image.shape[:2]
        return HFlipTransform(width) if self.horizontal else VFlipTransform(height)


class Resize(Augmentation):
    """Resizes to a fixed size.

    Args:
        shape: (height, width), or one number for both.
        interp: a Pillow resampling.
    """

    def __init__(self, shape: int | tuple[int, int], interp: int = BILINEAR) -> None:
        self.shape = (shape, shape) if isinstance(shape, int) else tuple(shape)
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        """The resize."""
        h, w = image.shape[:2]
        new_h, new_w = self.shape
        return ResizeTransform(h, w, new_h, new_w, self.interp)


class RandomResize(Augmentation):
    """Resizes to one of several sizes.

    Args:
        shape_list: (height, width) of each.
        interp: a Pillow resampling.
    """

    def __init__(self, shape_list: Sequence[tuple[int, int]], interp: int = BILINEAR) -> None:
        self.shape_list, self.interp = tuple(map(tuple, shape_list)), interp

    def get_transform(self, image: np.ndarray) -> Transform:
        """The resize to one drawn size."""
        new_h, new_w = self.shape_list[np.random.randint(len(self.shape_list))]
        h, w = image.shape[:2]
        return ResizeTransform(h, w, new_h, new_w, self.interp)


class ResizeShortestEdge(Augmentation):
    """Resizes so that the short side has a chosen length and the long side is bounded.

    Args:
        short_edge_length: pixels; one number, a (low, high) range, or a list to choose from.
            0 leaves the image as it is.
        max_size: bound of the long side, in pixels.
        sample_style: "range" or "choice".
        interp: a Pillow resampling.
    """

    def __init__(
        self,
        short_edge_length: int | Sequence[int],
        max_size: int = sys.maxsize,
        sample_style: str = "range",
        interp: int = BILINEAR,
    ) -> None:
        if sample_style not in ("range", "choice"):
            raise ValueError(f'sample_style must be "range" or "choice", is {sample_style!r}')
        if isinstance(short_edge_length, int):
            short_edge_length = (short_edge_length, short_edge_length)
        if sample_style == "range" and len(short_edge_length) != 2:
            raise ValueError(f"a range has a low and a high end, got {short_edge_length}")
        self.short_edge_length, self.max_size = tuple(short_edge_length), max_size
        self.is_range, self.interp = sample_style == "range", interp

    def get_transform(self, image: np.ndarray) -> Transform:
        """The resize of one drawn length."""
        if self.is_range:
            size = np.random.randint(self.short_edge_length[0], self.short_edge_length[1] + 1)
        else:
            size = np.random.choice(self.short_edge_length)
        if size == 0:
            return NoOpTransform()
        h, w = image.shape[:2]
        new_h, new_w = self.get_output_shape(h, w, int(size), self.max_size)
        return ResizeTransform(h, w, new_h, new_w, self.interp)

    @staticmethod
    def get_output_shape(
        oldh: int, oldw: int, short_edge_length: int, max_size: int
    ) -> tuple[int, int]:
        """The (height, width) after the resize; at least 1 each.

        Examples:
            >>> ResizeShortestEdge.get_output_shape(427, 640, 800, 1333)
            (800, 1199)
        """
        scale = short_edge_length / min(oldh, oldw)
        h, w = (
            (oldh * scale, short_edge_length) if oldw < oldh else (short_edge_length, oldw * scale)
        )
        if max(h, w) > max_size:
            ratio = max_size / max(h, w)
            h, w = h * ratio, w * ratio
        return max(1, int(h + 0.5)), max(1, int(w + 0.5))


class ResizeScale(Augmentation):
    """Resizes to fit into a target size times a random scale (large scale jitter).

    Args:
        min_scale: lowest scale.
        max_scale: highest scale.
        target_height: pixels at scale 1.
        target_width: pixels at scale 1.
        interp: a Pillow resampling.
    """

    def __init__(
        self,
        min_scale: float,
        max_scale: float,
        target_height: int,
        target_width: int,
        interp: int = BILINEAR,
    ) -> None:
        self.min_scale, self.max_scale = min_scale, max_scale
        self.target_height, self.target_width = target_height, target_width
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        """The resize of one drawn scale."""
        h, w = image.shape[:2]
        scale = np.random.uniform(self.min_scale, self.max_scale)
        ratio = min(self.target_height * scale / h, self.target_width * scale / w)
        new_h, new_w = (max(1, int(np.round(side * ratio))) for side in (h, w))
        return ResizeTransform(h, w, new_h, new_w, self.interp)
