"""detectron2's layers around `deform_conv2d`: convolutions whose caller says where they look."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from segdet.ops import deform_conv2d

Activation = Callable[[Tensor], Tensor]


class _DeformableConv(nn.Module):
    """What both versions share; parameters and children are the official `weight`, `norm.*`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int],
        padding: int | tuple[int, int],
        dilation: int | tuple[int, int],
        groups: int,
        deformable_groups: int,
        norm: nn.Module | None,
        activation: Activation | None,
    ) -> None:
        super().__init__()
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups != 0:
                raise ValueError(f"{name} must be a multiple of groups = {groups}, is {channels}")
        if in_channels % deformable_groups != 0:
            raise ValueError(
                f"in_channels must be a multiple of deformable_groups = {deformable_groups}, "
                f"is {in_channels}"
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = _pair(kernel_size)
        self.stride, self.padding, self.dilation = _pair(stride), _pair(padding), _pair(dilation)
        self.groups, self.deformable_groups = groups, deformable_groups
        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels // groups, *self.kernel_size)
        )
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        self.norm, self.activation = norm, activation

    def _convolve(
        self, x: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        x = deform_conv2d(
            x, offset, self.weight, bias, self.stride, self.padding, self.dilation, mask
        )
        if self.norm is not None:
            x = self.norm(x)
        if self.activation is not None:
            x = self.activation(x)
        return x

    def extra_repr(self) -> str:
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
        names += ("groups", "deformable_groups")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


class DeformConv(_DeformableConv):
    """Deformable convolution, version 1 (arXiv:1703.06211), without bias.

    Args:
        in_channels: C of the input.
        out_channels: C of the output.
        kernel_size: (h, w) or one number for both.
        stride: likewise.
        padding: likewise.
        dilation: likewise.
        groups: of the convolution.
        deformable_groups: of channels that share their offsets.
        bias: must be False; it is here for detectron2's callers.
        norm: a module applied to the result.
        activation: a function or module applied last.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        deformable_groups: int = 1,
        bias: bool = False,
        norm: nn.Module | None = None,
        activation: Activation | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            deformable_groups,
            norm,
            activation,
        )
        if bias:
            raise ValueError("DeformConv has no bias; bias must be False, is True")
        self.bias = None

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        """Convolve samples of a map.

        Args:
            x: (B, in_channels, H, W).
            offset: (B, 2 * deformable_groups * h * w, H', W'), as `segdet.ops.deform_conv2d` takes
                them.

        Returns:
            (B, out_channels, H', W'); B may be 0.
        """
        return self._convolve(x, offset, None, None)


class ModulatedDeformConv(_DeformableConv):
    """Deformable convolution, version 2 (arXiv:1811.11168): a mask weighs the samples.

    Args:
        in_channels: C of the input.
        out_channels: C of the output.
        kernel_size: (h, w) or one number for both.
        stride: likewise.
        padding: likewise.
        dilation: likewise.
        groups: of the convolution.
        deformable_groups: of channels that share their offsets and mask.
        bias: whether there is one, zero at first.
        norm: a module applied to the result.
        activation: a function or module applied last.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        deformable_groups: int = 1,
        bias: bool = True,
        norm: nn.Module | None = None,
        activation: Activation | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            deformable_groups,
            norm,
            activation,
        )
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """As `DeformConv`, with a mask (B, deformable_groups * h * w, H', W')."""
        return self._convolve(x, offset, mask, self.bias)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value
