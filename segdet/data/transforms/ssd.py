"""SSD's augmentations as YOLACT has them, in floating point: colours, canvas, crop, stretch.

Source: SSD (Liu et al. 2016, arXiv:1512.02325), section 2.2 and its extended data augmentation;
where YOLACT's released code differs, the code.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from segdet.data.transforms.augmentation import Augmentation
from segdet.data.transforms.transform import (
    ColorTransform,
    CropTransform,
    NoOpTransform,
    PadTransform,
    ResizeTransform,
    Transform,
)

MEAN_RGB = (123.68, 116.78, 103.94)  # of ImageNet; the canvas around an expanded image


class PhotometricDistortion(Augmentation):
    """Changes brightness, contrast, saturation and hue, each in half of the images.

    Contrast comes before saturation and hue, or after them. The result is float32 and not clipped.

    Args:
        img_format: "BGR" or "RGB".
    """

    BRIGHTNESS = 32.0  # at most added or taken off, of 255
    CONTRAST = (0.5, 1.5)  # factor
    SATURATION = (0.5, 1.5)  # factor
    HUE = 18.0  # degrees, at most

    def __init__(self, img_format: str) -> None:
        if img_format not in ("BGR", "RGB"):
            raise ValueError(f'img_format must be "BGR" or "RGB", is {img_format!r}')
        self.img_format = img_format

    def get_transform(self, image: np.ndarray) -> Transform:
        """The change of one draw."""
        offset = self._draw((-self.BRIGHTNESS, self.BRIGHTNESS), 0.0)
        contrast_first = bool(np.random.randint(2))
        contrast = self._draw(self.CONTRAST, 1.0)
        saturation = self._draw(self.SATURATION, 1.0)
        turn = self._draw((-self.HUE, self.HUE), 0.0)
        order = slice(None, None, -1 if self.img_format == "BGR" else 1)

        def distort(img: np.ndarray) -> np.ndarray:
            pixels = img.astype(np.float32) + np.float32(offset)
            if contrast_first:
                pixels *= np.float32(contrast)
            if saturation != 1.0 or turn != 0.0:
                pixels = _recoloured(pixels[:, :, order], saturation, turn)[:, :, order]
            return pixels if contrast_first else pixels * np.float32(contrast)

        return ColorTransform(distort)

    @staticmethod
    def _draw(limits: tuple[float, float], neutral: float) -> float:
        return np.random.uniform(*limits) if np.random.randint(2) else neutral


def _recoloured(rgb: np.ndarray, saturation: float, turn: float) -> np.ndarray:
    """(H, W, 3) float32 with the saturation multiplied and the hue turned by degrees."""
    tiny = np.finfo(np.float32).eps
    value, low = rgb.max(2), rgb.min(2)
    chroma = value - low
    red, green, blue = np.moveaxis(rgb, 2, 0)
    unit = np.float32(1) / (chroma + tiny)
    hue = np.where(value == green, (blue - red) * unit + 2, (red - green) * unit + 4)
    hue = np.where(value == red, (green - blue) * unit, hue) + np.float32(turn / 60)  # sixths
    chroma = value * (chroma / (np.abs(value) + tiny)) * np.float32(saturation)
    places = (np.array([5, 3, 1], np.float32) + hue[:, :, None]) % 6
    share = np.minimum(places, 4 - places).clip(0, 1)
    return value[:, :, None] - chroma[:, :, None] * share


class RandomExpand(Augmentation):
    """Puts half of the images on a larger canvas of the mean colour; objects become smaller.

    Args:
        img_format: "BGR" or "RGB", of the mean.
        max_ratio: of the canvas' sides to the image's.
        prob: in [0, 1].
    """

    def __init__(self, img_format: str, max_ratio: float = 4.0, prob: float = 0.5) -> None:
        self.fill = MEAN_RGB[:: -1 if img_format == "BGR" else 1]
        self.max_ratio, self.prob = max_ratio, prob

    def get_transform(self, image: np.ndarray) -> Transform:
        """The canvas, or nothing."""
        if np.random.uniform() >= self.prob:
            return NoOpTransform()
        h, w = image.shape[:2]
        ratio = np.random.uniform(1, self.max_ratio)
        x0 = int(np.random.uniform(0, w * ratio - w))
        y0 = int(np.random.uniform(0, h * ratio - h))
        return CanvasTransform(x0, y0, int(w * ratio) - w - x0, int(h * ratio) - h - y0, self.fill)


class CanvasTransform(PadTransform):
    """A border of one colour; the image becomes float32.

    Args:
        x0: columns on the left.
        y0: rows at the top.
        x1: columns on the right.
        y1: rows at the bottom.
        color: of the border, one value a channel.
    """

    def __init__(self, x0: int, y0: int, x1: int, y1: int, color: tuple[float, ...]) -> None:
        super().__init__(x0, y0, max(x1, 0), max(y1, 0))
        self.color = color

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Put an (H, W, C) image upon the canvas."""
        h, w = img.shape[:2]
        canvas = np.empty((self.y0 + h + self.y1, self.x0 + w + self.x1, img.shape[2]), np.float32)
        canvas[:] = self.color
        canvas[self.y0 : self.y0 + h, self.x0 : self.x0 + w] = img
        return canvas


class CropAroundCentres(Augmentation):
    """Cuts out a rectangle that holds the centre of an object; the others are dropped.

    SSD asks for an IoU of the rectangle and the objects. In YOLACT's code that condition has no
    effect; the released weights are trained so, and its repair made them worse.
    """

    MODES = 6  # of which one leaves the image alone; the others, least IoUs, do the same
    TRIES = 50  # of one mode
    MIN_SIZE = 0.3  # share of a side

    def get_transform(self, image: np.ndarray, boxes: np.ndarray) -> Transform:
        """The crop, or nothing.

        Args:
            image: (H, W) or (H, W, C).
            boxes: (N, 4) XYXY of the objects that are no crowds; without any nothing is cut.
        """
        h, w = image.shape[:2]
        boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        while len(boxes) and np.random.randint(self.MODES):
            for _ in range(self.TRIES):
                new_w, new_h = (np.random.uniform(self.MIN_SIZE * s, s) for s in (w, h))
                if not 0.5 <= new_h / new_w <= 2:
                    continue
                left, top = np.random.uniform(0, w - new_w), np.random.uniform(0, h - new_h)
                x0, y0, x1, y1 = int(left), int(top), int(left + new_w), int(top + new_h)
                cut = CentreCropTransform(x0, y0, x1 - x0, y1 - y0, w, h)
                if min(cut.w, cut.h) > 0 and cut.holds_centres(boxes).any():
                    return cut
        return NoOpTransform()


class CentreCropTransform(CropTransform):
    """A crop that leaves no extent to boxes whose centre lies outside: these are dropped."""

    def holds_centres(self, boxes: np.ndarray) -> np.ndarray:
        """(N,) bool, of (N, 4) XYXY boxes before the crop."""
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        places = centres - np.array([self.x0, self.y0])
        inside = (places > 0) & (places < np.array([self.w, self.h]))
        return inside[:, 0] & inside[:, 1]

    def apply_box(self, box: np.ndarray) -> np.ndarray:
        """Move the origin, and make points of boxes whose centre is not strictly inside."""
        boxes = np.asarray(box, np.float64).reshape(-1, 4)
        moved = super().apply_box(boxes)
        return np.where(self.holds_centres(boxes)[:, None], moved, 0.0)


class Stretch(Augmentation):
    """Resizes to a square, whatever the shape.

    Args:
        side: of the result, in pixels.
    """

    def __init__(self, side: int) -> None:
        self.side = side

    def get_transform(self, image: np.ndarray) -> Transform:
        """The resize."""
        return StretchTransform(image.shape[0], image.shape[1], self.side, self.side)


class StretchTransform(ResizeTransform):
    """A bilinear resize in float32 without antialiasing, as OpenCV's.

    Arguments are those of `ResizeTransform`.
    """

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resize (H, W) or (H, W, C); uint8 becomes float32 but for nearest pixels."""
        if interp != Image.Resampling.NEAREST and img.dtype == np.uint8:
            img = img.astype(np.float32)
        return super().apply_image(img, interp)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Resize a mask (0 and 1) bilinearly and round, other labels to nearest."""
        if segmentation.max(initial=0) > 1:
            return super().apply_segmentation(segmentation)
        soft = self.apply_image(segmentation.astype(np.float32))
        return (soft >= 0.5).astype(segmentation.dtype)
