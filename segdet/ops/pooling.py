"""What the ops that pool regions of a feature map have in common: shapes, gradients, refusals."""

# torch.library comes without complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import library


def register_pooling(name: str, out_channels: Callable[[int, tuple[Any, ...]], int]) -> None:
    """Tell torch what it needs to trace and differentiate an op and `name`_backward.

    Their arguments are `(input, rois, h, w, *rule)` and `(grad, rois, *input.shape, *rule,
    deterministic)`. Both are linear in their first one, so each is the gradient of the other.

    Args:
        name: of the op, without `segdet::`.
        out_channels: of the result, from those of the input and the rule.
    """

    def fake(input: Tensor, rois: Tensor, h: int, w: int, *rule: Any) -> Tensor:
        return empty_map((rois.shape[0], out_channels(input.shape[1], rule), h, w), input)

    def fake_backward(
        grad: Tensor, rois: Tensor, batch: int, channels: int, height: int, width: int, *rule: Any
    ) -> Tensor:
        return empty_map((batch, channels, height, width), grad)

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, rois, _, _, *ctx.rule = inputs
        ctx.input_shape = input.shape
        ctx.save_for_backward(rois)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (rois,) = ctx.saved_tensors
        deterministic = torch.are_deterministic_algorithms_enabled()
        op = getattr(torch.ops.segdet, f"{name}_backward")
        grad_input = op(grad, rois, *ctx.input_shape, *ctx.rule, deterministic)
        return grad_input, *[None] * (3 + len(ctx.rule))

    def setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad, rois, _, _, _, _, *ctx.rule, _ = inputs
        ctx.output_size = grad.shape[2:]
        ctx.save_for_backward(rois)

    def double_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (rois,) = ctx.saved_tensors
        op = getattr(torch.ops.segdet, name)
        return op(grad, rois, *ctx.output_size, *ctx.rule), *[None] * (6 + len(ctx.rule))

    library.register(name, fake, backward=backward, setup_context=setup)
    library.register(
        f"{name}_backward", fake_backward, backward=double_backward, setup_context=setup_backward
    )


def empty_map(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Of the type, device and memory format of `like`."""
    memory_format = library.memory_format_of(like)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


def check_pooling(input: Tensor, rois: Tensor, columns: int, op: str) -> None:
    """The compiled ops' refusals of shapes and images, for the fallbacks; rois (R, columns)."""
    if rois.dim() != 2 or rois.shape[1] != columns:
        raise RuntimeError(
            f"segdet::{op}: rois must be (R, {columns}), has shape {tuple(rois.shape)}"
        )
    if input.dim() != 4:
        raise RuntimeError(
            f"segdet::{op}: input must be (B, C, H, W), has {input.dim()} dimensions"
        )
    image = rois[:, 0]
    if not ((image >= 0) & (image < len(input))).all():
        raise RuntimeError(
            f"segdet::{op}: rois[:, 0] is the image's index in the batch and must be in "
            f"[0, {len(input)}), is {image.tolist()}"
        )
