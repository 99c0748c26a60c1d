from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.layers.batch_norm import get_norm
from segdet.layers.prepared import FixedConv, Prepared, conv_norm_act, is_fixed, prepare_linear_relu
from segdet.layers.weight_init import c2_msra_fill

ConvTranspose2d = nn.ConvTranspose2d
BatchNorm2d = nn.BatchNorm2d
Linear = nn.Linear
interpolate = F.interpolate


class Conv2d(nn.Conv2d):
    """Convolution, then an optional norm, then an optional activation.

    The norm is the child `norm`, as in the official state dicts (`conv1.norm.weight`).

    Where nothing learns, one kernel does all three: see `conv_norm_act`.

    Args:
        args: positional arguments of `torch.nn.Conv2d`.
        norm: a module applied to the result; pass `bias=not norm` along with it.
        activation: a function or module applied last.
        kwargs: keyword arguments of `torch.nn.Conv2d`.
    """

    def __init__(
        self,
        *args: Any,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation
        self._prepared: Prepared[FixedConv] = Prepared()

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H', W'); B may be 0.

        A `residual` of the result's shape is added before the activation.
        """
        return conv_norm_act(input, self, self.norm, self.activation, self._prepared, residual)


def conv3x3_relu(in_channels: int, out_channels: int, norm: str = "", stride: int = 1) -> Conv2d:
    """3x3 convolution that pads by 1, norm, ReLU; the layer that heads are stacked from.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        norm: a name that `get_norm` knows; the convolution has a bias only without one.
        stride: 1 keeps the size.
    """
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size=3,
        stride=stride,
        padding=1,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=nn.ReLU(inplace=True),
    )
    c2_msra_fill(conv)
    return conv


class LinearReLU(nn.Linear):
    """A fully connected layer and a ReLU, on vectors or on maps.

    Where nothing learns, weights are kept in the form that the fastest kernel reads, and maps are
    read as they lie in memory.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self._prepared: Prepared[Callable[[Tensor], Tensor]] = Prepared()

    def forward(self, input: Tensor) -> Tensor:
        """(R, in_features), or (R, C, H, W) that count as such, to (R, out_features)."""
        if not is_fixed(input, self.weight, self.bias):
            return F.relu_(super().forward(input.flatten(1)))
        size = input.shape[1:]

        def prepare() -> Callable[[Tensor], Tensor]:
            cells = self.weight.unflatten(1, size).movedim(1, -1)  # in the order of channels-last
            return prepare_linear_relu(cells.flatten(1), self.bias)

        layer = self._prepared(prepare, self.weight, self.bias, form=size)
        return layer(input.movedim(1, -1).flatten(1))


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """`torch.cat`, which copies nothing when there is one tensor."""
    if len(tensors) == 1:
        return tensors[0]
    return torch.cat(list(tensors), dim)


def cross_entropy(
    input: Tensor, target: Tensor, *, reduction: str = "mean", **kwargs: Any
) -> Tensor:
    """`F.cross_entropy` whose mean over no rows is zero and still connected to `input`.

    Args:
        input: (N, K) logits, or (N, K, H, W).
        target: (N,) int64 classes, or (N, H, W).
        reduction: "mean", "sum" or "none".
        kwargs: further arguments of `F.cross_entropy`.

    Returns:
        Scalar, or the losses one by one for "none".
    """
    if target.numel() == 0 and reduction == "mean":
        return input.sum() * 0.0
    return F.cross_entropy(input, target, reduction=reduction, **kwargs)


def nonzero_tuple(x: Tensor) -> tuple[Tensor, ...]:
    """The indices of the nonzero elements, one (N,) int64 tensor per dimension."""
    return x.nonzero(as_tuple=True)


def at_least_float32(x: Tensor) -> Tensor:
    """`x` as float32, float64 as it is: where half precision is too coarse for what follows."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
