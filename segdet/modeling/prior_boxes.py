"""Prior boxes in fractions of the image: their places, the coding of boxes, and what they match.

Source: SSD (Liu et al. 2016, arXiv:1512.02325), section 2, as YOLACT has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from segdet.structures.boxes import box_area, box_intersection, box_iou

CENTRE_VARIANCE, SIZE_VARIANCE = 0.1, 0.2
IGNORED = -1  # neither an object nor background


def prior_boxes(
    map_sizes: Sequence[tuple[int, int]],
    sizes: Sequence[Sequence[tuple[float, float]]],
    image_size: tuple[int, int],
    like: Tensor,
) -> Tensor:
    """The prior boxes of all levels.

    Args:
        map_sizes: (height, width) of each level.
        sizes: per level (width, height) of each of a cell's A boxes, in pixels.
        image_size: (height, width) of the network input.
        like: for the type and the device.

    Returns:
        (P, 4) centre x, centre y, width, height, by level, row, column, A; not clipped.
    """
    scale = like.new_tensor((image_size[1], image_size[0]))
    levels = []
    for (height, width), of_cell in zip(map_sizes, sizes, strict=True):
        x = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) / width
        y = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) / height
        centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # (H, W, 2)
        shapes = like.new_tensor(of_cell) / scale  # (A, 2)
        centres = centres[:, :, None].expand(-1, -1, len(of_cell), -1)
        level = torch.cat([centres, shapes.expand_as(centres)], dim=-1)
        levels.append(level.reshape(-1, 4))
    return torch.cat(levels)


def corners(boxes: Tensor) -> Tensor:
    """(..., 4) centre x, centre y, width, height to (..., 4) XYXY."""
    half = boxes[..., 2:] / 2
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], dim=-1)


def encode(boxes: Tensor, priors: Tensor) -> Tensor:
    """The deltas that move prior boxes to boxes.

    Args:
        boxes: (N, 4) XYXY.
        priors: (N, 4) centre x, centre y, width, height, in the same unit.

    Returns:
        (N, 4).
    """
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 - priors[:, :2]
    size = boxes[:, 2:] - boxes[:, :2]
    shift = centre / (CENTRE_VARIANCE * priors[:, 2:])
    return torch.cat([shift, torch.log(size / priors[:, 2:]) / SIZE_VARIANCE], dim=1)


def decode(deltas: Tensor, priors: Tensor) -> Tensor:
    """The boxes that deltas move prior boxes to; the inverse of `encode`.

    Args:
        deltas: (N, 4).
        priors: (N, 4) centre x, centre y, width, height.

    Returns:
        (N, 4) XYXY in the priors' unit, not clipped.
    """
    centre = priors[:, :2] + deltas[:, :2] * CENTRE_VARIANCE * priors[:, 2:]
    size = priors[:, 2:] * torch.exp(deltas[:, 2:] * SIZE_VARIANCE)
    low = centre - size / 2
    return torch.cat([low, low + size], dim=1)


class Matches(NamedTuple):
    """What each of P prior boxes stands for."""

    labels: Tensor  # (P,) int64: 0 background, class + 1 of an object, IGNORED
    objects: Tensor  # (P,) int64 row of the best object; 0 without objects


def match_priors(
    priors: Tensor,
    boxes: Tensor,
    classes: Tensor,
    crowds: Tensor,
    *,
    iou_thresholds: tuple[float, float],
    crowd_threshold: float,
) -> Matches:
    """Label each prior box by its best object; every object gets one of its own.

    Objects take turns, the pair of the largest IoU first: its prior box is a positive, whatever
    the IoU, and both leave.

    Args:
        priors: (P, 4) centre x, centre y, width, height.
        boxes: (N, 4) XYXY of the objects.
        classes: (N,) in [0, K).
        crowds: (M, 4) XYXY.
        iou_thresholds: below the first a box is background, from the second on an object.
        crowd_threshold: what is no object and has more than this share of its area in a crowd is
            ignored.
    """
    candidates = corners(priors)
    if len(boxes):
        overlaps = box_iou(boxes, candidates)  # (N, P)
        best, objects = overlaps.max(0)
        for row, column in _claims(overlaps):
            best[column], objects[column] = 2.0, row  # above any threshold
        labels = classes[objects] + 1
        labels[best < iou_thresholds[1]] = IGNORED
        labels[best < iou_thresholds[0]] = 0
    else:
        objects = torch.zeros(len(priors), dtype=torch.int64, device=priors.device)
        labels = objects.clone()
    if len(crowds):
        shares = box_intersection(candidates, crowds) / box_area(candidates)[:, None]
        labels[(labels <= 0) & (shares.amax(1) > crowd_threshold)] = IGNORED
    return Matches(labels, objects)


def _claims(overlaps: Tensor) -> Iterator[tuple[int, int]]:
    """Pairs of row and column, largest value first, each row and each column once.

    Args:
        overlaps: (N, P); is overwritten.
    """
    peaks, columns = overlaps.max(1)
    for _ in range(len(overlaps)):
        row = int(peaks.argmax())
        column = int(columns[row])
        yield row, column
        overlaps[:, column], overlaps[row] = -1.0, -2.0
        peaks[row] = -2.0
        stale = (columns == column) & (peaks > -2.0)
        if stale.any():
            peaks[stale], columns[stale] = overlaps[stale].max(1)
