"""Functions whose inside is computed again for the gradient instead of being kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def recompute(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """What `function` makes of its inputs, of which alone it keeps the memory.

    Source: arXiv:1604.06174. `torch.utils.checkpoint` does the same, and imports torch.compile for
    it, which takes more memory than most maps (150 MiB in torch 2.15).

    Args:
        function: gives one tensor, always the same; all that learns in it is among `inputs`.
        inputs: its arguments.
    """
    return _Recompute.apply(function, *inputs)


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        device = inputs[0].device.type
        ctx.function = function
        ctx.autocast = torch.autocast(
            device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        )
        ctx.save_for_backward(*inputs)
        return function(*inputs)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        inputs = [
            x.detach().requires_grad_(wanted)
            for x, wanted in zip(ctx.saved_tensors, ctx.needs_input_grad[1:], strict=True)
        ]
        with torch.enable_grad(), ctx.autocast:
            # Gradients of a sum, since `grad_outputs` makes torch import sympy, 30 MiB.
            total = (ctx.function(*inputs) * grad_outputs[0]).sum()
        gradients = iter(torch.autograd.grad(total, [x for x in inputs if x.requires_grad]))
        return None, *(next(gradients) if x.requires_grad else None for x in inputs)
