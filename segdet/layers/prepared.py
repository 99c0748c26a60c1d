"""Weights prepared for inference: folded, packed, and kept for as long as they do not change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit._trace import is_tracing

from segdet.layers.batch_norm import FrozenBatchNorm2d
from segdet.ops import has_winograd, winograd_conv, winograd_weight

T = TypeVar("T")
Pair = tuple[int, int]
FixedLayer = Callable[[Tensor, bool], Tensor]  # input, and whether a ReLU follows -> output


def is_fixed(x: Tensor, *weights: Tensor | None) -> bool:
    """Whether weights are constants of a call on `x`: nothing learns of it, traces or casts it."""
    known = [w for w in weights if w is not None]
    if torch.is_grad_enabled() and (x.requires_grad or any(w.requires_grad for w in known)):
        return False
    return not (
        x.device.type not in ("cpu", "cuda")
        or torch.compiler.is_compiling()
        or is_tracing()
        or torch.is_autocast_enabled(x.device.type)
        or any(w.is_inference() for w in known)  # whose changes torch does not count
    )


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
    x: Tensor, conv: nn.Conv2d, norm: Any, activation: Any, prepared: Prepared[FixedLayer]
) -> Tensor:
    """A convolution, then a norm and an activation unless they are None.

    Where nothing learns the weights are `prepared`, with a batch norm of fixed statistics folded
    into them, and a ReLU is part of the same kernel; neither module is called then.

    Args:
        x: (B, in_channels, H, W); B may be 0.
        conv: its `forward` is not called.
        norm: of the result.
        activation: a function or module applied last.
        prepared: the layer's own, empty at first.
    """
    terms = ("weight", "bias", "running_mean", "running_var")
    folds = _can_fold(norm)
    weights = [conv.weight, conv.bias, *(getattr(norm, t) for t in terms if folds)]
    if conv.padding_mode == "zeros" and conv.padding != "same" and is_fixed(x, *weights):
        fused = norm is None or folds
        relu = fused and _is_relu(activation)
        x = prepared(lambda: _prepare(conv, norm if folds else None), *weights)(x, relu)
        norm, activation = None if fused else norm, None if relu else activation
    else:
        x = nn.Conv2d.forward(conv, x)
    if norm is not None:
        x = norm(x)
    return x if activation is None else activation(x)


def _is_relu(activation: Any) -> bool:
    return activation in (F.relu, F.relu_) or isinstance(activation, nn.ReLU)


def _can_fold(norm: Any) -> bool:
    """Whether it multiplies and shifts each channel by numbers that stay as they are."""
    if isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return not norm.training and norm.running_mean is not None
    return isinstance(norm, FrozenBatchNorm2d)


def _prepare(conv: Any, norm: Any) -> FixedLayer:
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
) -> FixedLayer:
    """A convolution with constant weights in the form that the fastest kernel reads.

    On the CPU in float32 that is Winograd's for 3x3 kernels that keep the size and oneDNN's for
    others; maps become channels-last there, and remain so.
    """
    outputs, channels, *size = weight.shape
    window = (padding, stride, dilation, groups)
    if not _has_onednn(weight):

        def conv(x: Tensor, relu: bool) -> Tensor:
            y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
            return F.relu_(y) if relu else y

        return conv
    keeps_size = size == [3, 3] and window == ((1, 1), (1, 1), (1, 1), 1)
    if keeps_size and has_winograd(weight.device, channels, outputs):
        packed, shift = winograd_weight(weight), torch.zeros(outputs) if bias is None else bias
        return lambda x, relu: winograd_conv(x, packed, shift, relu)
    weight = weight.contiguous(memory_format=torch.channels_last)

    def convolve(x: Tensor, relu: bool) -> Tensor:
        if len(x) == 0:  # which oneDNN refuses
            return convolve(x.new_zeros(1, *x.shape[1:]), relu)[:0]
        x = x.contiguous(memory_format=torch.channels_last)
        after = ("relu" if relu else "none", [], "")
        return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *window, *after)

    return convolve


def prepare_linear(weight: Tensor, bias: Tensor | None) -> FixedLayer:
    """The same of a fully connected layer, for (R, in_features) to (R, out_features).

    `F.linear` calls MKL's product on the CPU, which takes 1.3 times as long on an AMD EPYC.
    """
    if not _has_onednn(weight):

        def linear(x: Tensor, relu: bool) -> Tensor:
            y = F.linear(x, weight, bias)
            return F.relu_(y) if relu else y

        return linear
    onednn = torch.ops.mkldnn
    ordered, outputs = onednn._reorder_linear_weight(weight.contiguous()), len(weight)

    def multiply(x: Tensor, relu: bool) -> Tensor:
        if len(x) == 0:
            return x.new_zeros(0, outputs)
        return onednn._linear_pointwise(x, ordered, bias, "relu" if relu else "none", [], "")

    return multiply


def _has_onednn(weight: Tensor) -> bool:
    """Whether this torch has the convolutions that `torch.compile` calls, and they serve it."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    )
