import pytest
import torch
from torch import nn

from segdet.errors import ConfigError
from segdet.layers import FrozenBatchNorm2d
from segdet.modeling.backbones import DarkNet


@pytest.mark.parametrize("size", [(64, 64), (65, 33), (47, 250)])
def test_output_shape_tells_the_truth_at_any_size(size):
    with torch.device("meta"):
        backbone = DarkNet(out_features=["res2", "res3", "res4", "res5"])
        features = backbone(torch.zeros(2, 3, *size))
    shapes = backbone.output_shape()
    assert list(features) == list(shapes) == ["res2", "res3", "res4", "res5"]
    assert [(s.channels, s.stride) for s in shapes.values()] == [
        (128, 4),
        (256, 8),
        (512, 16),
        (1024, 32),
    ]
    for name, shape in shapes.items():
        sides = tuple(-(-side // shape.stride) for side in size)
        assert features[name].shape == (2, shape.channels, *sides)


def test_it_has_53_layers_with_the_classifier():
    with torch.device("meta"):
        backbone = DarkNet()
    assert sum(isinstance(m, nn.Conv2d) for m in backbone.modules()) == 52
    assert sum(p.numel() for p in backbone.parameters()) == 40_584_928  # Darknet-53's, without it


def test_a_block_adds_its_input():
    torch.manual_seed(0)
    backbone = DarkNet(out_features=["res2"], norm="").double()
    assert len(backbone.layers) == 2, "nothing is built above the last map"
    block, x = backbone.layers[1][2], torch.randn(1, 128, 3, 3, dtype=torch.float64)
    inner = nn.functional.leaky_relu(block.conv1[0](x), 0.1)
    expected = x + nn.functional.leaky_relu(block.conv2[0](inner), 0.1)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("freeze_at, stages", [(0, -1), (1, 1), (2, 2), (3, 3)])
def test_freezing(freeze_at, stages):
    with torch.device("meta"):
        backbone = DarkNet(freeze_at=freeze_at)
    frozen = [not any(p.requires_grad for p in layer.parameters()) for layer in backbone.layers]
    assert frozen == [index < stages for index in range(5)]
    assert isinstance(backbone._preconv[1], FrozenBatchNorm2d) == (freeze_at > 0)


def test_unknown_maps_are_refused():
    with pytest.raises(ConfigError, match="OUT_FEATURES must name some of res2, res3"):
        DarkNet(out_features=["stem"])
