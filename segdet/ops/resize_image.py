"""Resizing of 8-bit pictures, equal to Pillow's to the bit."""

# torch.library comes without complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import library


def resize_image(image: Tensor, height: int, width: int) -> Tensor:
    """Resize a picture as Pillow's antialiased bilinear filter does, and lay its channels apart.

    Source: Pillow's `Image.resize(..., BILINEAR)`. Pictures whose height shrinks are resized by
    Pillow itself: which axis it takes first there, hence its rounding, depends on its version.

    Args:
        image: (H, W, 3) uint8 on the CPU, not empty.
        height: of the result.
        width: likewise.

    Returns:
        (3, height, width) uint8, contiguous.

    Raises:
        RuntimeError: a wrong shape, type or size.
    """
    if image.dim() == 3 and 0 < image.shape[0] <= height and library.has_op("resize_image"):
        return torch.ops.segdet.resize_image(image, height, width)
    if image.dim() != 3 or image.shape[2] != 3 or 0 in image.shape or image.dtype != torch.uint8:
        raise RuntimeError(
            "segdet::resize_image: image must be (H, W, 3) uint8 and not empty, is "
            f"{tuple(image.shape)} {image.dtype}"
        )
    if min(height, width) < 1:
        raise RuntimeError(f"segdet::resize_image: size must be positive, is ({height}, {width})")
    picture = Image.fromarray(image.numpy())
    resized = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
    return torch.tensor(resized).permute(2, 0, 1).contiguous()


def _fake(image: Tensor, height: int, width: int) -> Tensor:
    return image.new_empty(3, height, width)


library.register("resize_image", _fake)
