import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segdet.layers import DeformConv, ModulatedDeformConv

SETTINGS = {"stride": 2, "padding": (2, 1), "dilation": (2, 1), "groups": 2}


def test_without_offsets_it_is_a_convolution():
    conv = DeformConv(4, 6, 3, deformable_groups=2, **SETTINGS)
    x = torch.randn(2, 4, 9, 8)
    expected = F.conv2d(x, conv.weight, **SETTINGS)
    offset = torch.zeros(2, 36, *expected.shape[2:])
    torch.testing.assert_close(conv(x, offset), expected)


def test_a_mask_weighs_the_samples():
    conv = ModulatedDeformConv(4, 6, 3, deformable_groups=2, **SETTINGS)
    nn.init.normal_(conv.bias)
    x = torch.randn(2, 4, 9, 8)
    expected = F.conv2d(x, conv.weight / 2, conv.bias, **SETTINGS)
    offset, mask = (torch.zeros(2, n, *expected.shape[2:]) for n in (36, 18))
    torch.testing.assert_close(conv(x, offset, mask + 0.5), expected)


def test_convolution_then_norm_then_activation():
    norm = nn.BatchNorm2d(6).eval()
    norm.running_mean.uniform_()
    conv = ModulatedDeformConv(4, 6, (3, 1), bias=False, norm=norm, activation=torch.relu)
    x = torch.randn(1, 4, 5, 5)
    expected = norm(F.conv2d(x, conv.weight)).relu()
    torch.testing.assert_close(conv(x, torch.zeros(1, 6, 3, 5), torch.ones(1, 3, 3, 5)), expected)


def test_parameters_have_their_official_names_and_start_values():
    first = DeformConv(8, 4, 3, norm=nn.GroupNorm(2, 4))
    assert list(first.state_dict()) == ["weight", "norm.weight", "norm.bias"]
    assert first.bias is None
    second = ModulatedDeformConv(8, 4, 3)
    assert list(second.state_dict()) == ["weight", "bias"]
    assert not second.bias.any()
    bound = (6 / (8 * 9)) ** 0.5  # Kaiming's, uniform, for a ReLU
    for conv in (first, second):
        assert 0.9 * bound < conv.weight.abs().max() <= bound


def test_no_images_give_no_maps():
    conv = ModulatedDeformConv(4, 6, 3, stride=2, padding=1, norm=nn.GroupNorm(2, 6))
    out = conv(torch.zeros(0, 4, 7, 8), torch.zeros(0, 18, 4, 4), torch.zeros(0, 9, 4, 4))
    assert out.shape == (0, 6, 4, 4)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"groups": 3}, "in_channels must be a multiple of groups = 3, is 4"),
        ({"groups": 4}, "out_channels must be a multiple of groups = 4, is 6"),
        ({"deformable_groups": 3}, "in_channels must be a multiple of deformable_groups = 3, is 4"),
        ({"bias": True}, "bias must be False, is True"),
    ],
)
def test_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        DeformConv(4, 6, 3, **settings)


@pytest.mark.slow
def test_compiles_and_exports():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.offset = nn.Conv2d(4, 18, 3, padding=1)
            self.conv = DeformConv(4, 6, 3, padding=1, norm=nn.GroupNorm(2, 6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x, self.offset(x))

    block, x = Block(), torch.randn(2, 4, 6, 7)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), block(x))
    exported = torch.export.export(block, (x,)).module()
    torch.testing.assert_close(exported(x), block(x))
