import math
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.ops import deform_conv2d
from tests.ops.threads import check_same_bits

Arguments = dict[str, Any]


def deform_conv2d_by_definition(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    mask: Tensor | None,
) -> Tensor:
    """Tap by tap: move the map's cells to where the tap looks, then convolve with 1x1 weights."""
    height, width = input.shape[2:]
    kh, kw = weight.shape[2:]
    oh, ow = offset.shape[2:]
    groups = input.shape[1] // weight.shape[1]
    offset_groups = offset.shape[1] // (2 * kh * kw)
    out = 0 if bias is None else bias[:, None, None]
    for k, (ky, kx) in enumerate(product(range(kh), range(kw))):
        moved = []
        for d, maps in enumerate(input.chunk(offset_groups, dim=1)):
            tap = d * kh * kw + k
            y = torch.arange(oh)[:, None] * stride[0] - padding[0] + ky * dilation[0]
            x = torch.arange(ow) * stride[1] - padding[1] + kx * dilation[1]
            y, x = y.to(input) + offset[:, 2 * tap], x.to(input) + offset[:, 2 * tap + 1]
            grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)
            samples = F.grid_sample(maps, grid, padding_mode="zeros", align_corners=True)
            moved.append(samples if mask is None else samples * mask[:, tap, None])
        filters = weight[:, :, ky, kx, None, None]
        out = out + F.conv2d(torch.cat(moved, dim=1), filters, groups=groups)
    return out


def random_arguments(
    *,
    batch: int = 2,
    channels: int = 6,
    outputs: int = 4,
    size: tuple[int, int] = (7, 9),
    kernel: tuple[int, int] = (3, 3),
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    offset_groups: int = 1,
    bias: bool = True,
    mask: bool = True,
    **like: Any,
) -> Arguments:
    oh, ow = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(size, padding, dilation, kernel, stride, strict=True)
    )
    samples = offset_groups * kernel[0] * kernel[1]
    like = {"dtype": torch.float64} | like
    return {
        "input": torch.randn(batch, channels, *size, **like),
        "offset": torch.randn(batch, 2 * samples, oh, ow, **like) * 2,
        "weight": torch.randn(outputs, channels // groups, *kernel, **like),
        "bias": torch.randn(outputs, **like) if bias else None,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "mask": torch.rand(batch, samples, oh, ow, **like) if mask else None,
    }


def gradients(out: Tensor, arguments: Arguments, grad: Tensor) -> list[Tensor]:
    leaves = [value for value in arguments.values() if isinstance(value, Tensor)]
    return list(torch.autograd.grad(out, leaves, grad))


def with_grad(arguments: Arguments) -> Arguments:
    return {
        name: value.detach().requires_grad_() if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }


SETTINGS = {
    "plain": {},
    "first_version": {"mask": False, "bias": False},
    "groups": {"groups": 2},
    "offset_groups": {"offset_groups": 3},
    "groups_across_offset_groups": {"groups": 2, "offset_groups": 3},
    "depthwise": {"groups": 6, "outputs": 12},
    "uneven": {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)},
    "one_cell": {"kernel": (1, 1), "padding": (0, 0), "batch": 1},
    "more_than_a_block": {"channels": 270, "outputs": 262, "batch": 1, "kernel": (2, 1)},
    "more_than_a_tile": {"size": (13, 21), "channels": 40, "outputs": 35},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_matches_definition(implementation, device, settings):
    arguments = with_grad(random_arguments(device=device, **settings))
    out = deform_conv2d(**arguments)
    expected = deform_conv2d_by_definition(**arguments)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    for ours, wanted in zip(
        gradients(out, arguments, grad), gradients(expected, arguments, grad), strict=True
    ):
        torch.testing.assert_close(ours, wanted)


def test_without_offsets_it_is_a_convolution(implementation, device):
    a = random_arguments(device=device, stride=(2, 1), groups=2)
    a["offset"].zero_(), a["mask"].fill_(1)
    expected = F.conv2d(
        a["input"], a["weight"], a["bias"], a["stride"], a["padding"], a["dilation"], groups=2
    )
    torch.testing.assert_close(deform_conv2d(**a), expected)


@pytest.mark.parametrize("position, slope", [(-1.0, 3.0), (0.0, 1.0), (1.0, -4.0), (-1.5, 0.0)])
def test_at_whole_numbers_an_offset_has_its_right_hand_derivative(
    implementation, device, position, slope
):
    maps = torch.tensor([[[[3.0], [4.0]]]], device=device)
    offset = torch.tensor([position, 0.0], device=device).view(1, 2, 1, 1).repeat(1, 1, 2, 1)
    offset[:, 0, 1] = 9  # the other output looks far away
    offset.requires_grad_()
    out = deform_conv2d(maps, offset, torch.ones(1, 1, 1, 1, device=device))
    (grad,) = torch.autograd.grad(out.sum(), offset)
    assert grad[0, 0, 0, 0].item() == slope
    assert grad[0, :, 1].tolist() == [[0.0], [0.0]]


def test_positions_that_are_not_finite_or_far_away_sample_zeros(compiled):
    arguments = random_arguments(device=compiled, bias=False)
    arguments["offset"][0] = math.nan
    arguments["offset"][1, ::2], arguments["offset"][1, 1::2] = math.inf, -1e30
    arguments = with_grad(arguments)
    out = deform_conv2d(**arguments)
    assert not out.any()
    for grad in gradients(out, arguments, torch.ones_like(out)):
        assert not grad.any()


@pytest.mark.parametrize("format", [torch.channels_last, torch.contiguous_format])
def test_keeps_the_memory_format_of_its_input(implementation, device, format):
    arguments = random_arguments(device=device)
    expected = deform_conv2d(**arguments)
    arguments["input"] = arguments["input"].contiguous(memory_format=format)
    arguments = with_grad(arguments)
    out = deform_conv2d(**arguments)
    assert out.is_contiguous(memory_format=format)
    torch.testing.assert_close(out, expected)
    grad = gradients(out, arguments, torch.randn_like(out))[0]
    assert implementation != "compiled" or grad.is_contiguous(memory_format=format)


def test_takes_strided_tensors(implementation, device):
    arguments = random_arguments(device=device)
    apart = {
        name: torch.stack([value, value], dim=-1)[..., 0] if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }
    torch.testing.assert_close(deform_conv2d(**apart), deform_conv2d(**arguments))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_types(implementation, device, dtype):
    like = {"dtype": dtype, "device": device}
    narrow = with_grad(random_arguments(channels=16, outputs=32, **like))
    wide = {
        name: value.detach().double().requires_grad_() if isinstance(value, Tensor) else value
        for name, value in narrow.items()
    }
    out, expected = deform_conv2d(**narrow), deform_conv2d(**wide)
    assert out.dtype == dtype
    grad = torch.randn_like(out)
    pairs = zip(
        [out, *gradients(out, narrow, grad)],
        [expected, *gradients(expected, wide, grad.double())],
        strict=True,
    )
    for ours, wanted in pairs:
        assert ours.dtype == dtype
        scale = wanted.abs().max()
        error = (ours.double() - wanted).abs().max() / scale
        assert error < 16 * torch.finfo(dtype).eps


def test_half_precision_features_with_exact_offsets(implementation, device):
    arguments = random_arguments(device=device, dtype=torch.float32)
    exact = deform_conv2d(**arguments)
    for name in ("input", "weight", "bias"):
        arguments[name] = arguments[name].bfloat16()
    out = deform_conv2d(**arguments)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact, rtol=0.05, atol=0.2)


@pytest.mark.parametrize("settings", [{"batch": 0}, {"batch": 0, "mask": False, "bias": False}])
def test_empty_batch(implementation, device, settings):
    arguments = with_grad(random_arguments(device=device, **settings))
    out = deform_conv2d(**arguments)
    assert out.shape == (0, 4, 7, 9)
    for grad in gradients(out, arguments, torch.zeros_like(out)):
        assert not grad.any()


@pytest.mark.parametrize("settings", ["plain", "groups", "offset_groups", "more_than_a_tile"])
def test_same_bits_for_any_number_of_threads(settings):
    arguments = with_grad(random_arguments(dtype=torch.float32, **SETTINGS[settings]))

    def run() -> list[Tensor]:
        out = deform_conv2d(**arguments)
        return [out, *gradients(out, arguments, torch.ones_like(out))]

    check_same_bits(run)


def test_deterministic_gradients(compiled):
    arguments = with_grad(random_arguments(device=compiled, channels=40, dtype=torch.float32))
    out = deform_conv2d(**arguments)
    grad = torch.randn_like(out)
    expected = gradients(out, arguments, grad)
    torch.use_deterministic_algorithms(True)
    try:
        once, again = (gradients(deform_conv2d(**arguments), arguments, grad) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    for first, second, wanted in zip(once, again, expected, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"input": (6, 7, 9)}, r"input must be \(B, C, H, W\), has 3 dimensions"),
        ({"weight": (4, 4, 3, 3)}, r"input's channels must be a multiple of weight's 4, are 6"),
        ({"weight": (3, 3, 3, 3)}, r"weight's 3 outputs must be a multiple of the groups, 2"),
        ({"offset": (2, 16, 7, 9)}, r"offset must have 2 \* D \* 9 channels, .*, has 16"),
        ({"offset": (2, 18, 7, 8)}, r"offset must be .* = \(2, 18, 7, 9\), is \(2, 18, 7, 8\)"),
        ({"mask": (2, 18, 7, 9)}, r"mask must be .* = \(2, 9, 7, 9\), is \(2, 18, 7, 9\)"),
        ({"bias": (5,)}, r"bias must be \(O,\) = \(4\), is \(5\)"),
        ({"stride": 0}, r"kernel, stride and dilation must be positive .*, are 3, 0, 1 and 1"),
        ({"dilation": 5}, r"height of input must be in \[9, 2\^31\), is 7"),
    ],
)
def test_rejects(compiled, changes, message):
    like = {"dtype": torch.float64, "device": compiled}
    changes = {k: torch.zeros(v, **like) if isinstance(v, tuple) else v for k, v in changes.items()}
    with pytest.raises(RuntimeError, match=message):
        deform_conv2d(**random_arguments(**like) | changes)


def test_rejects_mixed_types(compiled):
    arguments = random_arguments(device=compiled)
    arguments["weight"] = arguments["weight"].float()
    with pytest.raises(RuntimeError, match="weight must have the type of input, Double, is Float"):
        deform_conv2d(**arguments)


def test_under_autocast_it_is_cast_like_a_convolution(compiled):
    like = {"device": compiled, "dtype": torch.float32}
    arguments = random_arguments(padding=(300, 300), stride=(400, 400), **like)
    arguments["offset"] += 300  # bfloat16 would round it to a multiple of 2
    arguments = with_grad(arguments)
    with torch.autocast(compiled, torch.bfloat16):
        out = deform_conv2d(**arguments)
    assert out.dtype == torch.bfloat16
    exact = deform_conv2d(**arguments)
    torch.testing.assert_close(out.float(), exact, rtol=0.05, atol=0.2)
    for grad in gradients(out, arguments, torch.ones_like(out)):
        assert grad.dtype == torch.float32


@pytest.mark.parametrize("settings", ["plain", "first_version", "groups_across_offset_groups"])
def test_gradients_are_those_of_finite_differences(compiled, settings):
    arguments = random_arguments(batch=1, size=(4, 5), device=compiled, **SETTINGS[settings])
    names = [name for name, value in arguments.items() if isinstance(value, Tensor)]

    def call(*tensors: Tensor) -> Tensor:
        return deform_conv2d(**arguments | dict(zip(names, tensors, strict=True)))

    leaves = with_grad(arguments)
    assert torch.autograd.gradcheck(call, [leaves[name] for name in names], fast_mode=True)


def test_a_second_gradient_is_refused(compiled):
    arguments = with_grad(random_arguments(device=compiled))
    out = deform_conv2d(**arguments)
    (grad,) = torch.autograd.grad(out.sum(), arguments["input"], create_graph=True)
    with pytest.raises(RuntimeError, match="deform_conv2d_backward is not differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("format", [torch.channels_last, torch.contiguous_format])
def test_is_a_well_formed_op(compiled, format):
    a = random_arguments(batch=1, size=(4, 5), device=compiled)
    a["input"] = a["input"].contiguous(memory_format=format)
    a = with_grad(a)
    tensors = [a[name] for name in ("input", "offset", "mask", "weight", "bias")]
    rule = (a["stride"], a["padding"], a["dilation"])
    torch.library.opcheck(torch.ops.segdet.deform_conv2d, (*tensors, *rule))


class Deformed(nn.Module):
    """Offsets and mask from a convolution, as networks use the op."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_offset = nn.Conv2d(4, 27, 3, padding=1)
        self.weight = nn.Parameter(torch.randn(6, 4, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        y, x_, mask = self.conv_offset(x).chunk(3, dim=1)
        offset = torch.cat([y, x_], dim=1)
        return deform_conv2d(x, offset, self.weight, padding=1, mask=mask.sigmoid())


@pytest.mark.slow
def test_compiles_to_one_graph(compiled):
    model = Deformed().to(compiled)
    x = torch.randn(2, 4, 6, 5, device=compiled)
    whole = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(x), model(x))
    parameters = list(model.parameters())
    for ours, wanted in zip(
        torch.autograd.grad(whole(x).sum(), parameters),
        torch.autograd.grad(model(x).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(ours, wanted)
    with torch.autocast(compiled, torch.bfloat16):
        assert whole(x).dtype == torch.bfloat16
        torch.testing.assert_close(whole(x), model(x))
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x))
