from __future__ import annotations

import torch
from torch import Tensor

from segdet.structures.boxes import Boxes

_CHUNK_BYTES = 1 << 30


def paste_masks_in_image(
    masks: Tensor,
    boxes: Boxes | Tensor,
    image_shape: tuple[int, int],
    threshold: float = 0.5,
) -> Tensor:
    """Stretch each mask over its box and draw it on an empty image.

    The value of a pixel is the mask, sampled bilinearly where the pixel's centre falls in the
    box; beyond the box the mask fades to 0 within half of its cells.

    Source: detectron2's mask pasting, which puts pixel (i, j) at (j + 0.5, i + 0.5).

    Args:
        masks: (N, M, M) probabilities.
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
    masks, corners = masks.to(dtype), corners.to(masks.device, dtype)

    height, width = image_shape
    kind = torch.bool if threshold >= 0 else torch.uint8
    image = torch.zeros(len(masks), height, width, dtype=kind, device=masks.device)
    if masks.device.type == "cpu":
        for mask, box, canvas in zip(masks, corners, image, strict=True):
            rows, columns = _window(box, masks.shape[-1], image_shape)
            values = _sample(mask[None], box[None], rows, columns)[0]
            canvas[rows.start : rows.stop, columns.start : columns.stop] = _decide(
                values, threshold
            )
    else:  # bounds per box would wait for the device; whole images in chunks do not
        # _sample holds about four values per pixel at a time
        chunk = max(_CHUNK_BYTES // max(4 * height * width * dtype.itemsize, 1), 1)
        for start in range(0, len(masks), chunk):
            part = slice(start, start + chunk)
            values = _sample(masks[part], corners[part], range(height), range(width))
            image[part] = _decide(values, threshold)
    return image


def _decide(values: Tensor, threshold: float) -> Tensor:
    return values >= threshold if threshold >= 0 else (values * 255).to(torch.uint8)


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
    side = masks.shape[-1]
    padded = torch.nn.functional.pad(masks, (1, 1, 1, 1))  # (n, M + 2, M + 2), the border is 0
    x, x_share = _cells(columns, boxes[:, 0], boxes[:, 2], side)  # (n, columns)
    y, y_share = _cells(rows, boxes[:, 1], boxes[:, 3], side)  # (n, rows)
    n = torch.arange(len(masks), device=masks.device)[:, None]
    # Bilinear sampling on a grid is one dimension after the other: columns of all mask rows first.
    turned = padded.transpose(1, 2)
    wide = turned[n, x].lerp(turned[n, x + 1], x_share[:, :, None])  # (n, columns, M + 2)
    wide = wide.transpose(1, 2).contiguous()  # (n, M + 2, columns)
    return wide[n, y].lerp(wide[n, y + 1], y_share[:, :, None])


def _cells(pixels: range, low: Tensor, high: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Where pixel centres fall among the cells of a padded mask.

    Args:
        pixels: the pixels' indices.
        low: (n,) start of each box.
        high: (n,) its end.
        side: M, cells of the mask before padding.

    Returns:
        (n, pixels) int64 index of the cell centre before each pixel, and its share in [0, 1]
        of the way to the next; (0, 0), which is padding, everywhere for a box without extent.
    """
    centres = torch.arange(pixels.start, pixels.stop, device=low.device).to(low.dtype) + 0.5
    extent = (high - low)[:, None]
    place = (centres - low[:, None]) / extent.clamp(min=torch.finfo(low.dtype).tiny)
    place = (place * side + 0.5).clamp(0, side + 1)  # in cells of the padded mask
    place = torch.where(extent > 0, place, 0)
    cell = place.floor().clamp(max=side)
    return cell.long(), place - cell
