"""Training samples made of several: copy-paste and mosaic, after each has been augmented."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from segdet.config.ranges import Fraction, PositiveFraction
from segdet.data import transforms as T
from segdet.data.annotations import filter_empty_instances
from segdet.data.common import MapStyle
from segdet.structures import BitMasks, Boxes, Instances, PolygonMasks

_LABEL_MAPS = ("sem_seg", "basis_sem")
_PAD_VALUE, _IGNORED = 128, 255  # as FixedSizeCrop's


class Mix(Protocol):
    """Makes a sample of one and some others."""

    prob: float  # of being done to a sample
    others: int  # samples that it needs

    def __call__(self, sample: dict[str, Any], others: list[dict[str, Any]]) -> dict[str, Any]:
        """The new sample; those given may be used up."""
        ...


class MixedDataset(Dataset[Any]):
    """Mapped samples, each mixed with some others at random.

    Whether, and with which, is drawn from numpy's global generator, which the loader seeds for
    each position of the stream: batch k is the same whoever computes it, also behind a resume.

    Args:
        dataset: of samples of `DatasetMapper`.
        mixes: what is done to each, one after the other.
    """

    def __init__(self, dataset: MapStyle, mixes: Sequence[Mix]) -> None:
        self._dataset, self._mixes = dataset, mixes

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self._dataset[index]
        for mix in self._mixes:
            if np.random.uniform() < mix.prob:
                indices = np.random.randint(len(self), size=mix.others).tolist()
                sample = mix(sample, [self._dataset[i] for i in indices])
        return sample


@dataclass(frozen=True, kw_only=True)
class CopyPasteConfig:
    """INPUT.COPY_PASTE."""

    prob: Fraction = 0.0  # of a picture to get another one's objects

    def build(self) -> CopyPaste:
        """The mix."""
        return CopyPaste(self.prob)


class CopyPaste:
    """Puts objects of another picture upon a picture, where they were; each with chance 1/2.

    Source: Simple Copy-Paste (Ghiasi et al. 2021, arXiv:2012.07177), section 3: objects lose what
    is covered of them, and those of which nothing is left go. Crowds are not copied.

    Args:
        prob: in [0, 1].
    """

    others = 1

    def __init__(self, prob: float) -> None:
        self.prob = prob

    def __call__(self, sample: dict[str, Any], others: list[dict[str, Any]]) -> dict[str, Any]:
        """The sample with objects of the other; `gt_masks` become `BitMasks`."""
        size = sample["image"].shape[1:]
        source = transformed(others[0], _fit(others[0]["image"].shape[1:], size))
        targets: Instances = source["instances"]
        chosen = torch.as_tensor(np.random.uniform(size=len(targets)) < 0.5)
        pasted = _with_bitmasks(targets[chosen & (targets.gt_classes >= 0)])
        pasted = filter_empty_instances(pasted)
        if len(pasted) == 0:
            return sample
        covered = pasted.gt_masks.tensor.any(0)  # (H, W)
        image = torch.where(covered, source["image"], sample["image"])
        kept = _uncovered(_with_bitmasks(sample["instances"]), covered)
        mixed = sample | {"image": image, "instances": Instances.cat([kept, pasted])}
        for name in _LABEL_MAPS:
            if name in sample and name in source:
                mixed[name] = torch.where(covered, source[name], sample[name])
        return mixed


def _uncovered(targets: Instances, covered: Tensor) -> Instances:
    """What is left of objects; the boxes of those that lost something are made tight."""
    masks = targets.gt_masks.tensor
    hit = (masks & covered).flatten(1).any(1)
    left = BitMasks(masks & ~covered)
    targets.gt_boxes = Boxes(
        torch.where(hit[:, None], left.get_bounding_boxes().tensor, targets.gt_boxes.tensor)
    )
    targets.gt_masks = left
    return filter_empty_instances(targets)


@dataclass(frozen=True, kw_only=True)
class MosaicConfig:
    """INPUT.MOSAIC."""

    prob: Fraction = 0.0  # of a picture to share its place with three others
    scale: PositiveFraction = 0.5  # by which each is shrunk

    def build(self) -> Mosaic:
        """The mix."""
        return Mosaic(self.prob, self.scale)


class Mosaic:
    """Four pictures around a point of the first one's canvas, each with a corner at it.

    Source: YOLOv4 (Bochkovskiy et al. 2020, arXiv:2004.10934), section 3.2; the point is in the
    middle half of the canvas, as in its successors.

    Args:
        prob: in [0, 1].
        scale: by which each picture is shrunk.
    """

    others = 3

    def __init__(self, prob: float, scale: float) -> None:
        self.prob, self.scale = prob, scale

    def __call__(self, sample: dict[str, Any], others: list[dict[str, Any]]) -> dict[str, Any]:
        """The mosaic, of the first picture's size."""
        height, width = sample["image"].shape[1:]
        y, x = (np.random.uniform(0.25, 0.75, 2) * [height, width]).astype(int).tolist()
        quarters = [(0, 0, y, x), (0, x, y, width), (y, 0, height, x), (y, x, height, width)]
        tiles = [
            transformed(one, self._place(one["image"].shape[1:], (height, width), quarter, (y, x)))
            for one, quarter in zip([sample, *others], quarters, strict=True)
        ]
        mixed: dict[str, Any] = sample | {"instances": _cat([tile["instances"] for tile in tiles])}
        for name in ("image", "sem_seg"):
            if all(name in tile for tile in tiles):
                mixed[name] = tiles[0][name].clone()
                for tile, (y0, x0, y1, x1) in zip(tiles[1:], quarters[1:], strict=True):
                    mixed[name][..., y0:y1, x0:x1] = tile[name][..., y0:y1, x0:x1]
        return mixed

    def _place(
        self,
        size: tuple[int, int],
        canvas: tuple[int, int],
        quarter: tuple[int, int, int, int],
        point: tuple[int, int],
    ) -> T.TransformList:
        """What brings a picture to its quarter (y0, x0, y1, x1) of the canvas."""
        new_h, new_w = (max(1, round(side * self.scale)) for side in size)
        y0, x0, y1, x1 = quarter
        h, w = min(new_h, y1 - y0), min(new_w, x1 - x0)
        # Above and left of the point its lower right part is seen, and so on.
        is_above, is_left = y1 == point[0], x1 == point[1]
        top, left = (point[0] - h if is_above else y0), (point[1] - w if is_left else x0)
        crop = T.CropTransform(new_w - w if is_left else 0, new_h - h if is_above else 0, w, h)
        pad = _padding(left, top, canvas[1] - left - w, canvas[0] - top - h)
        return T.TransformList([T.ResizeTransform(*size, new_h, new_w), crop, pad])


def _fit(size: tuple[int, int], canvas: tuple[int, int]) -> T.TransformList:
    """Cut and pad a picture, right and below, to another's (height, width)."""
    h, w = min(size[0], canvas[0]), min(size[1], canvas[1])
    padding = _padding(0, 0, canvas[1] - w, canvas[0] - h)
    return T.TransformList([T.CropTransform(0, 0, w, h), padding])


def _padding(x0: int, y0: int, x1: int, y1: int) -> T.PadTransform:
    return T.PadTransform(x0, y0, x1, y1, pad_value=_PAD_VALUE, seg_pad_value=_IGNORED)


def transformed(sample: dict[str, Any], transform: T.Transform) -> dict[str, Any]:
    """A mapped sample under a further transform; boxes become tight around the masks.

    Args:
        sample: of `DatasetMapper`: `image` (C, H, W), `instances`, maybe label maps (H, W).
        transform: of images of its size.
    """
    image = transform.apply_image(sample["image"].permute(1, 2, 0).numpy())
    moved = sample | {"image": torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))}
    for name in _LABEL_MAPS:
        if name in sample:
            moved[name] = torch.as_tensor(transform.apply_segmentation(sample[name].numpy()))
    moved["instances"] = _transformed_targets(sample["instances"], transform, image.shape[:2])
    return moved


def _transformed_targets(
    targets: Instances, transform: T.Transform, size: tuple[int, int]
) -> Instances:
    masks = targets.gt_masks
    if isinstance(masks, PolygonMasks):
        polygons = [[part.reshape(-1, 2).copy() for part in parts] for parts in masks.polygons]
        new_masks: Any = PolygonMasks(
            [[p.reshape(-1) for p in transform.apply_polygons(parts)] for parts in polygons]
        )
    else:
        # 0 and 1, because what padding brings in is neither
        pixels = [transform.apply_segmentation(mask.numpy().view(np.uint8)) for mask in masks]
        new_masks = BitMasks(np.stack(pixels) == 1 if pixels else np.zeros((0, *size), bool))
    moved = type(targets)(size)
    for name, value in targets.get_fields().items():
        moved.set(name, value)
    moved.gt_masks, moved.gt_boxes = new_masks, new_masks.get_bounding_boxes()
    moved.gt_boxes.clip(size)
    return filter_empty_instances(moved)


def _with_bitmasks(targets: Instances) -> Instances:
    """The same, its polygons drawn."""
    drawn = targets[torch.arange(len(targets))]
    if isinstance(targets.gt_masks, PolygonMasks):
        drawn.gt_masks = BitMasks.from_polygon_masks(targets.gt_masks, *targets.image_size)
    return drawn


def _cat(parts: list[Instances]) -> Instances:
    """All objects; as bitmasks where not all have polygons."""
    if not all(isinstance(part.gt_masks, PolygonMasks) for part in parts):
        parts = [_with_bitmasks(part) for part in parts]
    return Instances.cat(parts)
