import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segdet.layers import Conv2d, FrozenBatchNorm2d, LinearReLU
from segdet.layers.batch_norm import NaiveSyncBatchNorm
from segdet.layers.prepared import Prepared

NORMS = [FrozenBatchNorm2d, nn.BatchNorm2d, NaiveSyncBatchNorm]


def with_statistics(norm):
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(tensor, 0.5, 2.0)
    return norm.eval()


def by_definition(conv, x):
    x = nn.Conv2d.forward(conv, x)
    x = x if conv.norm is None else conv.norm(x)
    return x if conv.activation is None else conv.activation(x)


def check(conv, x):
    with torch.no_grad():
        torch.testing.assert_close(conv(x), by_definition(conv, x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", [F.relu_, nn.ReLU(inplace=True), torch.sigmoid, None])
@pytest.mark.parametrize("bias", [True, False])
def test_a_folded_norm_changes_nothing(norm, activation, bias):
    conv = Conv2d(
        6, 16, 3, bias=bias, norm=with_statistics(norm(16)), activation=activation, padding=1
    )
    check(conv, torch.randn(2, 6, 5, 7))
    check(conv.double(), torch.randn(2, 6, 5, 7).double())


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3, "padding": 1},  # Winograd's
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": 3, "padding": 1, "groups": 8},
        {"kernel_size": 1, "bias": False},
        {"kernel_size": (1, 3), "padding": "valid"},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
        {"kernel_size": 3, "padding": 1, "norm": nn.GroupNorm(4, 32)},
    ],
    ids=str,
)
def test_every_convolution(settings):
    conv = Conv2d(32, 32, activation=F.relu, **settings)
    check(conv, torch.randn(2, 32, 6, 9))
    check(conv, torch.randn(0, 32, 6, 9))


@pytest.mark.parametrize("activation", [F.relu_, torch.sigmoid, None])
@pytest.mark.parametrize("norm", [None, *NORMS, lambda n: nn.GroupNorm(4, n)])
@pytest.mark.parametrize("size", [1, 3])
def test_a_residual_is_added_before_the_activation(size, norm, activation):
    norm = norm and norm(16)
    norm = with_statistics(norm) if hasattr(norm, "running_mean") else norm
    conv = Conv2d(16, 16, size, padding=size // 2, norm=norm, activation=activation)
    for batch in (2, 0):
        x, residual = torch.randn(2, batch, 16, 5, 7)
        before = residual.clone()
        expected = conv(x, residual).detach()  # with gradients
        with torch.no_grad():
            torch.testing.assert_close(conv(x, residual), expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(
                conv.double()(x.double(), residual.double()).float(), expected
            )
        conv.float()
        assert torch.equal(residual, before)


def test_training_is_as_before():
    conv = Conv2d(16, 16, 3, padding=1, norm=nn.BatchNorm2d(16), activation=F.relu)
    reference = copy.deepcopy(conv)
    x = torch.randn(2, 16, 6, 6)
    with torch.no_grad():
        conv(x)  # also in training mode, whose statistics are not folded
        by_definition(reference, x)
    torch.testing.assert_close(conv.norm.running_mean, reference.norm.running_mean)
    assert conv.norm.num_batches_tracked == 1
    conv(x).sum().backward()
    by_definition(reference, x).sum().backward()
    torch.testing.assert_close(conv.weight.grad, reference.weight.grad)


def change_by_optimizer(conv):
    for parameter in conv.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(conv.parameters(), lr=0.1).step()


CHANGES = {
    "load_state_dict": lambda conv: conv.load_state_dict(
        {name: value + 0.5 for name, value in conv.state_dict().items()}
    ),
    "optimizer": change_by_optimizer,
    "in place": lambda conv: conv.norm.running_mean.add_(1),
    "data": lambda conv: conv.weight.data.mul_(2),
    "data of another": lambda conv: setattr(conv.weight, "data", conv.weight.data * 2),
    "another tensor": lambda conv: setattr(conv.norm, "running_var", torch.full((16,), 4.0)),
    "layout": lambda conv: conv.to(memory_format=torch.channels_last).weight.data.mul_(2),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_changed_weights_are_seen(change):
    conv = Conv2d(16, 16, 3, padding=1, norm=with_statistics(nn.BatchNorm2d(16)))
    x = torch.randn(1, 16, 6, 6)
    with torch.no_grad():
        before = conv(x)
        change(conv)
        assert not torch.allclose(conv(x), before, atol=1e-3)
    check(conv, x)


def test_it_is_no_part_of_copies_and_files():
    conv = Conv2d(16, 16, 3, padding=1, bias=False, norm=FrozenBatchNorm2d(16))
    names = list(conv.state_dict())
    x = torch.randn(1, 16, 6, 6)
    with torch.no_grad():
        conv(x)
    assert list(conv.state_dict()) == names
    torch.save(conv, file := io.BytesIO())
    file.seek(0)
    for other in (copy.deepcopy(conv), torch.load(file, weights_only=False)):
        with torch.no_grad():
            other.weight.zero_()
            assert not other(x).any() and conv(x).any()


def test_it_is_made_once():
    made, weight = [], torch.randn(3)
    prepared: Prepared[int] = Prepared()
    for _ in range(3):
        prepared(lambda: made.append(1) or 1, weight, None)
    assert len(made) == 1
    prepared(lambda: made.append(1) or 1, weight, weight)
    prepared(lambda: made.append(1) or 1, weight, weight, form="another")
    assert len(made) == 3


def test_weights_made_in_inference_mode():
    with torch.inference_mode():
        conv = Conv2d(16, 16, 3, padding=1, norm=FrozenBatchNorm2d(16), activation=F.relu)
        x = torch.randn(1, 16, 6, 6)
        conv(x)
        conv.weight.mul_(2)
        torch.testing.assert_close(conv(x), by_definition(conv, x))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning")
def test_traced_and_autocast_calls_are_plain():
    conv = Conv2d(16, 16, 3, padding=1, norm=with_statistics(FrozenBatchNorm2d(16)))
    x = torch.randn(1, 16, 6, 6)
    with torch.no_grad():
        traced = torch.jit.trace(conv, x)
        torch.testing.assert_close(traced(x), by_definition(conv, x))
        assert "winograd" not in str(traced.graph)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(conv(x), by_definition(conv, x))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("regions", [0, 1, 5])
def test_fully_connected_layers_on_maps(layout, dtype, regions):
    layer = LinearReLU(12 * 9, 7).to(dtype)
    maps = torch.randn(regions, 12, 3, 3, dtype=dtype).contiguous(memory_format=layout)
    expected = layer(maps).detach()  # with gradients, hence not prepared
    with torch.no_grad():
        torch.testing.assert_close(layer(maps), expected)
        torch.testing.assert_close(layer(maps.flatten(1)), expected)
