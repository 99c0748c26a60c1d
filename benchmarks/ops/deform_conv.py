"""3x3 on a map of stride 8, 256 channels: forward with and without a mask, and all gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torchvision
from torch import Tensor

from benchmarks.ops.duel import Duel
from segdet import ops

CHANNELS, HEIGHT, WIDTH, TAPS = 256, 100, 152, 9


def gradients_of(op: Callable[..., Tensor], args: tuple[Tensor, ...]) -> Callable[[], object]:
    """The gradients alone; the forward is done once, when they are first asked for."""
    leaves = [tensor.detach().requires_grad_() for tensor in args]
    graph: list[tuple[Tensor, Tensor]] = []

    def run() -> object:
        if not graph:
            out = op(*leaves)
            graph.append((out, torch.randn_like(out)))
        return torch.autograd.grad(graph[0][0], leaves, graph[0][1], retain_graph=True)

    return run


def with_mask(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, offset, weight, bias, mask: op(x, offset, weight, bias, padding=1, mask=mask)


def duels(device: str) -> Iterator[Duel]:
    x = torch.randn(1, CHANNELS, HEIGHT, WIDTH, device=device)
    offset = torch.randn(1, 2 * TAPS, HEIGHT, WIDTH, device=device)
    mask = torch.rand(1, TAPS, HEIGHT, WIDTH, device=device)
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3, device=device) / 48
    args = (x, offset, weight, torch.randn(CHANNELS, device=device), mask)
    arrays = 4e-6 * sum(tensor.numel() for tensor in args)
    samples = 1e-9 * HEIGHT * WIDTH * TAPS * CHANNELS
    for layout in ("", " channels-last"):
        if layout:
            args = (x.contiguous(memory_format=torch.channels_last), *args[1:])
        yield Duel(
            name=f"deform_conv v2 fwd 256x100x152 3x3{layout}",
            ours=lambda args=args: with_mask(ops.deform_conv2d)(*args),
            peer=lambda args=args: with_mask(torchvision.ops.deform_conv2d)(*args),
            megabytes=arrays + 4e-6 * x.numel(),
            gigaflops=(2 * CHANNELS + 8) * samples,
        )
    args = (x, *args[1:])
    yield Duel(
        name="deform_conv v1 fwd 256x100x152 3x3",
        ours=lambda: ops.deform_conv2d(*args[:4], padding=(1, 1)),
        peer=lambda: torchvision.ops.deform_conv2d(*args[:4], padding=(1, 1)),
        megabytes=arrays + 4e-6 * x.numel(),
        gigaflops=(2 * CHANNELS + 8) * samples,
    )
    yield Duel(
        name="deform_conv v2 bwd 256x100x152 3x3",
        ours=gradients_of(with_mask(ops.deform_conv2d), args),
        peer=gradients_of(with_mask(torchvision.ops.deform_conv2d), args),
        megabytes=2 * arrays + 4e-6 * x.numel(),
        gigaflops=2 * (2 * CHANNELS + 8) * samples,
    )
