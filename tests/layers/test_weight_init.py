import pytest
from torch import nn

from segdet.layers import c2_msra_fill, c2_xavier_fill, normal_fill


@pytest.mark.parametrize("layer", [nn.Conv2d(64, 128, 3), nn.ConvTranspose2d(128, 64, 3)])
def test_msra_is_normal_by_fan_out(layer):
    c2_msra_fill(layer)
    assert layer.weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    assert layer.weight.abs().max() > 3 * layer.weight.std()  # has a normal's tails
    assert not layer.bias.any()


@pytest.mark.parametrize("layer, fan_in", [(nn.Conv2d(64, 128, 3), 576), (nn.Linear(576, 99), 576)])
def test_xavier_is_uniform_by_fan_in(layer, fan_in):
    c2_xavier_fill(layer)
    bound = (3 / fan_in) ** 0.5
    assert 0.99 * bound < layer.weight.abs().max() <= bound
    assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not layer.bias.any()


def test_without_bias():
    c2_msra_fill(nn.Conv2d(3, 4, 1, bias=False))
    c2_xavier_fill(nn.Conv2d(3, 4, 1, bias=False))


def test_normal_fill():
    layer = nn.Linear(200, 100)
    normal_fill(layer, std=0.01)
    assert abs(layer.weight.std().item() - 0.01) < 1e-3 and layer.bias.eq(0).all()
