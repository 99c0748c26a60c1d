"""What an augmentation is, and how a list of them runs over an image and what lies on it.

All randomness comes from numpy's global generator, which the loader seeds for each sample.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np

from segdet.data.transforms.transform import Transform, TransformList


class Augmentation:
    """A policy that makes a `Transform` for each image, mostly at random.

    Subclasses define `get_transform`. Its argument names say what it needs to see: `image`, and
    if wanted `sem_seg`, `boxes` or any other attribute of the `AugInput`.
    """

    def _init(self, params: dict[str, Any] | None = None) -> None:
        """Keep `locals()` of a constructor as attributes, as users' subclasses do."""
        for name, value in (params or {}).items():
            if name != "self" and not name.startswith("_"):
                setattr(self, name, value)

    def get_transform(self, *args: Any, **kwargs: Any) -> Transform:
        """The transform for one image."""
        raise NotImplementedError(f"{type(self).__name__} does not define get_transform")

    def looks_at(self) -> list[str]:
        """The attributes of an `AugInput` that `get_transform` sees."""
        wanted = inspect.signature(self.get_transform).parameters
        # A bare `image` may be called anything when it is the only argument.
        return ["image"] if len(wanted) == 1 else list(wanted)

    def __call__(self, aug_input: AugInput) -> Transform:
        """Make a transform, apply it to `aug_input` in place, and return it."""
        names = self.looks_at()
        missing = [name for name in names if getattr(aug_input, name, None) is None]
        if missing:
            raise AttributeError(
                f"{type(self).__name__} needs {', '.join(missing)}, which its input does not have"
            )
        transform = self.get_transform(*(getattr(aug_input, name) for name in names))
        if not isinstance(transform, Transform):
            raise TypeError(f"{type(self).__name__}.get_transform gave {transform!r}")
        aug_input.transform(transform)
        return transform

    def _rand_range(
        self, low: float = 1.0, high: float | None = None, size: int | None = None
    ) -> Any:
        """Uniform in [low, high), or in [0, low) with one argument."""
        return np.random.uniform(0 if high is None else low, low if high is None else high, size)

    def __repr__(self) -> str:
        values = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if not k.startswith("_"))
        return f"{type(self).__name__}({values})"


class _Always(Augmentation):
    """A fixed transform as an augmentation."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def get_transform(self, image: np.ndarray) -> Transform:
        return self.transform

    def __repr__(self) -> str:
        return repr(self.transform)


class AugmentationList(Augmentation):
    """Augmentations that run one after the other.

    Args:
        augs: augmentations or fixed transforms.
    """

    def __init__(self, augs: Sequence[Augmentation | Transform]) -> None:
        self.augs = [as_augmentation(aug) for aug in augs]

    def __call__(self, aug_input: AugInput) -> TransformList:
        """Run all on `aug_input` in place; return what was done."""
        return TransformList([aug(aug_input) for aug in self.augs])

    def looks_at(self) -> list[str]:
        """What any of them sees."""
        return [name for aug in self.augs for name in aug.looks_at()]

    def __repr__(self) -> str:
        return f"AugmentationList({self.augs})"


def as_augmentation(aug: Augmentation | Transform) -> Augmentation:
    """`aug` itself, or a fixed transform wrapped.

    Raises:
        TypeError: neither of the two.
    """
    if isinstance(aug, Augmentation):
        return aug
    if isinstance(aug, Transform):
        return _Always(aug)
    raise TypeError(f"expected an augmentation or a transform, got {aug!r}")


class AugInput:
    """An image and what is transformed along with it; more attributes may be added.

    Attributes:
        image: (H, W) or (H, W, C), uint8 in [0, 255] or float.
        boxes: (N, 4) XYXY in pixels, or None.
        sem_seg: (H, W) labels, or None.
    """

    def __init__(
        self,
        image: np.ndarray,
        *,
        boxes: np.ndarray | None = None,
        sem_seg: np.ndarray | None = None,
    ) -> None:
        if not isinstance(image, np.ndarray) or image.ndim not in (2, 3):
            raise TypeError(f"image must be an (H, W) or (H, W, C) array, got {type(image)}")
        self.image, self.boxes, self.sem_seg = image, boxes, sem_seg

    def transform(self, tfm: Transform) -> None:
        """Apply a transform to all attributes, in place."""
        self.image = tfm.apply_image(self.image)
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)

    def apply_augmentations(
        self, augmentations: Sequence[Augmentation | Transform]
    ) -> TransformList:
        """Run augmentations over this input, in place; return what was done."""
        return AugmentationList(augmentations)(self)


StandardAugInput = AugInput


def apply_augmentations(
    augmentations: Sequence[Augmentation | Transform], inputs: np.ndarray | AugInput
) -> tuple[np.ndarray | AugInput, TransformList]:
    """Run augmentations over an image or an `AugInput`.

    Returns:
        The result, of the type of `inputs`, and the transforms to apply to other data.
    """
    aug_input = AugInput(inputs) if isinstance(inputs, np.ndarray) else inputs
    transforms = aug_input.apply_augmentations(augmentations)
    return (aug_input.image if isinstance(inputs, np.ndarray) else aug_input), transforms


apply_transform_gens = apply_augmentations
TransformGen = Augmentation
