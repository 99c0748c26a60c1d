"""Atrous spatial pyramid pooling: one map seen at several dilations and as a whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.layers import Conv2d, c2_xavier_fill, get_norm


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (arXiv:1706.05587, section 3.3, figure 5).

    Args:
        in_channels: of the map.
        out_channels: of each branch and of the result.
        dilations: of the 3x3 branches.
        norm: a name that `get_norm` knows; the pooled branch has none.
        dropout: probability, in training, of leaving out a value of the result.
        pool_size: height and width, in cells of the map, of the window of the pooled branch; None
            is the whole map.
        separable: 3x3 branches are depthwise separable.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        dilations: Sequence[int],
        norm: str,
        dropout: float = 0.0,
        pool_size: tuple[int, int] | None = None,
        separable: bool = False,
    ) -> None:
        super().__init__()
        self.out_channels, self.dropout = out_channels, dropout
        branch = SeparableConv2d if separable else conv_relu
        pooled = conv_relu(in_channels, out_channels, 1, norm="")
        self.convs = nn.ModuleList(
            [
                conv_relu(in_channels, out_channels, 1, norm=norm),
                *(branch(in_channels, out_channels, 3, norm=norm, dilation=d) for d in dilations),
                nn.Sequential(WindowPool(pool_size), pooled),
            ]
        )
        self.project = conv_relu(len(self.convs) * out_channels, out_channels, 1, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H, W)."""
        branches = [conv(x) for conv in self.convs]
        branches[-1] = F.interpolate(
            branches[-1], size=x.shape[-2:], mode="bilinear", align_corners=False
        )
        x = self.project(torch.cat(branches, dim=1))
        return F.dropout(x, self.dropout, training=self.training)


class WindowPool(nn.Module):
    """Mean over a window around each cell, where it fits into the map; or over the whole map.

    A network that was trained on crops pools over windows of their size when images are larger.

    Args:
        size: height and width of the window in cells; a map that is smaller is pooled whole.
    """

    def __init__(self, size: tuple[int, int] | None) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H - height + 1, W - width + 1), or (B, C, 1, 1)."""
        if self.size is None:
            return x.mean(dim=(2, 3), keepdim=True)
        window = [min(side, whole) for side, whole in zip(self.size, x.shape[-2:], strict=True)]
        return F.avg_pool2d(x, window, stride=1)


class SeparableConv2d(nn.Module):
    """A convolution of each channel by itself, then a 1x1 convolution; ReLU behind both."""

    def __init__(
        self, in_channels: int, out_channels: int, size: int, *, norm: str, dilation: int = 1
    ) -> None:
        super().__init__()
        self.depthwise = conv_relu(
            in_channels, in_channels, size, norm=norm, dilation=dilation, groups=in_channels
        )
        self.pointwise = conv_relu(in_channels, out_channels, 1, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H, W)."""
        return self.pointwise(self.depthwise(x))


def conv_relu(
    in_channels: int,
    out_channels: int,
    size: int,
    *,
    norm: str,
    dilation: int = 1,
    groups: int = 1,
) -> Conv2d:
    """Convolution that keeps the map's size, norm, ReLU.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        size: of the kernel, odd.
        norm: a name that `get_norm` knows; "" is none, and a bias instead.
        dilation: of the kernel.
        groups: of channels.
    """
    conv = Conv2d(
        in_channels,
        out_channels,
        size,
        padding=size // 2 * dilation,
        dilation=dilation,
        groups=groups,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=F.relu,
    )
    c2_xavier_fill(conv)
    return conv
