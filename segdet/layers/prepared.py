"""Weights prepared for inference: folded, packed, and kept for as long as they do not change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit._trace import is_tracing

from segdet.layers.batch_norm import FrozenBatchNorm2d
from segdet.ops import has_winograd, winograd_conv, winograd_weight

T = TypeVar("T")
Pair = tuple[int, int]


class FixedConv(Protocol):
    """A convolution with constant weights."""

    def __call__(self, x: Tensor, *, add: Tensor | None = None, relu: bool = False) -> Tensor:
        """The output, plus `add` where it is given, through a ReLU where one is wanted."""
        ...


def is_fixed(x: Tensor, *weights: Tensor | None) -> bool:
    """Whether weights are constants of a call on `x`: nothing learns of it, traces or casts it."""
    known = [w for w in weights if w is not None]
    if torch.is_grad_enabled() and (x.requires_grad or any(w.requires_grad for w in known)):
        return False
    return not (
        x.device.type not in ("cpu", "cuda")
        or is_traced()
        or torch.is_autocast_enabled(x.device.type)
        or any(w.is_inference() for w in known)  # whose changes torch does not count
    )


def is_traced() -> bool:
    """Whether calls are recorded, compiled or exported, to be repeated on other inputs."""
    return torch.compiler.is_compiling() or is_tracing()


class Prepared(Generic[T]):
    """What was made of weights; made anew when one of them has changed.

    A change is another tensor, or a write that torch counts: of an optimizer, `load_state_dict`,
    anything in place. Writes through `.data` are not counted: on the CPU they show in a sample of
    the values, elsewhere they go unseen. Copies and pickles of it are empty.
    """

    def __init__(self) -> None:
        self._seen: list[_Seen] = []
        self._form: Any = None
        self._made: T | None = None

    def __call__(self, make: Callable[[], T], *weights: Tensor | None, form: Any = None) -> T:
        """What `make` gives for the weights as they are; absent ones are None.

        Where it depends on more than them, that is `form`.
        """
        present = [w for w in weights if w is not None]
        if self._made is None or form != self._form or not self._has_seen(present):
            with torch.no_grad():
                self._made, self._form = make(), form
            self._seen = [_Seen(w, w.detach(), w._version, _sample(w)) for w in present]
        return self._made

    def _has_seen(self, weights: list[Tensor]) -> bool:
        return len(weights) == len(self._seen) and all(map(_Seen.is_still, self._seen, weights))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


class _Seen(NamedTuple):
    weight: Tensor
    memory: Tensor  # which is not given to others as long as this is kept
    version: int
    sample: list[float]

    def is_still(self, weight: Tensor) -> bool:
        return (
            weight is self.weight
            and weight._version == self.version
            and weight.data_ptr() == self.memory.data_ptr()
            and _sample(weight) == self.sample
        )


def _sample(weight: Tensor) -> list[float]:
    """Up to 31 values; of weights on an accelerator none, to which the host would have to wait."""
    if weight.device.type != "cpu":
        return []
    values = (weight if weight.is_contiguous() else weight[:1]).detach().reshape(-1)
    return values[:: max(len(values) // 16, 1)].tolist()


def conv_norm_act(
    x: Tensor,
    conv: nn.Conv2d,
    norm: Any,
    activation: Any,
    prepared: Prepared[FixedConv],
    residual: Tensor | None = None,
) -> Tensor:
    """A convolution, then a norm, a sum and an activation, each unless it is None.

    Where nothing learns the weights are `prepared`, with a batch norm of fixed statistics folded
    into them, and sum and ReLU are part of the same kernel; neither module is called then.

    Args:
        x: (B, in_channels, H, W); B may be 0.
        conv: its `forward` is not called.
        norm: of the result.
        activation: a function or module applied last.
        prepared: the layer's own, empty at first.
        residual: added before the activation.
    """
    terms = ("weight", "bias", "running_mean", "running_var")
    folds = _can_fold(norm)
    weights = [conv.weight, conv.bias, *(getattr(norm, t) for t in terms if folds)]
    plain = conv.padding_mode != "zeros" or conv.padding == "same"
    if plain or not is_fixed(x, *weights) or (residual is not None and residual.requires_grad):
        x = nn.Conv2d.forward(conv, x)
    else:
        layer = prepared(lambda: _prepare(conv, norm if folds else None), *weights)
        if norm is not None and not folds:
            x = layer(x)
        else:
            relu = _is_relu(activation)
            x = layer(x, add=residual, relu=relu)
            norm = residual = None
            activation = None if relu else activation
    if norm is not None:
        x = norm(x)
    if residual is not None:
        x += residual
    return x if activation is None else activation(x)


def _is_relu(activation: Any) -> bool:
    return activation in (F.relu, F.relu_) or isinstance(activation, nn.ReLU)


def _can_fold(norm: Any) -> bool:
    """Whether it multiplies and shifts each channel by numbers that stay as they are."""
    if isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return not norm.training and norm.running_mean is not None
    return isinstance(norm, FrozenBatchNorm2d)


def _prepare(conv: Any, norm: Any) -> FixedConv:
    weight, bias = conv.weight, conv.bias
    if norm is not None:
        weight, bias = fold(weight, bias, norm)
    padding = (0, 0) if conv.padding == "valid" else conv.padding
    return prepare_conv(weight, bias, conv.stride, padding, conv.dilation, conv.groups)


def fold(weight: Tensor, bias: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
    """A convolution's weight (O, C, h, w) and bias (O,), joined with the batch norm after it.

    Worked out in float64.
    """
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    mean = norm.running_mean if bias is None else norm.running_mean - bias
    shift = -mean * scale if norm.bias is None else norm.bias - mean * scale
    return (weight * scale[:, None, None, None]).to(weight.dtype), shift.to(weight.dtype)


def prepare_conv(
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> FixedConv:
    """A convolution with constant weights in the form that the fastest kernel reads.

    On the CPU in float32 that is Winograd's for 3x3 kernels that keep the size and oneDNN's for
    others; maps become channels-last there, and remain so.
    """
    outputs, channels, *size = weight.shape
    window = (padding, stride, dilation, groups)
    if not _has_onednn(weight):

        def conv(x: Tensor, add: Tensor | None = None, relu: bool = False) -> Tensor:
            y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
            return _finish(y, add, relu)

        return conv
    keeps_size = size == [3, 3] and window == ((1, 1), (1, 1), (1, 1), 1)
    if keeps_size and has_winograd(weight.device, channels, outputs):
        packed, shift = winograd_weight(weight), torch.zeros(outputs) if bias is None else bias

        def winograd(x: Tensor, add: Tensor | None = None, relu: bool = False) -> Tensor:
            y = winograd_conv(x, packed, shift, relu and add is None)
            return y if add is None else _finish(y, add, relu)

        return winograd
    weight = weight.contiguous(memory_format=torch.channels_last)

    def onednn(x: Tensor, add: Tensor | None = None, relu: bool = False) -> Tensor:
        if len(x) == 0:  # which oneDNN refuses
            return onednn(x.new_zeros(1, *x.shape[1:]))[:0]
        x = x.contiguous(memory_format=torch.channels_last)
        run = torch.ops.mkldnn._convolution_pointwise
        if add is None:
            return run(x, weight, bias, *window, "relu" if relu else "none", [], "")
        after = ("add", 1.0, "relu" if relu else None, [], None)
        return run.binary(x, add, weight, bias, *window, *after)

    return onednn


def _finish(y: Tensor, add: Tensor | None, relu: bool) -> Tensor:
    if add is not None:
        y += add
    return F.relu_(y) if relu else y


def prepare_linear_relu(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """The same of a fully connected layer and a ReLU: (R, in_features) to (R, out_features).

    `F.linear` calls MKL's product on the CPU, which takes 1.3 times as long on an AMD EPYC.
    """
    if not _has_onednn(weight):
        return lambda x: F.relu_(F.linear(x, weight, bias))
    onednn, outputs = torch.ops.mkldnn, len(weight)
    ordered = onednn._reorder_linear_weight(weight.contiguous())

    def linear_relu(x: Tensor) -> Tensor:
        if len(x) == 0:
            return x.new_zeros(0, outputs)
        return onednn._linear_pointwise(x, ordered, bias, "relu", [], "")

    return linear_relu


def _has_onednn(weight: Tensor) -> bool:
    """Whether this torch has the convolutions that `torch.compile` calls, and they serve it."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    )
