from __future__ import annotations

import torch
from torch import Tensor

from segdet.ops import paste_masks
from segdet.structures.boxes import Boxes


def paste_masks_in_image(
    masks: Tensor,
    boxes: Boxes | Tensor,
    image_shape: tuple[int, int],
    threshold: float = 0.5,
) -> Tensor:
    """Stretch each mask over its box and draw it on an empty image; see `segdet.ops.paste_masks`.

    Args:
        masks: (N, M, M) probabilities, of any type.
        boxes: (N, 4) XYXY in pixels of the image; a box without extent draws nothing.
        image_shape: (height, width) of the image.
        threshold: probability from which on (>=) a pixel belongs to the object; below 0
            asks for the probabilities themselves.

    Returns:
        (N, height, width) bool; uint8 probabilities times 255, rounded down, where
        `threshold` < 0.

    Raises:
        ValueError: masks are not square, not as many as boxes, or a box is not finite.
    """
    corners = boxes.tensor if isinstance(boxes, Boxes) else boxes
    if masks.ndim != 3 or masks.shape[1] != masks.shape[2]:
        raise ValueError(f"masks must be (N, M, M), have shape {tuple(masks.shape)}")
    if corners.shape != (len(masks), 4):
        raise ValueError(f"{len(masks)} masks need as many boxes, got {tuple(corners.shape)}")
    if not corners.isfinite().all():
        raise ValueError("cannot paste into boxes with infinite or NaN coordinates")
    dtype = torch.promote_types(torch.promote_types(masks.dtype, corners.dtype), torch.float32)
    return paste_masks(masks.to(dtype), corners.to(masks.device, dtype), image_shape, threshold)
