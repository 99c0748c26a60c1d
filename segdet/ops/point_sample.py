"""Bilinear samples of a map at given points, as PointRend takes them."""

# torch.library comes without complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import library


def point_sample(input: Tensor, point_coords: Tensor, align_corners: bool = False) -> Tensor:
    """Sample each map at its points; differentiable in both arguments.

    Source: PointRend (arXiv:1912.08193), section 3.1; detectron2's function of this name.

    Args:
        input: (N, C, H, W) floating point, H and W at least 1. float64 is computed in float64,
            everything else in float32.
        point_coords: (N, P, 2) or (N, Hg, Wg, 2) floating point: (x, y), the whole map being
            [0, 1] x [0, 1]; beyond it the map continues with zeros. A point that is not finite
            gives zeros. Not rounded to a narrower `input`.
        align_corners: [0, 1] reaches from the first to the last cell's centre instead of from edge
            to edge.

    Returns:
        (N, C, P) or (N, C, Hg, Wg) of `input`'s type, contiguous. The gradient of `input` has its
        memory format.

    Raises:
        RuntimeError: a wrong shape or type.
    """
    if input.dim() != 4 or not input.is_floating_point():
        raise RuntimeError(
            "segdet::point_sample: input must be (N, C, H, W) floating point, is "
            f"{tuple(input.shape)} of {input.dtype}"
        )
    shape = point_coords.shape
    if point_coords.dim() not in (3, 4) or shape[0] != input.shape[0] or shape[-1] != 2:
        raise RuntimeError(
            "segdet::point_sample: point_coords must be (N, P, 2) or (N, Hg, Wg, 2) with N = "
            f"{input.shape[0]}, has shape {tuple(shape)}"
        )
    points = point_coords.flatten(1, 2) if point_coords.dim() == 4 else point_coords
    if library.has_binary(input.device):
        samples = torch.ops.segdet.point_sample(input, points, align_corners)
    else:
        samples = _plain(input, points, align_corners)
    return samples.unflatten(2, shape[1:3]) if point_coords.dim() == 4 else samples


def _plain(input: Tensor, points: Tensor, align_corners: bool) -> Tensor:
    """By torch's grid sampling."""
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    finite = points.isfinite().all(2)[:, None]
    places = points.to(wide).nan_to_num(nan=-9).clamp(-9, 9)  # within what its integers hold
    grid = 2 * places[:, :, None] - 1
    samples = F.grid_sample(input.to(wide), grid, align_corners=align_corners)[:, :, :, 0]
    return samples.where(finite, 0).to(input.dtype)


def _fake(input: Tensor, points: Tensor, align_corners: bool) -> Tensor:
    return input.new_empty(input.shape[0], input.shape[1], points.shape[1])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, points, ctx.align_corners = inputs
    ctx.cells = input.shape[2:]
    ctx.channels_last = library.memory_format_of(input) == torch.channels_last
    ctx.save_for_backward(points, input if ctx.needs_input_grad[1] else None)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    points, input = ctx.saved_tensors
    of_input = of_points = None
    if ctx.needs_input_grad[0]:
        of_input = torch.ops.segdet.point_sample_backward(
            grad,
            points,
            *ctx.cells,
            ctx.align_corners,
            ctx.channels_last,
            torch.are_deterministic_algorithms_enabled(),
        )
    if ctx.needs_input_grad[1]:
        of_points = torch.ops.segdet.point_sample_coords_backward(
            grad, input, points, ctx.align_corners
        )
    return of_input, of_points, None


def _fake_backward(
    grad: Tensor,
    points: Tensor,
    height: int,
    width: int,
    align_corners: bool,
    channels_last: bool,
    deterministic: bool,
) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    shape = (grad.shape[0], grad.shape[1], height, width)
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=memory_format)


def _setup_second(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, points, _, _, ctx.align_corners, _, _ = inputs
    ctx.save_for_backward(points, grad if ctx.needs_input_grad[1] else None)


def _second_backward(ctx: Any, of_input: Tensor) -> tuple[Tensor | None, ...]:
    """The op is linear in the map, and its gradient is that map's transpose."""
    points, grad = ctx.saved_tensors
    of_grad = torch.ops.segdet.point_sample(of_input, points, ctx.align_corners)
    of_points = None
    if ctx.needs_input_grad[1]:
        of_points = torch.ops.segdet.point_sample_coords_backward(
            grad, of_input, points, ctx.align_corners
        )
    return of_grad, of_points, *[None] * 5


def _fake_coords_backward(
    grad: Tensor, input: Tensor, points: Tensor, align_corners: bool
) -> Tensor:
    return torch.empty_like(points, memory_format=torch.contiguous_format)


library.register("point_sample", _fake, backward=_backward, setup_context=_setup)
library.register(
    "point_sample_backward", _fake_backward, backward=_second_backward, setup_context=_setup_second
)
library.register_last_gradient("point_sample_coords_backward", _fake_coords_backward)
