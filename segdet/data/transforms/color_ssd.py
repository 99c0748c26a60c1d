"""SSD's changes of colour."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from segdet.data.transforms.transform import NoOpTransform


class ColorAugSSDTransform(NoOpTransform):
    """Changes brightness, contrast, saturation and hue, each in half of the images.

    Source: SSD (Liu et al. 2016, arXiv:1512.02325), section 2.2, with the ranges and the order of
    PointRend's official configs: contrast comes before saturation and hue, or after them. Each
    step gives uint8. Unlike other transforms it draws when it is applied, from numpy's global
    generator.

    Args:
        img_format: "BGR" or "RGB".
    """

    BRIGHTNESS = 32  # at most added or taken off, of 255
    CONTRAST = (0.5, 1.5)  # factor
    SATURATION = (0.5, 1.5)  # factor
    HUE = 18  # at most turned by, of 180

    def __init__(self, img_format: str) -> None:
        if img_format not in ("BGR", "RGB"):
            raise ValueError(f'img_format must be "BGR" or "RGB", is {img_format!r}')
        self.img_format = img_format

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Change the colours of an (H, W, 3) uint8 image.

        Raises:
            ValueError: it is no such image.
        """
        if img.dtype != np.uint8 or img.ndim != 3 or img.shape[2] != 3:
            raise ValueError(f"colours need an (H, W, 3) uint8 image, got {img.dtype} {img.shape}")
        order = slice(None, None, -1 if self.img_format == "BGR" else 1)
        rgb = np.ascontiguousarray(img[:, :, order])
        steps: list[Callable[[np.ndarray], np.ndarray]] = [self._saturation, self._hue]
        steps.insert(0 if np.random.rand() < 0.5 else 2, self._contrast)
        for step in (self._brightness, *steps):
            if np.random.rand() < 0.5:
                rgb = step(rgb)
        return np.ascontiguousarray(rgb[:, :, order])

    def _brightness(self, rgb: np.ndarray) -> np.ndarray:
        return _scaled(rgb, 1, np.random.uniform(-self.BRIGHTNESS, self.BRIGHTNESS))

    def _contrast(self, rgb: np.ndarray) -> np.ndarray:
        return _scaled(rgb, np.random.uniform(*self.CONTRAST))

    def _saturation(self, rgb: np.ndarray) -> np.ndarray:
        hsv = np.array(Image.fromarray(rgb).convert("HSV"))
        hsv[:, :, 1] = _scaled(hsv[:, :, 1], np.random.uniform(*self.SATURATION))
        return _from_hsv(hsv)

    def _hue(self, rgb: np.ndarray) -> np.ndarray:
        hsv = np.array(Image.fromarray(rgb).convert("HSV"))
        turn = np.random.randint(-self.HUE, self.HUE + 1) * 256 / 180  # Pillow's turn has 256 steps
        hsv[:, :, 0] += np.uint8(round(turn) % 256)  # wraps around, as hues do
        return _from_hsv(hsv)


def _scaled(values: np.ndarray, factor: float, offset: float = 0) -> np.ndarray:
    return np.clip(values * np.float32(factor) + np.float32(offset), 0, 255).astype(np.uint8)


def _from_hsv(hsv: np.ndarray) -> np.ndarray:
    size = (hsv.shape[1], hsv.shape[0])
    return np.asarray(Image.frombytes("HSV", size, hsv.tobytes()).convert("RGB"))
