"""RoIAlign: a fixed-size sample of a feature map for every region."""

# torch.library and torchvision come without complete types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import contextlib
import math

import torch
from torch import Tensor

from . import library
from .pooling import check_pooling, register_pooling


def roi_align(
    input: Tensor,
    rois: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """Average bilinear samples of each bin of each region; differentiable in `input`.

    Source: Mask R-CNN (arXiv:1703.06870), section 3, "RoIAlign"; with `aligned`, detectron2's
    ROIAlignV2.

    A region's corner lies at `pixel * spatial_scale - 0.5` in cells, cell centres being whole
    numbers. A sample beyond [-1, size] is zero and still counts in the average; between that limit
    and the centre of an outer cell it has the cell's value. A region with a coordinate that is not
    finite, or (with `sampling_ratio` 0) without extent, gives zeros.

    Args:
        input: (B, C, H, W) floating point, H and W at least 1. float64 is computed in float64,
            everything else in float32.
        rois: (R, 5) floating point: index into B, then XYXY in pixels of the image. Not rounded to
            a narrower `input`.
        output_size: bins of a region, (h, w) or one number for both.
        spatial_scale: cells per pixel, 1 / stride.
        sampling_ratio: samples per bin and axis; 0 or less: as many as the bin has cells.
        aligned: False is the older rule: no shift by half a cell, regions at least one cell large.

    Returns:
        (R, C, h, w) of `input`'s type and memory format. The gradient has the one of its own.

    Raises:
        RuntimeError: a wrong shape or type; on the CPU, an index outside of [0, B). On CUDA such a
            region gives NaN instead, because looking would stall the device.
    """
    h, w = (output_size, output_size) if isinstance(output_size, int) else output_size
    if library.has_binary(input.device):
        return torch.ops.segdet.roi_align(input, rois, h, w, spatial_scale, sampling_ratio, aligned)
    return _fallback(input, rois, (h, w), spatial_scale, sampling_ratio, aligned)


register_pooling("roi_align", lambda channels, rule: channels)


def _fallback(
    input: Tensor,
    rois: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """What torchvision offers, with our refusals and edges; plain PyTorch where it is missing."""
    check_pooling(input, rois, 5, "roi_align")
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    maps, rois = input.to(wide), rois.to(wide)
    pool = _plain
    corners = rois[:, 1:]
    # torchvision reads out of bounds for other regions.
    if ((corners.abs() < 1e6).all(1) & (corners[:, 2:] >= corners[:, :2]).all(1)).all():
        with contextlib.suppress(ImportError, RuntimeError, OSError):  # may not fit this torch
            from torchvision.ops import roi_align as pool
    with torch.autocast(input.device.type, enabled=False):
        out = pool(maps, rois, output_size, spatial_scale, sampling_ratio, aligned)
    return out.to(input.dtype)


def _plain(
    maps: Tensor,
    rois: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """RoIAlign as a product: weights of rows (h, H) @ map (C, H, W) @ weights of columns (W, w)."""
    pooled = [maps[:0, :, :1, :1].expand(-1, -1, *output_size)]  # without regions: no rows
    for image, x1, y1, x2, y2 in rois.cpu().unbind():
        rows, columns = (
            _axis_weights(low, high, bins, size, spatial_scale, sampling_ratio, aligned).to(maps)
            for low, high, bins, size in zip(
                (y1, x1), (y2, x2), output_size, maps.shape[2:], strict=True
            )
        )
        pooled.append((rows @ maps[int(image)] @ columns.T)[None])
    return torch.cat(pooled)


def _axis_weights(
    low: Tensor,
    high: Tensor,
    bins: int,
    size: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """(bins, size) float64: how much each bin takes of each cell on one axis of one region."""
    weights = torch.zeros(bins, size, dtype=torch.float64)
    shift = 0.5 if aligned else 0.0
    # In the type of the regions: how an extent was rounded decides the number of samples.
    first_cell = low * spatial_scale - shift
    extent = high * spatial_scale - shift - first_cell
    farthest = 2**48 if low.dtype == torch.float64 else 2**22
    if not (abs(first_cell) < farthest and abs(extent) < farthest):
        return weights
    start = first_cell.item()
    bin_extent = ((extent if aligned else extent.clamp(min=1)) / bins).item()
    samples = sampling_ratio if sampling_ratio > 0 else max(math.ceil(bin_extent), 0)
    if samples == 0:
        return weights
    first = start + torch.arange(bins, dtype=torch.float64)[:, None] * bin_extent  # (bins, 1)
    index = torch.zeros_like(first)  # of the first sample of a bin that can lie on the map
    looked_at = samples
    if bin_extent > 0:
        per_cell = samples / bin_extent
        index = (((-1 - first) * per_cell).floor() - 1).clamp(0, samples)
        looked_at = int(min(samples, (size + 1) * per_cell + 4))
    index = index + torch.arange(looked_at)  # (bins, looked_at)
    position = first + (index + 0.5) * bin_extent / samples
    within = (index < samples) & (position >= -1) & (position <= size)
    position = position.clamp(0, size - 1)
    fraction = position.frac()
    low_cell = position.long()
    weights.scatter_add_(1, low_cell, within * (1 - fraction) / samples)
    weights.scatter_add_(1, (low_cell + 1).clamp(max=size - 1), within * fraction / samples)
    return weights
