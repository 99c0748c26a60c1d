import pytest
import torch
from torch import nn

from segdet.errors import ConfigError
from segdet.layers import FrozenBatchNorm2d
from segdet.modeling.backbones import MobileNetV2


def test_matches_torchvision():
    models = pytest.importorskip("torchvision.models", exc_type=ImportError)
    theirs = models.mobilenet_v2().double().eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    ours = MobileNetV2().double()
    # Both lay out the same tensors in the same order, so this needs no names.
    values = [v for k, v in theirs.state_dict().items() if not k.endswith("batches_tracked")]
    ours.load_state_dict(dict(zip(ours.state_dict(), values, strict=False)))

    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    features = ours(x)
    last = {3: "res2", 6: "res3", 13: "res4", 17: "res5"}
    for index, layer in enumerate(theirs.features[:18]):
        x = layer(x)
        if index in last:
            torch.testing.assert_close(features[last[index]], x)


@pytest.mark.parametrize("size", [(64, 64), (65, 33), (1, 1), (47, 250)])
def test_output_shape_tells_the_truth_at_any_size(size):
    with torch.device("meta"):
        backbone = MobileNetV2()
        features = backbone(torch.zeros(2, 3, *size))
    shapes = backbone.output_shape()
    assert list(features) == list(shapes) == ["res2", "res3", "res4", "res5"]
    assert [s.stride for s in shapes.values()] == [4, 8, 16, 32]
    for name, shape in shapes.items():
        sides = tuple(-(-side // shape.stride) for side in size)
        assert features[name].shape == (2, shape.channels, *sides)
    assert backbone.size_divisibility == 0


def test_nothing_is_built_above_the_last_output():
    with torch.device("meta"):
        backbone = MobileNetV2(out_features=["res3"])
    assert len(backbone.features) == 7
    assert list(backbone.output_shape()) == ["res3"]


@pytest.mark.parametrize(
    "freeze_at, frozen_layers", [(-1, 0), (0, 0), (1, 2), (2, 4), (3, 7), (4, 14), (5, 18)]
)
def test_freeze_at(freeze_at, frozen_layers):
    backbone = MobileNetV2(norm="BN", freeze_at=freeze_at)
    for index, layer in enumerate(backbone.features):
        is_frozen = index < frozen_layers
        assert all(p.requires_grad != is_frozen for p in layer.parameters())
        norms = [m for m in layer.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)]
        assert norms
        assert all(isinstance(norm, FrozenBatchNorm2d) == is_frozen for norm in norms)


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_gradients_reach_what_is_not_frozen(norm):
    backbone = MobileNetV2(out_features=["res2", "res3"], norm=norm, freeze_at=2)
    sum(f.square().mean() for f in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
    for name, parameter in backbone.named_parameters():
        trains = int(name.split(".")[1]) > 3
        assert (parameter.grad is not None) == trains, name


def test_norms_are_frozen_by_default():
    norms = [m for m in MobileNetV2().modules() if isinstance(m, FrozenBatchNorm2d)]
    assert len(norms) == 1 + 2 + 16 * 3


def test_refuses_unusable_settings():
    with pytest.raises(ConfigError, match="must name some of res2, res3, res4, res5"):
        MobileNetV2(out_features=["stem"])
    with pytest.raises(ConfigError, match="GN makes 32 groups and cannot divide 16 channels"):
        MobileNetV2(norm="GN")
