"""Transforms of albumentations and of torchvision.transforms.v2 as augmentations.

Their randomness is drawn from numpy's generator for each image, as ours is; image, labels and
coordinates then see the same draw.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch

from segdet.data.transforms.augmentation import Augmentation
from segdet.data.transforms.transform import CropTransform, Transform
from segdet.errors import ConfigError


class _Drawn(Transform):
    """One draw of a transform of another package, for images of a size.

    Args:
        transform: theirs.
        size: (height, width) of the images.
    """

    def __init__(self, transform: Any, size: tuple[int, int]) -> None:
        self.transform, self.size = transform, size
        self.seed = int(np.random.randint(1 << 31))

    def apply_polygons(self, polygons: list[np.ndarray]) -> list[np.ndarray]:
        """Cut at the border of the image, beyond which nothing is seen, and transform the rest."""
        height, width = self.size
        return super().apply_polygons(CropTransform(0, 0, width, height).apply_polygons(polygons))


class AlbumentationsAdapter(Augmentation):
    """A transform of albumentations, or a Compose of some.

    Args:
        transform: works on images, masks and keypoints. It sees channels as the image has them.
    """

    def __init__(self, transform: Any) -> None:
        try:
            import albumentations  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ConfigError(
                "AlbumentationsAdapter needs albumentations: pip install 'segdet[augment]'"
            ) from None
        points = albumentations.KeypointParams("xy", remove_invisible=False)
        self.transform = albumentations.Compose([transform], keypoint_params=points)

    def get_transform(self, image: np.ndarray) -> Transform:
        """The transform of one draw."""
        return _Albumentations(self.transform, image.shape[:2])


class _Albumentations(_Drawn):
    """A draw of albumentations' transform."""

    def _run(self, **data: Any) -> dict[str, Any]:
        self.transform.set_random_seed(self.seed)
        return self.transform(**data)

    def _blank(self) -> np.ndarray:
        return np.zeros((*self.size, 3), np.uint8)

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Transform (H, W) or (H, W, C)."""
        return self._run(image=np.ascontiguousarray(img))["image"]

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Transform (H, W) labels as a mask."""
        # OpenCV, which does it, warps neither bools nor whole numbers of all sizes.
        kind = np.uint8 if segmentation.dtype.itemsize == 1 else np.float32
        labels = np.ascontiguousarray(segmentation, kind)
        return self._run(image=self._blank(), mask=labels)["mask"].astype(segmentation.dtype)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Transform as keypoints, which count from the middle of the first pixel there."""
        if len(coords) == 0:
            return coords
        points = self._run(image=self._blank(), keypoints=coords - 0.5)["keypoints"]
        return np.asarray(points, np.float64).reshape(-1, 2) + 0.5


class TorchvisionAdapter(Augmentation):
    """A transform of torchvision.transforms.v2.

    Args:
        transform: works on tv_tensors (Image, Mask, BoundingBoxes); Compose and others that hold
            transforms are ones, too. It sees channels as the image has them.
    """

    def __init__(self, transform: Any) -> None:
        try:
            from torchvision import tv_tensors
        except ImportError as error:
            raise ConfigError(f"TorchvisionAdapter needs torchvision ({error})") from None
        arguments = inspect.signature(tv_tensors.BoundingBoxes.__new__).parameters
        if "clamping_mode" not in arguments:
            raise ConfigError("TorchvisionAdapter needs torchvision 0.24 or later")
        self.transform, self._types = transform, tv_tensors

    def get_transform(self, image: np.ndarray) -> Transform:
        """The transform of one draw."""
        return _Torchvision(self.transform, image.shape[:2], self._types)


class _Torchvision(_Drawn):
    """A draw of torchvision's transform.

    Args:
        types: the module of tv_tensors.
    """

    def __init__(self, transform: Any, size: tuple[int, int], types: Any) -> None:
        super().__init__(transform, size)
        self._types = types

    def _run(self, data: Any) -> torch.Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            return self.transform(data)

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Transform (H, W) or (H, W, C)."""
        planes = np.ascontiguousarray(img.reshape(*img.shape[:2], -1).transpose(2, 0, 1))
        out = self._run(self._types.Image(torch.from_numpy(planes)))
        return out.permute(1, 2, 0).numpy().reshape(*out.shape[1:], *img.shape[2:])

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Transform (H, W) labels as a mask."""
        labels = torch.from_numpy(np.ascontiguousarray(segmentation[None]))
        return self._run(self._types.Mask(labels))[0].numpy()

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Transform as boxes without extent: unlike keypoints there, they count as ours do."""
        places = torch.from_numpy(np.concatenate([coords, coords], axis=1))
        boxes = self._types.BoundingBoxes(
            places, format="XYXY", canvas_size=self.size, clamping_mode=None
        )
        return self._run(boxes)[:, :2].numpy()
