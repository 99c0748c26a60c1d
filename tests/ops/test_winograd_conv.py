import pytest
import torch
import torch.nn.functional as F

from segdet.ops import has_winograd, winograd_conv, winograd_weight
from tests.ops.threads import check_same_bits

CPU = torch.device("cpu")

pytestmark = pytest.mark.skipif(
    not has_winograd(CPU, 16, 16), reason="needs the compiled ops: pip install -e ."
)


def random_conv(batch, channels, outputs, height, width):
    x = torch.randn(batch, channels, height, width)
    weight = torch.randn(outputs, channels, 3, 3) / (9 * channels) ** 0.5
    return x, weight, torch.randn(outputs)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "shape",
    [
        (2, 16, 16, 6, 8),
        (1, 48, 80, 7, 5),  # outputs that fill no panel; odd sides
        (3, 32, 64, 1, 1),
        (1, 16, 32, 1, 9),
        (1, 272, 32, 4, 4),  # more than a block of channels
        (1, 32, 528, 3, 4),  # and of outputs
        (0, 16, 16, 4, 4),
    ],
)
def test_matches_definition(shape, layout):
    x, weight, bias = random_conv(*shape)
    out = winograd_conv(x.contiguous(memory_format=layout), winograd_weight(weight), bias)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    torch.testing.assert_close(out.double(), expected, atol=2e-5, rtol=0)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_rounding_is_of_the_size_of_the_direct_sums():
    x, weight, bias = random_conv(1, 256, 64, 14, 14)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    error = (winograd_conv(x, winograd_weight(weight), bias) - exact).std()
    assert error < 3 * (F.conv2d(x, weight, bias, padding=1) - exact).std()


def test_relu():
    x, weight, bias = random_conv(1, 16, 16, 5, 5)
    plain = winograd_conv(x, winograd_weight(weight), bias)
    assert torch.equal(winograd_conv(x, winograd_weight(weight), bias, relu=True), plain.relu())


def test_refusals():
    x, weight, bias = random_conv(1, 16, 16, 4, 4)
    packed = winograd_weight(weight)
    with pytest.raises(RuntimeError, match="input must be float32, is Double"):
        winograd_conv(x.double(), packed, bias)
    with pytest.raises(RuntimeError, match="multiples of 16, are 8 and 16"):
        winograd_conv(x[:, :8], packed, bias)
    with pytest.raises(RuntimeError, match=r"weight must be \(16, 1024\) for 32 channels"):
        winograd_conv(torch.cat([x, x], dim=1), packed, bias)
    with pytest.raises(RuntimeError, match=r"input must be \(B, C, H, W\), has 3"):
        winograd_conv(x[0], packed, bias)
    assert not has_winograd(CPU, 16, 24) and not has_winograd(torch.device("meta"), 16, 16)


def test_is_a_well_formed_op():
    x, weight, bias = random_conv(1, 16, 16, 4, 4)
    args = (x.contiguous(memory_format=torch.channels_last), winograd_weight(weight), bias, True)
    torch.library.opcheck(torch.ops.segdet.winograd_conv, args)


def test_does_not_depend_on_threads():
    x, weight, bias = random_conv(2, 32, 32, 13, 13)
    packed = winograd_weight(weight)
    check_same_bits(lambda: winograd_conv(x, packed, bias))
