"""3x3 convolution with fewer products, for inference."""

# torch.library comes without complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import library

_BLOCK, _PANEL = 256, 32  # kBlock and kPanel<float> of csrc/gemm.h
_MULTIPLE = 16  # of channels: a vector of AVX-512


def has_winograd(device: torch.device, in_channels: int, out_channels: int) -> bool:
    """Whether `winograd_conv` runs on a device: a CPU, with multiples of 16 channels."""
    served = device.type == "cpu" and "cpu" in library.BINARY_DEVICES
    return served and in_channels % _MULTIPLE == 0 and out_channels % _MULTIPLE == 0


def winograd_weight(weight: Tensor) -> Tensor:
    """Weights as `winograd_conv` reads them: G g G^T of each kernel g, packed for its products.

    Args:
        weight: (O, C, 3, 3).

    Returns:
        (16, C * (O rounded up to 32)) float32, worked out in float64.
    """
    g = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]]
    transform = torch.tensor(g, dtype=torch.float64, device=weight.device)
    places = torch.einsum("ij,ocjk,lk->iloc", transform, weight.double(), transform)
    places = places.float().flatten(0, 1)  # (16, O, C)
    places = F.pad(places, (0, 0, 0, -places.shape[1] % _PANEL))
    packed = [
        block.unflatten(1, (-1, _PANEL)).mT.flatten(1)  # panels of (channels, 32 outputs)
        for outputs in places.split(_BLOCK, dim=1)
        for block in outputs.split(_BLOCK, dim=2)
    ]
    return torch.cat(packed, dim=1)


def winograd_conv(input: Tensor, weight: Tensor, bias: Tensor, relu: bool = False) -> Tensor:
    """3x3 convolution of stride 1 that pads by 1, by Winograd's minimal filtering F(2x2, 3x3).

    Source: Lavin and Gray 2015 (arXiv:1509.09308), section 4.1. It takes 4 products where the sum
    over the taps takes 9. Results are those of `F.conv2d` to the rounding of float32: errors of 256
    channels were 0.6 to 2 times as large as those of oneDNN's kernels. Not differentiable.

    There is no slower code that stands in: where `has_winograd` is false use `F.conv2d`.

    Args:
        input: (B, C, H, W) float32, fastest where it is channels-last.
        weight: of `winograd_weight`.
        bias: (O,) float32.
        relu: the result is at least 0.

    Returns:
        (B, O, H, W) float32, channels-last.

    Raises:
        RuntimeError: a wrong shape or type; C or O is no multiple of 16.
    """
    return torch.ops.segdet.winograd_conv(input, weight, bias, relu)


def _fake(input: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    batch, _, height, width = input.shape
    out = input.new_empty(batch, height, width, bias.shape[0])
    return out.permute(0, 3, 1, 2)


library.register_last_gradient("winograd_conv", _fake)
