"""Maps of labels: what is counted of them, and their edges."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from segdet.errors import DataError

# Source: Boundary IoU (Cheng et al. 2021, arXiv:2103.16562), "2% of the image diagonal".
BOUNDARY_WIDTH = 0.02


def best_labels(scores: torch.Tensor, truth: np.ndarray, file_name: str) -> np.ndarray:
    """The label of the highest score in each pixel.

    Args:
        scores: (K, H, W), in the frame of the original image.
        truth: (H, W), the annotation.
        file_name: of the image, for messages.

    Returns:
        (H, W) int64 in [0, K).

    Raises:
        DataError: the sizes differ.
    """
    found = torch.as_tensor(scores).argmax(0).cpu().numpy()
    if found.shape != truth.shape:
        raise DataError(
            f"{file_name}: the predicted map is {found.shape}, the annotation is {truth.shape} "
            "(height, width)"
        )
    return found


def count_pairs(rows: np.ndarray, columns: np.ndarray, count: int) -> np.ndarray:
    """Count the pixels of each pair of labels.

    Args:
        rows: (H, W) integers in [0, count).
        columns: likewise.
        count: number of labels.

    Returns:
        (count, count) int64.
    """
    pairs = rows.astype(np.int64) * count + columns
    return np.bincount(pairs.ravel(), minlength=count**2).reshape(count, count)


def boundary_width(height: int, width: int) -> int:
    """Pixels that edges are wide in an image: 2% of its diagonal."""
    return max(1, round(BOUNDARY_WIDTH * float(np.hypot(height, width))))


def boundary_of(labels: np.ndarray, reach: int) -> np.ndarray:
    """What an erosion takes from a map: the inner edges of masks.

    Source: Boundary IoU's reference code, and detectron2's use of it on maps of labels. In these,
    where labels meet, the higher one loses its difference to the lower.

    Args:
        labels: (H, W) uint8, of one mask (0 and 1) or several labels.
        reach: pixels that edges are wide, see `boundary_width`.

    Returns:
        (H, W) uint8: 0 inside, else `labels` minus the lowest label within reach; beyond the image
        all is 0.
    """
    lowest = np.pad(labels, 1)
    for axis in (0, 1):
        lowest = _lowest_within(lowest, reach, axis)
    return labels - lowest[1:-1, 1:-1]


def _lowest_within(values: np.ndarray, reach: int, axis: int) -> np.ndarray:
    """The minimum over `reach` places to both sides, by windows that double."""
    values = np.moveaxis(values, axis, 0)
    edge = np.full((reach, *values.shape[1:]), np.iinfo(values.dtype).max, values.dtype)
    low, size = np.concatenate([edge, values, edge]), 1
    while size < 2 * reach + 1:
        step = min(size, 2 * reach + 1 - size)
        low = np.minimum(low[:-step], low[step:])
        size += step
    return np.moveaxis(low, 0, axis)


def mean_of_known(values: Iterable[float]) -> float:
    """The mean of what is not NaN; NaN where all are."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
