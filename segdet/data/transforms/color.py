"""Random colours: mixes of an image with its mean, with black, with its grey, with a colour."""

from __future__ import annotations

import numpy as np

from segdet.data.transforms.augmentation import Augmentation
from segdet.data.transforms.transform import BlendTransform, Transform

_LUMA = np.array([0.299, 0.587, 0.114])  # of red, green, blue: ITU-R BT.601


class _RandomBlend(Augmentation):
    """Mixes the image with something that follows from it.

    Args:
        intensity_min: weight of the image at least; 1 changes nothing.
        intensity_max: at most.
    """

    def __init__(self, intensity_min: float, intensity_max: float) -> None:
        self.intensity_min, self.intensity_max = intensity_min, intensity_max

    def get_transform(self, image: np.ndarray) -> Transform:
        """The blend of one drawn weight."""
        weight = np.random.uniform(self.intensity_min, self.intensity_max)
        return BlendTransform(self._source(image), src_weight=1 - weight, dst_weight=weight)

    def _source(self, image: np.ndarray) -> np.ndarray | float:
        raise NotImplementedError


class RandomContrast(_RandomBlend):
    """Mixes with the image's mean.

    Args:
        intensity_min: weight of the image at least; 1 changes nothing.
        intensity_max: at most.
    """

    def _source(self, image: np.ndarray) -> float:
        return image.mean()


class RandomBrightness(_RandomBlend):
    """Mixes with black.

    Args:
        intensity_min: weight of the image at least; 1 changes nothing.
        intensity_max: at most.
    """

    def _source(self, image: np.ndarray) -> float:
        return 0


class RandomSaturation(_RandomBlend):
    """Mixes with the grey image.

    Args:
        intensity_min: weight of the image at least; 1 changes nothing.
        intensity_max: at most.
        img_format: "RGB", which detectron2 takes whatever there is, or "BGR".
    """

    def __init__(self, intensity_min: float, intensity_max: float, img_format: str = "RGB") -> None:
        if img_format not in ("BGR", "RGB"):
            raise ValueError(f'img_format must be "BGR" or "RGB", is {img_format!r}')
        super().__init__(intensity_min, intensity_max)
        self.img_format = img_format

    def _source(self, image: np.ndarray) -> np.ndarray:
        _check_channels("saturation", image)
        return image.dot(_LUMA[:: 1 if self.img_format == "RGB" else -1])[:, :, None]


class RandomLighting(Augmentation):
    """Adds noise along the principal colours of ImageNet; channels are red, green, blue.

    Source: AlexNet (Krizhevsky et al. 2012), section 4.1.

    Args:
        scale: standard deviation of the noise.
    """

    EIGEN_VECTORS = np.array(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    )
    EIGEN_VALUES = np.array([0.2175, 0.0188, 0.0045])

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def get_transform(self, image: np.ndarray) -> Transform:
        """The blend with one drawn colour."""
        _check_channels("lighting", image)
        weights = np.random.normal(scale=self.scale, size=3)
        color = self.EIGEN_VECTORS.dot(weights * self.EIGEN_VALUES)
        return BlendTransform(color, src_weight=1.0, dst_weight=1.0)


def _check_channels(what: str, image: np.ndarray) -> None:
    """Refuse an image that is not (H, W, 3)."""
    if image.shape[-1] != 3:
        raise ValueError(f"{what} needs three channels, got shape {image.shape}")
