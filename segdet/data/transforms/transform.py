"""Transforms without randomness: each applies the same change to pixels, coordinates and masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from segdet.ops import resize_image
from segdet.structures import RotatedBoxes

_TORCH_MODES = {
    Image.Resampling.NEAREST: "nearest",
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.BICUBIC: "bicubic",
}


class Transform:
    """One change of an image and of everything that lies on it.

    Subclasses define `apply_image` and `apply_coords`; the rest follows. Further data types are
    added with `register_type`. Pixel (i, j) is the unit square around (j + 0.5, i + 0.5), so
    coordinates of an (H, W) image are in [0, W] x [0, H].
    """

    def _set_attributes(self, params: dict[str, Any] | None = None) -> None:
        """Keep `locals()` of a constructor as attributes, as users' subclasses do."""
        for name, value in (params or {}).items():
            if name != "self" and not name.startswith("_"):
                setattr(self, name, value)

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Change an image, (H, W) or (H, W, C), uint8 in [0, 255] or float."""
        raise NotImplementedError(f"{type(self).__name__} does not define apply_image")

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Change (N, 2) float x, y; the argument may be overwritten."""
        raise NotImplementedError(f"{type(self).__name__} does not define apply_coords")

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Change an (H, W) map of labels or a mask; no new values appear."""
        return self.apply_image(segmentation)

    def apply_box(self, box: np.ndarray) -> np.ndarray:
        """Change (N, 4) XYXY boxes to the boxes around their four changed corners."""
        corners = np.asarray(box, np.float64).reshape(-1, 4)[:, [0, 1, 2, 1, 0, 3, 2, 3]]
        corners = self.apply_coords(corners.reshape(-1, 2)).reshape(-1, 4, 2)
        return np.concatenate([corners.min(1), corners.max(1)], axis=1)

    def apply_rotated_box(self, boxes: np.ndarray) -> np.ndarray:
        """Change (N, 5) boxes x, y, width, height, angle; degrees, counter-clockwise on screen."""
        raise NotImplementedError(f"{type(self).__name__} does not move rotated boxes")

    def apply_polygons(self, polygons: list[np.ndarray]) -> list[np.ndarray]:
        """Change the (n, 2) points of each polygon."""
        return [self.apply_coords(polygon) for polygon in polygons]

    def inverse(self) -> Transform:
        """The transform that undoes this one on coordinates (lost pixels stay lost)."""
        raise NotImplementedError(f"{type(self).__name__} has no inverse")

    @classmethod
    def register_type(
        cls, data_type: str, func: Callable[[Transform, Any], Any] | None = None
    ) -> Callable[..., Any]:
        """Add the method `apply_<data_type>` to this class and its subclasses.

        Args:
            data_type: the name of the type.
            func: takes the transform and the data; left out, this is a decorator.
        """
        if func is None:
            return lambda decorated: cls.register_type(data_type, decorated)
        setattr(cls, f"apply_{data_type}", func)
        return func

    def __add__(self, other: Transform | TransformList) -> TransformList:
        return TransformList([self, other])

    def __repr__(self) -> str:
        values = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if np.ndim(v) == 0)
        return f"{type(self).__name__}({values})"


def moved_rotated_boxes(transform: Transform, boxes: np.ndarray) -> np.ndarray:
    """(N, 5) float64 copies with their middles moved."""
    moved = np.array(boxes, np.float64).reshape(-1, 5)
    moved[:, :2] = transform.apply_coords(moved[:, :2].copy())
    return moved


class TransformList(Transform):
    """Transforms applied one after the other; lists inside are flattened.

    Attributes:
        transforms: the list.
    """

    def __init__(self, transforms: list[Transform | TransformList]) -> None:
        self.transforms: list[Transform] = []
        for transform in transforms:
            if not isinstance(transform, Transform):
                raise TypeError(f"TransformList holds transforms, got {transform!r}")
            inner = transform.transforms if isinstance(transform, TransformList) else [transform]
            self.transforms.extend(inner)

    def __getattribute__(self, name: str) -> Any:
        # So that registered data types pass through each transform as well.
        if not name.startswith("apply_"):
            return super().__getattribute__(name)

        def apply(data: Any) -> Any:
            for transform in self.transforms:
                data = getattr(transform, name)(data)
            return data

        return apply

    def inverse(self) -> TransformList:
        """The inverses in reverse order."""
        return TransformList([transform.inverse() for transform in self.transforms[::-1]])

    def __len__(self) -> int:
        return len(self.transforms)

    def __radd__(self, other: Transform) -> TransformList:
        return TransformList([other, self])

    def __repr__(self) -> str:
        return f"TransformList({self.transforms})"


class NoOpTransform(Transform):
    """Changes nothing."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """The image itself."""
        return img

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """The coordinates themselves."""
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """The labels themselves."""
        return segmentation

    def apply_rotated_box(self, boxes: np.ndarray) -> np.ndarray:
        """The boxes themselves."""
        return boxes

    def inverse(self) -> Transform:
        """Likewise changes nothing; what subclasses do to pixels is not undone."""
        return NoOpTransform()


class HFlipTransform(Transform):
    """Mirrors left and right.

    Args:
        width: of the image.
    """

    def __init__(self, width: int) -> None:
        self.width = width

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Reverse the columns."""
        return np.flip(img, axis=1)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Move x to width - x."""
        coords[:, 0] = self.width - coords[:, 0]
        return coords

    def apply_rotated_box(self, boxes: np.ndarray) -> np.ndarray:
        """Move the middles; angles change their sign."""
        return moved_rotated_boxes(self, boxes) * [1, 1, 1, 1, -1]

    def inverse(self) -> Transform:
        """The same flip."""
        return self


class VFlipTransform(Transform):
    """Mirrors top and bottom.

    Args:
        height: of the image.
    """

    def __init__(self, height: int) -> None:
        self.height = height

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Reverse the rows."""
        return np.flip(img, axis=0)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Move y to height - y."""
        coords[:, 1] = self.height - coords[:, 1]
        return coords

    def apply_rotated_box(self, boxes: np.ndarray) -> np.ndarray:
        """Move the middles; angles change their sign."""
        return moved_rotated_boxes(self, boxes) * [1, 1, 1, 1, -1]

    def inverse(self) -> Transform:
        """The same flip."""
        return self


class ResizeTransform(Transform):
    """Resizes to a given size.

    Args:
        h: height before.
        w: width before.
        new_h: height after.
        new_w: width after.
        interp: a Pillow resampling for images; label maps are always resized to nearest.
    """

    def __init__(
        self, h: int, w: int, new_h: int, new_w: int, interp: int = Image.Resampling.BILINEAR
    ) -> None:
        if min(new_h, new_w) < 1:
            raise ValueError(f"cannot resize to height {new_h}, width {new_w}")
        self.h, self.w, self.new_h, self.new_w = h, w, new_h, new_w
        self.interp = Image.Resampling(interp if interp is not None else 2)

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resize; uint8 by Pillow (antialiased), other types by torch (not antialiased).

        Args:
            img: (h, w) or (h, w, C).
            interp: overrides the constructor's.
        """
        if img.shape[:2] != (self.h, self.w):
            raise ValueError(
                f"the resize is for images of {(self.h, self.w)} (height, width), this is "
                f"{img.shape[:2]}"
            )
        method = self.interp if interp is None else Image.Resampling(interp)
        if (self.new_h, self.new_w) == (self.h, self.w):
            return img
        if method == Image.Resampling.NEAREST:
            return img[self._nearest(self.h, self.new_h)][:, self._nearest(self.w, self.new_w)]
        if img.dtype == np.uint8:
            return self._resize_uint8(img, method)
        return self._resize_float(img, method)

    @staticmethod
    def _nearest(old: int, new: int) -> np.ndarray:
        """(new,) index of the old row that each new row shows, by Pillow's own rounding."""
        line = Image.fromarray(np.arange(old, dtype=np.int32)[None])
        return np.asarray(line.resize((new, 1), Image.Resampling.NEAREST))[0]

    def _resize_uint8(self, img: np.ndarray, method: Image.Resampling) -> np.ndarray:
        if method == Image.Resampling.BILINEAR and img.ndim == 3 and img.shape[2] == 3:
            pixels = torch.from_numpy(np.require(img, requirements=["C", "W"]))
            return resize_image(pixels, self.new_h, self.new_w).numpy().transpose(1, 2, 0)
        size = (self.new_w, self.new_h)
        if img.ndim == 2 or img.shape[2] == 3:
            return np.asarray(Image.fromarray(np.ascontiguousarray(img)).resize(size, method))
        channels = [Image.fromarray(np.ascontiguousarray(c)) for c in np.moveaxis(img, 2, 0)]
        return np.stack([np.asarray(c.resize(size, method)) for c in channels], axis=2)

    def _resize_float(self, img: np.ndarray, method: Image.Resampling) -> np.ndarray:
        if method not in _TORCH_MODES:
            raise ValueError(f"float images cannot be resized with {method!r}")
        chw = torch.from_numpy(np.ascontiguousarray(img.reshape(self.h, self.w, -1))).movedim(2, 0)
        size = (self.new_h, self.new_w)
        out = F.interpolate(chw[None], size, mode=_TORCH_MODES[method], align_corners=False)[0]
        return out.movedim(0, 2).reshape(*size, *img.shape[2:]).numpy()

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Multiply x and y by the ratios of the sizes."""
        coords[:, 0] *= self.new_w / self.w
        coords[:, 1] *= self.new_h / self.h
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Resize to nearest."""
        return self.apply_image(segmentation, interp=Image.Resampling.NEAREST)

    def apply_rotated_box(self, boxes: np.ndarray) -> np.ndarray:
        """Stretch; where the ratios differ as `RotatedBoxes.scale` says."""
        moved = RotatedBoxes(torch.as_tensor(np.array(boxes, np.float64).reshape(-1, 5)))
        moved.scale(self.new_w / self.w, self.new_h / self.h)
        return moved.tensor.numpy()

    def inverse(self) -> Transform:
        """The resize back."""
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)


class CropTransform(Transform):
    """Cuts out a rectangle.

    Args:
        x0: its left column.
        y0: its top row.
        w: its width.
        h: its height.
        orig_w: width of the image before, needed only by `inverse`.
        orig_h: height before, likewise.
    """

    def __init__(
        self,
        x0: int,
        y0: int,
        w: int,
        h: int,
        orig_w: int | None = None,
        orig_h: int | None = None,
    ) -> None:
        self.x0, self.y0, self.w, self.h = x0, y0, w, h
        self.orig_w, self.orig_h = orig_w, orig_h

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Cut out, (H, W) or (H, W, C)."""
        return img[self.y0 : self.y0 + self.h, self.x0 : self.x0 + self.w]

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Move the origin; points outside stay outside."""
        coords[:, 0] -= self.x0
        coords[:, 1] -= self.y0
        return coords

    def apply_polygons(self, polygons: list[np.ndarray]) -> list[np.ndarray]:
        """Cut the polygons at the border; holes that this makes are lost.

        Returns:
            (n, 2) points of the pieces that have an area: none, one or more per polygon.
        """
        import shapely

        window = shapely.box(self.x0, self.y0, self.x0 + self.w, self.y0 + self.h)
        pieces = []
        for polygon in polygons:
            low, high = polygon.min(0), polygon.max(0)
            if (low >= [self.x0, self.y0]).all() and (high <= window.bounds[2:]).all():
                pieces.append(self.apply_coords(polygon))
                continue
            cut = shapely.make_valid(shapely.Polygon(polygon)).intersection(window)
            for piece in shapely.get_parts(shapely.get_parts(cut)):
                if piece.geom_type == "Polygon" and piece.area > 0:
                    points = np.asarray(piece.exterior.coords[:-1])
                    pieces.append(self.apply_coords(points))
        return pieces

    def apply_rotated_box(self, boxes: np.ndarray) -> np.ndarray:
        """Move the origin."""
        return moved_rotated_boxes(self, boxes)

    def inverse(self) -> Transform:
        """The padding back to the original size."""
        if self.orig_w is None or self.orig_h is None:
            raise ValueError("the inverse of a crop needs orig_w and orig_h")
        right, bottom = self.orig_w - self.x0 - self.w, self.orig_h - self.y0 - self.h
        return PadTransform(self.x0, self.y0, right, bottom, orig_w=self.w, orig_h=self.h)


class PadTransform(Transform):
    """Adds a border.

    Args:
        x0: columns on the left.
        y0: rows at the top.
        x1: columns on the right.
        y1: rows at the bottom.
        orig_w: width of the image before, needed only by `inverse`.
        orig_h: height before, likewise.
        pad_value: of the new pixels in images.
        seg_pad_value: of the new pixels in label maps and masks.
    """

    def __init__(
        self,
        x0: int,
        y0: int,
        x1: int,
        y1: int,
        orig_w: int | None = None,
        orig_h: int | None = None,
        pad_value: float = 0,
        seg_pad_value: int = 0,
    ) -> None:
        self.x0, self.y0, self.x1, self.y1 = x0, y0, x1, y1
        self.orig_w, self.orig_h = orig_w, orig_h
        self.pad_value, self.seg_pad_value = pad_value, seg_pad_value

    def _pad(self, img: np.ndarray, value: float) -> np.ndarray:
        border = [(self.y0, self.y1), (self.x0, self.x1)] + [(0, 0)] * (img.ndim - 2)
        return np.pad(img, border, constant_values=value)

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Pad with `pad_value`."""
        return self._pad(img, self.pad_value)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Pad with `seg_pad_value`."""
        return self._pad(segmentation, self.seg_pad_value)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Move the origin."""
        coords[:, 0] += self.x0
        coords[:, 1] += self.y0
        return coords

    def apply_rotated_box(self, boxes: np.ndarray) -> np.ndarray:
        """Move the origin."""
        return moved_rotated_boxes(self, boxes)

    def inverse(self) -> Transform:
        """The crop that takes the border off."""
        if self.orig_w is None or self.orig_h is None:
            raise ValueError("the inverse of padding needs orig_w and orig_h")
        full_w = self.orig_w + self.x0 + self.x1
        full_h = self.orig_h + self.y0 + self.y1
        return CropTransform(self.x0, self.y0, self.orig_w, self.orig_h, full_w, full_h)


class BlendTransform(NoOpTransform):
    """Mixes the pixels with another image or value.

    Args:
        src_image: what to mix in; broadcast to the image.
        src_weight: its weight.
        dst_weight: the image's own weight.
    """

    def __init__(self, src_image: np.ndarray | float, src_weight: float, dst_weight: float) -> None:
        self.src_image, self.src_weight, self.dst_weight = src_image, src_weight, dst_weight

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Mix; uint8 is clipped to [0, 255] and truncated, floats are not clipped."""
        mixed = self.src_weight * self.src_image + self.dst_weight * img.astype(np.float32)
        if img.dtype == np.uint8:
            return np.clip(mixed, 0, 255).astype(np.uint8)
        return mixed.astype(img.dtype)


class ColorTransform(NoOpTransform):
    """Changes pixels by a function and moves nothing.

    Args:
        op: takes and returns an image of the same size.
    """

    def __init__(self, op: Callable[[Any], Any]) -> None:
        if not callable(op):
            raise TypeError(f"op must be a function of an image, is {op!r}")
        self.op = op

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """What `op` makes of the image."""
        return self.op(img)


class PILColorTransform(ColorTransform):
    """The same with a function of Pillow images."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """What `op` makes of the image."""
        return np.asarray(self.op(Image.fromarray(img)))
