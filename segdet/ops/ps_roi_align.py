"""Position-sensitive RoIAlign."""

# torch.library comes without complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import torch
from torch import Tensor

from . import library
from .ps_roi_pool import check_position_sensitive, groups_of, register_position_sensitive
from .roi_align import roi_align


def ps_roi_align(
    input: Tensor,
    rois: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    group_size: int | None = None,
) -> Tensor:
    """RoIAlign whose bins have channels of their own; differentiable in `input`.

    Source: Light-Head R-CNN (arXiv:1711.07264), section 3.2; torchvision's op of this name.
    Regions and samples are those of `roi_align` with `aligned`, channels those of `ps_roi_pool`.

    Args:
        input: (B, C * group, H, W) floating point, H and W at least 1; group is the number of bins,
            or `group_size` squared. float64 is computed in float64, everything else in float32.
        rois: (R, 5) floating point: index into B, then XYXY in pixels of the image.
        output_size: bins of a region, (h, w) or one number for both.
        spatial_scale: cells per pixel, 1 / stride.
        sampling_ratio: samples per bin and axis; 0 or less: as many as the bin has cells. A region
            without extent then gives zeros.
        group_size: groups per axis that the bins are divided among; one per bin by default.

    Returns:
        (R, C, h, w) of `input`'s type and memory format.

    Raises:
        RuntimeError: a wrong shape or type; on the CPU, an index outside of [0, B). On CUDA such a
            region gives NaN instead, because looking would stall the device.
    """
    h, w = (output_size, output_size) if isinstance(output_size, int) else output_size
    group = (h, w) if group_size is None else (group_size, group_size)
    if library.has_binary(input.device):
        return torch.ops.segdet.ps_roi_align(
            input, rois, h, w, spatial_scale, *group, sampling_ratio
        )
    check_position_sensitive(input, rois, group, "ps_roi_align")
    # Every bin of every channel, then those that belong together.
    with torch.autocast(input.device.type, enabled=False):
        every = roi_align(input, rois, (h, w), spatial_scale, sampling_ratio)
    rows, columns = torch.arange(h, device=input.device), torch.arange(w, device=input.device)
    row_group = groups_of(h, group[0], input.device)[:, None]
    column_group = groups_of(w, group[1], input.device)
    grouped = every.unflatten(1, (-1, *group))  # (R, C, gh, gw, h, w)
    return grouped[:, :, row_group, column_group, rows[:, None], columns]


register_position_sensitive("ps_roi_align")
