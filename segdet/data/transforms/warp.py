"""Transforms that sample the image anew: rotation, and a window that may leave the image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from segdet.data.transforms.augmentation import Augmentation
from segdet.data.transforms.transform import (
    CropTransform,
    NoOpTransform,
    Transform,
    TransformList,
    moved_rotated_boxes,
)

_MODES = {Image.Resampling.NEAREST: "nearest", Image.Resampling.BILINEAR: "bilinear"}
_IGNORED = 255  # label of what was outside the image


class _Warp(Transform):
    """An affine map of coordinates; what comes from outside the image is `fill`.

    Attributes:
        matrix: (2, 3) float64, from x, y, 1 before to x, y after.
        output_size: (height, width) after.
        input_size: (height, width) before, at which polygons are cut: beyond it nothing is seen.
            None cuts none.
        interp: `Image.Resampling` of images; labels are always taken from the nearest pixel.
        fill: of what comes from outside the image.
    """

    matrix: np.ndarray
    output_size: tuple[int, int]
    input_size: tuple[int, int] | None = None
    interp: int = Image.Resampling.BILINEAR
    fill: float = 0

    def apply_image(
        self, img: np.ndarray, interp: int | None = None, fill: float | None = None
    ) -> np.ndarray:
        """Sample the image; at its border it mixes with `fill`.

        Args:
            img: (H, W) or (H, W, C).
            interp: overrides the constructor's.
            fill: likewise.
        """
        fill = self.fill if fill is None else fill
        method = Image.Resampling(self.interp if interp is None else interp)
        if method not in _MODES:
            raise ValueError(f"interp must be nearest or bilinear, is {method!r}")
        height, width = img.shape[:2]
        y, x = np.mgrid[: self.output_size[0], : self.output_size[1]] + 0.5  # centres of pixels
        inverse = np.linalg.inv(np.vstack([self.matrix, [0, 0, 1]]))[:2]
        places = np.stack([x, y], -1) @ inverse[:, :2].T + inverse[:, 2]  # (h, w, 2) in the image
        grid = torch.from_numpy(places / [width, height] * 2 - 1)[None]
        kind = torch.float32 if img.dtype == np.uint8 else torch.float64
        pixels = torch.from_numpy(np.ascontiguousarray(img.reshape(height, width, -1))).to(kind)
        sampled = F.grid_sample(
            pixels.movedim(2, 0)[None] - fill,
            grid.to(kind),
            mode=_MODES[method],
            padding_mode="zeros",
            align_corners=False,
        )
        out = (sampled[0] + fill).movedim(0, 2).numpy()
        if np.issubdtype(img.dtype, np.floating):
            return out.reshape(*self.output_size, *img.shape[2:]).astype(img.dtype)
        return out.round().reshape(*self.output_size, *img.shape[2:]).astype(img.dtype)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Take each label from the nearest pixel; outside a bool mask is False, labels are 255."""
        fill = 0 if segmentation.dtype == bool else _IGNORED
        return self.apply_image(segmentation, Image.Resampling.NEAREST, fill)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Move x and y."""
        return coords @ self.matrix[:, :2].T + self.matrix[:, 2]

    def apply_polygons(self, polygons: list[np.ndarray]) -> list[np.ndarray]:
        """Cut at the border of the image before, and move what is left."""
        if self.input_size is not None:
            height, width = self.input_size
            polygons = CropTransform(0, 0, width, height).apply_polygons(polygons)
        return super().apply_polygons(polygons)


class RotationTransform(_Warp):
    """Rotates about a point, counter-clockwise on the screen.

    Args:
        h: height before.
        w: width before.
        angle: in degrees.
        expand: make the result large enough to hold all of the image, and put it in the middle;
            otherwise it has the same size.
        center: x, y of the point; None is the middle of the image.
        interp: a Pillow resampling, nearest or bilinear; None is bilinear.
    """

    def __init__(
        self,
        h: int,
        w: int,
        angle: float,
        expand: bool = True,
        center: Sequence[float] | None = None,
        interp: int | None = None,
    ) -> None:
        self.h, self.w, self.angle, self.expand = h, w, angle, expand
        self.interp = Image.Resampling.BILINEAR if interp is None else interp
        middle = np.array([w / 2, h / 2])
        self.center = middle if center is None else np.asarray(center, np.float64)
        cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
        turn = np.array([[cos, sin], [-sin, cos]])  # y points down
        bound_w, bound_h = w, h
        shift = self.center - turn @ self.center
        if expand:
            size = np.rint([h * abs(sin) + w * abs(cos), h * abs(cos) + w * abs(sin)])
            bound_w, bound_h = size.astype(int).tolist()
            shift = size / 2 - turn @ middle
        self.bound_w, self.bound_h = bound_w, bound_h
        self.matrix = np.column_stack([turn, shift])
        self.input_size, self.output_size = (h, w), (bound_h, bound_w)

    def apply_image(
        self, img: np.ndarray, interp: int | None = None, fill: float | None = None
    ) -> np.ndarray:
        """Rotate an image of the size given; corners that it leaves free are 0."""
        if img.shape[:2] != (self.h, self.w):
            raise ValueError(
                f"the rotation is for images of {(self.h, self.w)} (height, width), this is "
                f"{img.shape[:2]}"
            )
        return img if self.angle % 360 == 0 else super().apply_image(img, interp, fill)

    def apply_rotated_box(self, boxes: np.ndarray) -> np.ndarray:
        """Move the middles and turn."""
        return moved_rotated_boxes(self, boxes) + np.array([0, 0, 0, 0, self.angle])

    def inverse(self) -> Transform:
        """The rotation back, cut to the original size; only where nothing was cut off."""
        if not self.expand:
            raise NotImplementedError("the inverse of a rotation with expand=False is not known")
        back = RotationTransform(self.bound_h, self.bound_w, -self.angle, True, None, self.interp)
        x0, y0 = (back.bound_w - self.w) // 2, (back.bound_h - self.h) // 2
        crop = CropTransform(x0, y0, self.w, self.h, back.bound_w, back.bound_h)
        return TransformList([back, crop])


class ExtentTransform(_Warp):
    """Cuts out a window, which may leave the image, and stretches it to a size.

    Args:
        src_rect: x0, y0, x1, y1 of the window.
        output_size: (height, width) of the result.
        interp: a Pillow resampling, nearest or bilinear.
        fill: of what lies outside the image.
        input_size: (height, width) of the image, at which polygons are cut; None cuts none.
    """

    def __init__(
        self,
        src_rect: Sequence[float],
        output_size: tuple[int, int],
        interp: int = Image.Resampling.BILINEAR,
        fill: float = 0,
        input_size: tuple[int, int] | None = None,
    ) -> None:
        x0, y0, x1, y1 = src_rect
        if x1 <= x0 or y1 <= y0 or min(output_size) < 1:
            raise ValueError(f"cannot stretch the window {list(src_rect)} to {output_size}")
        self.src_rect = (x0, y0, x1, y1)
        self.output_size = (output_size[0], output_size[1])
        self.interp, self.fill, self.input_size = interp, fill, input_size
        scale_y, scale_x = output_size[0] / (y1 - y0), output_size[1] / (x1 - x0)
        self.matrix = np.array([[scale_x, 0, -x0 * scale_x], [0, scale_y, -y0 * scale_y]])


class RandomRotation(Augmentation):
    """Rotates by a random angle, counter-clockwise.

    Args:
        angle: degrees; one number, a (low, high) range, or a list to choose from.
        expand: as for `RotationTransform`.
        center: (low, high) of the point's x, y, or a list of points to choose from; in shares of
            width and height. Without effect if the result is expanded.
        sample_style: "range" or "choice".
        interp: as for `RotationTransform`.
    """

    def __init__(
        self,
        angle: float | Sequence[float],
        expand: bool = True,
        center: Sequence[Sequence[float]] | None = None,
        sample_style: str = "range",
        interp: int | None = None,
    ) -> None:
        if sample_style not in ("range", "choice"):
            raise ValueError(f'sample_style must be "range" or "choice", is {sample_style!r}')
        self.is_range = sample_style == "range"
        self.angle = (angle, angle) if isinstance(angle, int | float) else tuple(angle)
        self.center = center
        if self.is_range and (len(self.angle) != 2 or (center is not None and len(center) != 2)):
            raise ValueError(f"a range has a low and a high end, got {self.angle} and {center}")
        self.expand, self.interp = expand, interp

    def get_transform(self, image: np.ndarray) -> Transform:
        """The rotation by one drawn angle."""
        h, w = image.shape[:2]
        center = None
        if self.is_range:
            angle = np.random.uniform(self.angle[0], self.angle[1])
            if self.center is not None:
                center = np.random.uniform(*np.asarray(self.center, np.float64))
        else:
            angle = np.random.choice(self.angle)
            if self.center is not None:
                center = np.asarray(self.center, np.float64)[np.random.randint(len(self.center))]
        if angle % 360 == 0:
            return NoOpTransform()
        point = None if center is None else center * [w, h]
        return RotationTransform(h, w, float(angle), self.expand, point, self.interp)


class RandomExtent(Augmentation):
    """Cuts out a window of random size and place, which may leave the image.

    Args:
        scale_range: (low, high) of its size, in sizes of the image.
        shift_range: how far its middle moves in x and y, in all, in sizes of the image.
    """

    def __init__(self, scale_range: tuple[float, float], shift_range: tuple[float, float]) -> None:
        self.scale_range, self.shift_range = scale_range, shift_range

    def get_transform(self, image: np.ndarray) -> Transform:
        """The window of one draw, at its own size."""
        size = np.array(image.shape[1::-1], np.float64)  # width, height
        half = size / 2 * np.random.uniform(self.scale_range[0], self.scale_range[1])
        middle = size / 2 + size * self.shift_range * (np.random.rand(2) - 0.5)
        x0, y0 = middle - half
        x1, y1 = middle + half
        output_size = (max(1, int(y1 - y0)), max(1, int(x1 - x0)))
        return ExtentTransform((x0, y0, x1, y1), output_size, input_size=image.shape[:2])
