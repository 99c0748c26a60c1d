import gzip
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segdet.errors import ConfigError
from segdet.layers import FrozenBatchNorm2d
from segdet.modeling.backbones import DLA, DLAConfig

ALL = tuple(f"level{k}" for k in range(6))


def dla_by_definition(state: dict[str, torch.Tensor], x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The network written out, from its weights alone."""

    def conv_norm(name: str, norm: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight = state[f"{name}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        statistics = (state[f"{norm}.{key}"] for key in ("running_mean", "running_var"))
        return F.batch_norm(x, *statistics, state[f"{norm}.weight"], state[f"{norm}.bias"])

    def block(at: str, x: torch.Tensor, shortcut: torch.Tensor, stride: int = 1) -> torch.Tensor:
        out = conv_norm(f"{at}.conv1", f"{at}.bn1", x, stride).relu()
        return (conv_norm(f"{at}.conv2", f"{at}.bn2", out) + shortcut).relu()

    def root(at: str, *maps: torch.Tensor) -> torch.Tensor:
        return conv_norm(f"{at}.root.conv", f"{at}.root.bn", torch.cat(maps, 1)).relu()

    def first_tree(at: str, x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        shortcut = conv_norm(f"{at}.project.0", f"{at}.project.1", F.max_pool2d(x, 2))
        one = block(f"{at}.tree1", x, shortcut, stride=2)
        return root(at, block(f"{at}.tree2", one, one), one, *others)

    def deep_tree(at: str, x: torch.Tensor) -> torch.Tensor:
        first = first_tree(f"{at}.tree1", x)
        one = block(f"{at}.tree2.tree1", first, first)
        two = block(f"{at}.tree2.tree2", one, one)
        return root(f"{at}.tree2", two, one, F.max_pool2d(x, 2), first)

    x = conv_norm("base_layer.0", "base_layer.1", x).relu()
    maps = {"level0": conv_norm("level0.0", "level0.1", x).relu()}
    maps["level1"] = conv_norm("level1.0", "level1.1", maps["level0"], stride=2).relu()
    maps["level2"] = first_tree("level2", maps["level1"])
    maps["level3"] = deep_tree("level3", maps["level2"])
    maps["level4"] = deep_tree("level4", maps["level3"])
    maps["level5"] = first_tree("level5", maps["level4"], F.max_pool2d(maps["level4"], 2))
    return maps


def test_matches_its_definition():
    torch.manual_seed(0)
    dla = DLA(out_features=ALL, norm="BN").double().eval()
    for module in dla.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.weight, 0.5, 1.0)
    images = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    found, expected = dla(images), dla_by_definition(dla.state_dict(), images)
    assert list(found) == list(expected) == list(dla.output_shape())
    for name, shape in dla.output_shape().items():
        torch.testing.assert_close(found[name], expected[name])
        assert found[name].shape == (1, shape.channels, 64 // shape.stride, 96 // shape.stride)


def test_has_the_names_and_shapes_of_official_weights(shared_configs):
    table = json.loads(gzip.decompress((shared_configs / "adelaidet.json.gz").read_bytes()))
    prefix = "backbone.bottom_up."
    official = [
        [name.removeprefix(prefix), shape]
        for name, shape in table["BlendMask/DLA_34_syncbn_4x.yaml"]["state_dict"]
        if name.startswith(prefix)
    ]
    with torch.device("meta"):
        dla = DLAConfig(norm="SyncBN").build(["level3"], freeze_at=-1, input_channels=3)
    assert [[name, list(value.shape)] for name, value in dla.state_dict().items()] == official


def test_every_parameter_gets_a_gradient():
    """Also of `level3.project`, which nothing uses: workers wait for all of them."""
    dla = DLA(norm="BN")
    sum(one.mean() for one in dla(torch.randn(2, 3, 64, 64)).values()).backward()
    assert all(p.grad is not None for p in dla.parameters())
    assert not dla.level3.project[0].weight.grad.any()


@pytest.mark.parametrize("freeze_at, first_trained", [(-1, 0), (0, 0), (2, 2), (4, 4)])
def test_freeze_at(freeze_at, first_trained):
    dla = DLA(norm="BN", freeze_at=freeze_at)
    for index, part in enumerate(dla.children()):
        is_frozen = index < first_trained
        assert all(p.requires_grad != is_frozen for p in part.parameters())
        norms = [m for m in part.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)]
        assert norms and all(isinstance(m, FrozenBatchNorm2d) == is_frozen for m in norms)


def test_refuses_unusable_settings():
    with pytest.raises(ConfigError, match=r"DLA's maps are level0, .* names \('res3',\)"):
        DLA(out_features=["res3"])
    with pytest.raises(ConfigError, match="CONV_BODY must be DLA34, is 'DLA60'"):
        DLAConfig(conv_body="DLA60")
