"""Masks that are combined of prototypes and cropped with boxes, and what they should be.

Source: YOLACT (Bolya et al. 2019, arXiv:1904.02689), section 3.3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segdet.structures import BitMasks, PolygonMasks

CROP_MARGIN = 1.0  # cells of a prototype by which a box is wider than it says


def size_of(maps: Tensor) -> tuple[int, int]:
    """(height, width) of (..., H, W)."""
    return maps.shape[-2], maps.shape[-1]


def combine_prototypes(prototypes: Tensor, coefficients: Tensor, boxes: Tensor) -> Tensor:
    """Masks of an image's objects, each cropped with its box.

    Args:
        prototypes: (C, H, W).
        coefficients: (N, C).
        boxes: (N, 4) XYXY in fractions of the image.

    Returns:
        (N, H, W) probabilities, 0 outside of the boxes.
    """
    with torch.autocast(prototypes.device.type, enabled=False):
        masks = (coefficients @ prototypes.flatten(1)).sigmoid()
    return crop(masks.unflatten(1, prototypes.shape[1:]), boxes)


def crop(masks: Tensor, boxes: Tensor) -> Tensor:
    """Set cells outside of a mask's box, and a margin of `CROP_MARGIN`, to 0.

    Args:
        masks: (N, H, W).
        boxes: (N, 4) XYXY in fractions of the image.
    """
    height, width = masks.shape[-2:]
    inside_x = _inside(boxes[:, 0], boxes[:, 2], width)
    inside_y = _inside(boxes[:, 1], boxes[:, 3], height)
    return masks * (inside_y[:, :, None] & inside_x[:, None, :])


def _inside(start: Tensor, end: Tensor, cells: int) -> Tensor:
    """(N, cells) bool: the cell's number lies between both ends, in fractions, and the margin."""
    low = torch.minimum(start, end) * cells - CROP_MARGIN
    high = torch.maximum(start, end) * cells + CROP_MARGIN
    numbers = torch.arange(cells, device=start.device, dtype=start.dtype)
    return (numbers >= low[:, None]) & (numbers < high[:, None])


def shrink_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, H, W) in {0, 1} to (N, *size) likewise: bilinear, then above one half."""
    resized = F.interpolate(masks[:, None], size, mode="bilinear")[:, 0]
    return (resized > 0.5).to(masks.dtype)


def paint(masks: BitMasks | PolygonMasks, size: tuple[int, int], like: Tensor) -> Tensor:
    """Objects' masks as pixels of the padded network input, (N, *size) in {0, 1}.

    Args:
        masks: in the frame of the image, which lies in the top left corner.
        size: (height, width) of the input.
        like: for the type and the device.
    """
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, *size)
    height, width = masks.image_size
    pixels = masks.tensor.to(like.device, like.dtype)
    return F.pad(pixels, (0, size[1] - width, 0, size[0] - height))


def mask_loss(masks: Tensor, gt_masks: Tensor, gt_boxes: Tensor) -> Tensor:
    """Cross-entropy of each mask over the area of its object's box.

    An object's cells outside of the crop meet a probability of exactly 0 and cost 100 each, at
    which the logarithm ends; gradients have none of it.

    Args:
        masks: (N, H, W) probabilities, cropped with the objects' boxes.
        gt_masks: (N, H, W) in {0, 1}.
        gt_boxes: (N, 4) XYXY in fractions of the image.

    Returns:
        (N,).
    """
    with torch.autocast(masks.device.type, enabled=False):
        entropy = F.binary_cross_entropy(masks, gt_masks, reduction="none").sum((1, 2))
    height, width = masks.shape[-2:]
    sides = gt_boxes[:, 2:] - gt_boxes[:, :2]
    return entropy / (sides[:, 0] * width) / (sides[:, 1] * height)


def mask_ious(masks: Tensor, gt_masks: Tensor) -> Tensor:
    """The IoU of each mask, cut at one half, with its object.

    Args:
        masks: (N, H, W) probabilities.
        gt_masks: (N, H, W) in {0, 1}, none of them empty.

    Returns:
        (N,) in [0, 1], without a gradient.
    """
    found = (masks.detach() > 0.5).to(gt_masks.dtype)
    shared = (found * gt_masks).sum((1, 2))
    return shared / (found.sum((1, 2)) + gt_masks.sum((1, 2)) - shared)


def semantic_loss(logits: Tensor, gt_masks: Tensor, gt_classes: Tensor) -> Tensor:
    """Cross-entropy of an image's class maps: the mean over cells, summed over classes.

    Source: YOLACT, section 4.3, "Semantic Segmentation Loss".

    Args:
        logits: (K, H, W).
        gt_masks: (N, H, W) in {0, 1}; a class's cells are those of all its objects.
        gt_classes: (N,) in [0, K).
    """
    target = torch.zeros_like(logits)
    for mask, label in zip(gt_masks, gt_classes, strict=True):
        target[label] = torch.maximum(target[label], mask)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
    return entropy / (logits.shape[-2] * logits.shape[-1])
