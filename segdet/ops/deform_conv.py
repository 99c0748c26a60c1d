"""Deformable convolution: each tap of the kernel samples where an offset moves it."""

# torch.library and torchvision come without complete types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from . import library

Pair: TypeAlias = tuple[int, int]


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """Convolve samples whose places and, with a mask, strengths are inputs; all differentiable.

    Source: Deformable Convolutional Networks (arXiv:1703.06211), section 2.1; with a mask, version
    2 (arXiv:1811.11168), section 3.2, "Modulated Deformable Modules".

    Tap k = ky * w + kx of the output's cell (oy, ox) samples the input, bilinearly, at
    `oy * stride - padding + ky * dilation + dy`, x alike; cells off the map count as zero. At whole
    numbers the gradient of an offset is the right-hand derivative, also at -1, as torchvision has
    it; the original kernels give 0 there.

    Args:
        input: (B, C, H, W) floating point. float64 is computed in float64, everything else in
            float32 on the CPU; on CUDA the product is of `input`'s type, with float32 sums.
        offset: (B, 2 * D * h * w, OH, OW) floating point, in cells: channel `2 * (d * h * w + k)`
            is dy of tap k for the channels of offset group d, the next one dx. D divides C.
        weight: (O, C / groups, h, w) of `input`'s type.
        bias: (O,) of `input`'s type.
        stride: of the positions, (y, x) or one number for both.
        padding: cells of zeros on each side, likewise.
        dilation: cells from tap to tap, likewise.
        mask: (B, D * h * w, OH, OW) floating point; multiplies the samples.

    Returns:
        (B, O, OH, OW) of `input`'s type and memory format. Under autocast `input`, `weight` and
        `bias` are cast, as for a convolution; offset and mask stay as they are.

    Raises:
        RuntimeError: a wrong shape or type.
    """
    if library.has_binary(input.device):
        return torch.ops.segdet.deform_conv2d(
            input, offset, mask, weight, bias, _pair(stride), _pair(padding), _pair(dilation)
        )
    return _fallback(
        input, offset, mask, weight, bias, _pair(stride), _pair(padding), _pair(dilation)
    )


def _pair(value: int | Sequence[int]) -> Pair:
    y, x = (value, value) if isinstance(value, int) else value
    return y, x


def _output_size(input: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> Any:
    """(OH, OW); symbolic while torch traces."""
    return [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip(
            input.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True
        )
    ]


def _fake(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Tensor:
    size = _output_size(input, weight, stride, padding, dilation)
    out = input.new_empty(input.shape[0], weight.shape[0], *size)
    return out.contiguous(memory_format=library.memory_format_of(input))


def _fake_backward(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_input = input.new_empty(input.shape).contiguous(
        memory_format=library.memory_format_of(input)
    )
    grad_mask = offset.new_empty(0) if mask is None else mask.new_empty(mask.shape)
    return grad_input, offset.new_empty(offset.shape), grad_mask, weight.new_empty(weight.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, offset, mask, weight, bias, *ctx.rule = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(input, offset, mask, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, offset, mask, weight = ctx.saved_tensors
    grad_input, grad_offset, grad_mask, grad_weight = torch.ops.segdet.deform_conv2d_backward(
        grad, input, offset, mask, weight, *ctx.rule, torch.are_deterministic_algorithms_enabled()
    )
    grad_bias = grad.sum((0, 2, 3)) if ctx.has_bias else None
    if mask is None:
        grad_mask = None
    return grad_input, grad_offset, grad_mask, grad_weight, grad_bias, None, None, None


def _autocast(
    dtype: torch.dtype,
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    *rule: Pair,
) -> tuple[Any, ...]:
    """A convolution's rule. Positions are not rounded: half has no sub-cell part beyond 2048."""
    tensors = [
        tensor if tensor is None or tensor.dtype == torch.float64 else tensor.to(dtype)
        for tensor in (input, weight, bias)
    ]
    return tensors[0], offset, mask, *tensors[1:], *rule


library.register(
    "deform_conv2d", _fake, backward=_backward, setup_context=_setup, autocast=_autocast
)
library.register_last_gradient("deform_conv2d_backward", _fake_backward)


def _fallback(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Tensor:
    """What torchvision offers, or plain PyTorch where it is missing."""
    if input.dim() != 4 or weight.dim() != 4 or offset.dim() != 4:
        raise RuntimeError(
            "segdet::deform_conv2d: input, weight and offset must have 4 dimensions, have "
            f"{input.dim()}, {weight.dim()} and {offset.dim()}"
        )
    taps = weight.shape[2] * weight.shape[3]
    size = _output_size(input, weight, stride, padding, dilation)
    groups = offset.shape[1] // (2 * taps)
    _check_shape(offset, "offset", [len(input), 2 * groups * taps, *size])
    if mask is not None:
        _check_shape(mask, "mask", [len(input), groups * taps, *size])
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    features, moves, filters = input.to(wide), offset.to(wide), weight.to(wide)
    strength = None if mask is None else mask.to(wide)
    shift = None if bias is None else bias.to(wide)
    try:
        from torchvision.ops import deform_conv2d as torchvision_deform_conv2d
    except (ImportError, RuntimeError, OSError):  # its binary may not fit this torch
        out = _plain(features, moves, strength, filters, shift, stride, padding, dilation)
    else:
        out = torchvision_deform_conv2d(
            features, moves, filters, shift, stride, padding, dilation, strength
        )
    return out.to(input.dtype).contiguous(memory_format=library.memory_format_of(input))


def _check_shape(tensor: Tensor, name: str, expected: list[int]) -> None:
    if list(tensor.shape) != expected:
        raise RuntimeError(
            f"segdet::deform_conv2d: {name} must be {tuple(expected)}, is {tuple(tensor.shape)}"
        )


def _plain(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Tensor:
    """Samples of each tap and offset group, gathered from four corners; then one product."""
    batch, channels, height, width = input.shape
    (kh, kw), (oh, ow) = weight.shape[2:], offset.shape[2:]
    taps, groups = kh * kw, channels // weight.shape[1]
    offset_groups = offset.shape[1] // (2 * taps)
    moves = offset.view(batch, offset_groups, taps, 2, oh, ow)
    origin_y = torch.arange(oh).to(input)[:, None] * stride[0] - padding[0]
    origin_x = torch.arange(ow).to(input) * stride[1] - padding[1]
    tap = torch.arange(taps).to(input)[:, None, None]
    y = moves[:, :, :, 0] + origin_y + (tap // kw) * dilation[0]  # (B, D, taps, OH, OW)
    x = moves[:, :, :, 1] + origin_x + (tap % kw) * dilation[1]
    maps = input.view(batch, offset_groups, channels // offset_groups, 1, height * width)
    samples = torch.zeros((), dtype=input.dtype, device=input.device)
    for row, row_weight in _neighbours(y, height):
        for column, column_weight in _neighbours(x, width):
            cell = (row * width + column).flatten(3)[:, :, None]  # (B, D, 1, taps, OH * OW)
            index = cell.expand(-1, -1, maps.shape[2], -1, -1)
            corner = maps.expand(-1, -1, -1, taps, -1).gather(4, index)
            samples = samples + corner * (row_weight * column_weight).flatten(3)[:, :, None]
    if mask is not None:
        samples = samples * mask.view(batch, offset_groups, 1, taps, oh * ow)
    columns = samples.reshape(batch, groups, channels // groups * taps, oh * ow)
    out = weight.view(groups, len(weight) // groups, -1) @ columns  # (B, groups, O / groups, OH OW)
    out = out.reshape(batch, len(weight), oh, ow)
    return out if bias is None else out + bias[:, None, None]


def _neighbours(position: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """The two cells beside positions on one axis, and the share of each; 0 for cells off it."""
    low = position.detach().floor()
    fraction = position - low
    pairs: list[tuple[Tensor, Tensor]] = []
    for cell, share in ((low, 1 - fraction), (low + 1, fraction)):
        inside = (cell >= 0) & (cell < size)  # not so where it is no number
        pairs.append((torch.where(inside, cell, 0).long(), torch.where(inside, share, 0)))
    return pairs
