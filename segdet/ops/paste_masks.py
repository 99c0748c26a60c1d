"""Mask pasting: masks of boxes, stretched over them on an image."""

# torch.library comes without complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from . import library

_CHUNK_BYTES = 1 << 30  # of values at a time on an accelerator


def paste_masks(
    masks: Tensor, boxes: Tensor, image_shape: tuple[int, int], threshold: float = 0.5
) -> Tensor:
    """Stretch each mask over its box and draw it on an empty image.

    The value of a pixel is the mask, sampled bilinearly where the pixel's centre falls in the
    box; beyond the box the mask fades to 0 within half of its cells.

    Source: detectron2's mask pasting, which puts pixel (i, j) at (j + 0.5, i + 0.5).

    Args:
        masks: (N, M, M) floating point probabilities.
        boxes: (N, 4) floating point, XYXY in pixels of the image; a box without extent or with a
            coordinate that is not finite draws nothing.
        image_shape: (height, width) of the image.
        threshold: probability from which on (>=) a pixel is drawn, one of probability 0 never;
            below 0 asks for the probabilities themselves.

    Returns:
        (N, height, width) bool; uint8 probabilities times 255, rounded down, where
        `threshold` < 0. Computed in float32, in float64 where an argument has that type.

    Raises:
        RuntimeError: a wrong shape or type.
    """
    height, width = image_shape
    if library.has_binary(masks.device):
        return torch.ops.segdet.paste_masks(masks, boxes, height, width, threshold)
    if masks.dim() != 3 or masks.shape[1] != masks.shape[2]:
        raise RuntimeError(
            f"segdet::paste_masks: masks must be (N, M, M), has shape {tuple(masks.shape)}"
        )
    if boxes.shape != (len(masks), 4):
        raise RuntimeError(
            f"segdet::paste_masks: boxes must be (N, 4) with N = {len(masks)}, has shape "
            f"{tuple(boxes.shape)}"
        )
    dtype = torch.promote_types(torch.promote_types(masks.dtype, boxes.dtype), torch.float32)
    # Not finite: like a box without extent.
    boxes = torch.where(boxes.isfinite().all(1, keepdim=True), boxes, 0)
    paste = _paste_windows if masks.device.type == "cpu" else _paste_whole
    return paste(masks.to(dtype), boxes.to(dtype), (height, width), threshold)


def _fake(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float) -> Tensor:
    kind = torch.bool if threshold >= 0 else torch.uint8
    return masks.new_empty(masks.shape[0], height, width, dtype=kind)


library.register("paste_masks", _fake)


def _paste_windows(
    masks: Tensor, boxes: Tensor, image_shape: tuple[int, int], threshold: float
) -> Tensor:
    # Fresh zero pages of the system: torch.zeros, which writes them, took 4/5 of the time.
    empty = np.zeros((len(masks), *image_shape), np.bool_ if threshold >= 0 else np.uint8)
    image = torch.as_tensor(empty)
    for mask, box, canvas in zip(masks, boxes, image, strict=True):
        rows, columns = _window(box, masks.shape[-1], image_shape)
        values = _sample(mask[None], box[None], rows, columns)[0]
        canvas[rows.start : rows.stop, columns.start : columns.stop] = _decide(values, threshold)
    return image


def _paste_whole(
    masks: Tensor, boxes: Tensor, image_shape: tuple[int, int], threshold: float
) -> Tensor:
    """Whole images, many at a time: windows would make the host wait for each box."""
    height, width = image_shape
    chunk = max(_CHUNK_BYTES // max(height * width * masks.dtype.itemsize, 1), 1)
    kind = torch.bool if threshold >= 0 else torch.uint8
    image = torch.empty(len(masks), height, width, dtype=kind, device=masks.device)
    for start in range(0, len(masks), chunk):
        part = slice(start, start + chunk)
        values = _sample(masks[part], boxes[part], range(height), range(width))
        image[part] = _decide(values, threshold)
    return image


def _decide(values: Tensor, threshold: float) -> Tensor:
    if threshold >= 0:
        return values >= max(threshold, torch.finfo(values.dtype).tiny)
    return (values * 255).clamp(0, 255).to(torch.uint8)


def _window(box: Tensor, side: int, image_shape: tuple[int, int]) -> tuple[range, range]:
    """The rows and columns of the image that a mask in `box` can reach."""
    x0, y0, x1, y1 = box.tolist()
    height, width = image_shape
    reach_x, reach_y = (x1 - x0) / (2 * side), (y1 - y0) / (2 * side)
    return _span(y0 - reach_y, y1 + reach_y, height), _span(x0 - reach_x, x1 + reach_x, width)


def _span(low: float, high: float, size: int) -> range:
    if high <= low:
        return range(0)
    start, stop = int(min(max(low, 0), size)), int(min(max(high + 1, 0), size))
    return range(start, max(start, stop))


def _sample(masks: Tensor, boxes: Tensor, rows: range, columns: range) -> Tensor:
    """Values (n, rows, columns) of masks (n, M, M) that are stretched over boxes (n, 4)."""
    x = _weights(columns, boxes[:, 0], boxes[:, 2], masks.shape[-1])  # (n, columns, M)
    y = _weights(rows, boxes[:, 1], boxes[:, 3], masks.shape[-1])  # (n, rows, M)
    with torch.autocast(masks.device.type, enabled=False):
        return y @ (masks @ x.mT)  # one axis after the other is bilinear sampling on a grid


def _weights(pixels: range, low: Tensor, high: Tensor, side: int) -> Tensor:
    """Share of each cell of an axis in the value at each pixel: a tent as wide as two cells.

    Args:
        pixels: the pixels' indices.
        low: (n,) where each box starts on this axis.
        high: (n,) where it ends; all shares are 0 unless it is greater than `low`.
        side: M, the number of cells.

    Returns:
        (n, pixels, M) in [0, 1].
    """
    extent = (high - low)[:, None]
    cells = torch.arange(side, device=low.device, dtype=low.dtype)
    centres = torch.arange(pixels.start, pixels.stop, device=low.device, dtype=low.dtype) + 0.5
    place = (centres - low[:, None]) / extent * side - 0.5  # (n, pixels) in cells
    tent = (1 - (place[:, :, None] - cells).abs()).clamp(min=0)
    return torch.where(extent[:, :, None] > 0, tent, 0)
