"""Position-sensitive ROI pooling, by the rules of R-FCN and FCIS or of torchvision."""

# torch.library comes without complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from . import library
from .pooling import check_pooling, register_pooling


def ps_roi_pool(
    input: Tensor,
    rois: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    group_size: int | None = None,
    rounding: Literal["pixels", "cells"] = "pixels",
) -> Tensor:
    """Average the cells of each bin, each bin from channels of its own; differentiable in `input`.

    Source: R-FCN (arXiv:1605.06409), section 2, "Position-sensitive score maps & RoI pooling".
    Halves are rounded away from zero. With s the scale, a region reaches on each axis

    - rounding "pixels", as in R-FCN and FCIS: from s * round(x1) to s * (round(x2) + 1), at least
      0.1 cells;
    - rounding "cells", as in torchvision: from round(s * x1) to round(s * x2), at least 1 cell;
      the last row and column of the map are never read.

    It is cut into bins of equal extent, and a bin averages the cells that it touches. A bin off the
    map gives 0, and so does a region that is not finite.

    Args:
        input: (B, C * group, H, W) floating point, H and W at least 1; group is the number of bins,
            or `group_size` squared. Channel c of bin (i, j) reads channel
            (c * group_height + gi) * group_width + gj, (gi, gj) being the bin's group. float64 is
            computed in float64, everything else in float32.
        rois: (R, 5) floating point: index into B, then XYXY in pixels of the image.
        output_size: bins of a region, (h, w) or one number for both.
        spatial_scale: cells per pixel, 1 / stride.
        group_size: groups per axis that the bins are divided among; one per bin by default.
        rounding: the rule for a region's corners.

    Returns:
        (R, C, h, w) of `input`'s type and memory format.

    Raises:
        RuntimeError: a wrong shape or type; on the CPU, an index outside of [0, B). On CUDA such a
            region gives NaN instead, because looking would stall the device.
        ValueError: an unknown rounding.
    """
    if rounding not in ("pixels", "cells"):
        raise ValueError(f'rounding must be "pixels" or "cells", is {rounding!r}')
    h, w = (output_size, output_size) if isinstance(output_size, int) else output_size
    group = (h, w) if group_size is None else (group_size, group_size)
    if library.has_binary(input.device):
        return torch.ops.segdet.ps_roi_pool(
            input, rois, h, w, spatial_scale, *group, rounding == "pixels"
        )
    check_position_sensitive(input, rois, group, "ps_roi_pool")
    with torch.autocast(input.device.type, enabled=False):
        return _plain(input, rois, (h, w), spatial_scale, group, rounding == "pixels")


def register_position_sensitive(name: str) -> None:
    """Register an op whose rule is (scale, groups per column, groups per row, what is its own)."""
    register_pooling(name, lambda channels, rule: channels // (rule[1] * rule[2]))


register_position_sensitive("ps_roi_pool")


def check_position_sensitive(input: Tensor, rois: Tensor, group: tuple[int, int], op: str) -> None:
    """The compiled ops' refusals of shapes and images, for the fallbacks."""
    check_pooling(input, rois, 5, op)
    count = group[0] * group[1]
    if input.shape[1] % count:
        raise RuntimeError(
            f"segdet::{op}: input must have a multiple of group_size's {count} channels, has "
            f"{input.shape[1]}"
        )


def groups_of(bins: int, groups: int, device: torch.device) -> Tensor:
    """(bins,): the group of each bin of an axis."""
    return torch.arange(bins, device=device) * groups // bins


def _plain(
    input: Tensor,
    rois: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float,
    group: tuple[int, int],
    round_pixels: bool,
) -> Tensor:
    """Region by region: weights of rows (h, H) and columns (w, W), each bin on its own channels."""
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    maps = input.to(wide).unflatten(1, (-1, *group))  # (B, C, gh, gw, H, W)
    row_group, column_group = (
        groups_of(bins, groups, input.device)
        for bins, groups in zip(output_size, group, strict=True)
    )
    pooled = [maps[:0, :, 0, 0, :1, :1].expand(-1, -1, *output_size)]  # without regions: no rows
    for image, x1, y1, x2, y2 in rois.to(wide).tolist():
        rows, columns = (
            _axis_weights(low, high, bins, size, spatial_scale, round_pixels).to(maps)
            for low, high, bins, size in zip(
                (y1, x1), (y2, x2), output_size, input.shape[2:], strict=True
            )
        )
        of_rows = maps[int(image)][:, row_group]  # (C, h, gw, H, W)
        by_row = torch.einsum("ih,cijhw->cijw", rows, of_rows)[:, :, column_group]
        pooled.append(torch.einsum("jw,cijw->cij", columns, by_row)[None])
    return torch.cat(pooled).to(input.dtype)


def _axis_weights(
    low: float, high: float, bins: int, size: int, spatial_scale: float, round_pixels: bool
) -> Tensor:
    """(bins, size) float64: how much each bin takes of each cell on one axis of one region."""
    weights = torch.zeros(bins, size, dtype=torch.float64)
    if not (abs(low * spatial_scale) < 2**47 and abs(high * spatial_scale) < 2**47):
        return weights
    if round_pixels:
        start, stop = _round(low) * spatial_scale, (_round(high) + 1) * spatial_scale
        extent, end = max(stop - start, 0.1), size
    else:
        start, stop = _round(low * spatial_scale), _round(high * spatial_scale)
        extent, end = max(stop - start, 1.0), size - 1
    for k in range(bins):
        first = min(max(math.floor(start + k * (extent / bins)), 0), end)
        last = min(max(math.ceil(start + (k + 1) * (extent / bins)), 0), end)
        weights[k, first:last] = 1 / max(last - first, 1)
    return weights


def _round(value: float) -> float:
    """Halves away from zero, unlike Python's round."""
    return math.copysign(math.floor(abs(value) + 0.5), value)
