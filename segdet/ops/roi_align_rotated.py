"""RoIAlign of rotated regions."""

# torch.library comes without complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import library
from .pooling import check_pooling, register_pooling


def roi_align_rotated(
    input: Tensor,
    rois: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
) -> Tensor:
    """Average bilinear samples of each bin of each rotated region; differentiable in `input`.

    Source: detectron2's op of this name; without rotation it is `roi_align` with `aligned`.

    A region's centre lies at `pixel * spatial_scale - 0.5` in cells, cell centres being whole
    numbers. A sample beyond [-1, size] is zero and still counts in the average. A region that is
    not finite or has a number beyond 2^22 (float64: 2^48) cells or degrees, or (with
    `sampling_ratio` 0) without a positive extent, gives zeros.

    Args:
        input: (B, C, H, W) floating point, H and W at least 1. float64 is computed in float64,
            everything else in float32.
        rois: (R, 6) floating point: index into B, then centre x, centre y, width and height in
            pixels of the image, and degrees counter-clockwise. Not rounded to a narrower `input`.
        output_size: bins of a region, (h, w) or one number for both.
        spatial_scale: cells per pixel, 1 / stride.
        sampling_ratio: samples per bin and axis; 0 or less: as many as the bin has cells.

    Returns:
        (R, C, h, w) of `input`'s type and memory format.

    Raises:
        RuntimeError: a wrong shape or type; on the CPU, an index outside of [0, B). On CUDA such a
            region gives NaN instead, because looking would stall the device.
    """
    h, w = (output_size, output_size) if isinstance(output_size, int) else output_size
    if library.has_binary(input.device):
        return torch.ops.segdet.roi_align_rotated(input, rois, h, w, spatial_scale, sampling_ratio)
    check_pooling(input, rois, 6, "roi_align_rotated")
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    maps = input.to(wide)
    pooled = [maps[:0, :, :1, :1].expand(-1, -1, h, w)]  # without regions: no rows
    for image, *box in rois.to(wide).tolist():
        region = _plain(maps[int(image)], box, (h, w), spatial_scale, sampling_ratio)
        pooled.append(region[None])
    return torch.cat(pooled).to(input.dtype)


register_pooling("roi_align_rotated", lambda channels, rule: channels)


def _plain(
    features: Tensor,
    box: list[float],
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
) -> Tensor:
    """One region of features (C, H, W), in plain PyTorch: (C, h, w)."""
    (h, w), (channels, height, width) = output_size, features.shape
    cx, cy, extent_x, extent_y = (value * spatial_scale for value in box[:4])
    farthest = 2**48 if features.dtype == torch.float64 else 2**22  # as the compiled op's
    if not all(abs(value) < farthest for value in (cx, cy, extent_x, extent_y, box[4])):
        return features.new_zeros(channels, h, w)
    cy, cx = cy - 0.5, cx - 0.5
    sine, cosine = math.sin(math.radians(box[4])), math.cos(math.radians(box[4]))
    corners = [(y - cy, x - cx) for y in (-1, height) for x in (-1, width)]
    v, rows = _samples(extent_y, h, sampling_ratio, [y * cosine + x * sine for y, x in corners])
    u, columns = _samples(extent_x, w, sampling_ratio, [x * cosine - y * sine for y, x in corners])
    y = v[:, None] * cosine - u * sine + cy  # (samples on v, samples on u)
    x = v[:, None] * sine + u * cosine + cx
    within = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    samples = features.new_zeros(channels, *y.shape)
    for cell_y, share_y in ((y.long(), 1 - y.frac()), (y.ceil().long(), y.frac())):
        for cell_x, share_x in ((x.long(), 1 - x.frac()), (x.ceil().long(), x.frac())):
            weight = (within * share_y * share_x).to(features)
            samples = samples + features[:, cell_y, cell_x] * weight
    with torch.autocast(features.device.type, enabled=False):
        return rows.to(features) @ samples @ columns.to(features).T


def _samples(
    extent: float, bins: int, sampling_ratio: int, corners: list[float]
) -> tuple[Tensor, Tensor]:
    """The samples on one axis of a region that can lie on the map.

    Args:
        extent: of the region, in cells.
        bins: into which it is cut.
        sampling_ratio: samples per bin; 0 or less: as many as it has cells.
        corners: of the map, on this axis from the region's centre.

    Returns:
        (S,) float64 positions from the centre, and (bins, S) what each bin takes of each.
    """
    per_bin = sampling_ratio if sampling_ratio > 0 else max(math.ceil(extent / bins), 0)
    first, last = 0, bins * per_bin
    if extent > 0:
        per_cell = last / extent
        first = max(first, math.floor((min(corners) + extent / 2) * per_cell) - 1)
        last = min(last, math.ceil((max(corners) + extent / 2) * per_cell) + 1)
    index = torch.arange(first, max(first, last))
    position = ((index.double() + 0.5) / max(bins * per_bin, 1) - 0.5) * extent
    taken = index // max(per_bin, 1) == torch.arange(bins)[:, None]
    return position, taken.double() / max(per_bin, 1)
