"""Parts of feature maps, around some of their cells."""

from __future__ import annotations

import torch
from torch import Tensor


def patches_at(x: Tensor, cells: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Squares of 2 * reach + 1 cells around some of a map's, and which of them lie on the map.

    Args:
        x: (B, C, H, W).
        cells: (S, 3) int64: image, row, column.
        reach: cells from the middle to the border of a square.

    Returns:
        (S, side, side, C) with arbitrary values beyond the map; (S, side, side, 1) of 0 and 1.
    """
    image, row, column = cells[:, :, None].unbind(1)  # (S, 1) each
    around = torch.arange(-reach, reach + 1, device=x.device)
    rows, columns = row + around, column + around  # (S, side)
    height, width = x.shape[2:]
    on_rows, on_columns = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    on_map = (on_rows[:, :, None] & on_columns[:, None])[..., None].to(x.dtype)
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    index = (image[:, None] * height + rows[:, :, None]) * width + columns[:, None]
    # Squares overlap. The gradient of x[index] adds them up in an order that threads race for.
    found = x.permute(0, 2, 3, 1).flatten(0, 2).index_select(0, index.flatten())
    return found.view(*index.shape, x.shape[1]), on_map
