import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segdet.errors import ConfigError
from segdet.layers import FrozenBatchNorm2d
from segdet.modeling.backbones import VoVNetConfig
from segdet.modeling.backbones.vovnet import (
    BODIES,
    DeformLayer,
    EffectiveSqueezeExcitation,
    OSABlock,
    conv_layer,
    depthwise_layer,
    make_stage,
)

PARAMETERS = {  # without norms, which are frozen; counted from the original
    "V-19-slim-dw-eSE": 1_379_152,
    "V-19-slim-eSE": 2_647_984,
    "V-19-eSE": 10_170_560,
    "V-39-eSE": 25_163_712,
    "V-57-eSE": 41_423_296,
    "V-99-eSE": 69_469_376,
}


def on_meta(**settings):
    with torch.device("meta"):
        return VoVNetConfig(**settings).build(freeze_at=0)


@pytest.mark.parametrize("body", PARAMETERS)
def test_parameters_are_as_many_as_the_originals(body):
    assert sum(p.numel() for p in on_meta(conv_body=body).parameters()) == PARAMETERS[body]


@pytest.mark.parametrize("body", BODIES)
def test_output_shape_tells_the_truth(body):
    backbone = on_meta(conv_body=body, out_features=("stem", "stage2", "stage3", "stage5"))
    with torch.device("meta"):
        features = backbone(torch.zeros(2, 3, 64, 96))
    shapes = backbone.output_shape()
    assert list(features) == list(shapes) == ["stem", "stage2", "stage3", "stage5"]
    assert [shape.stride for shape in shapes.values()] == [4, 4, 8, 32]
    for name, shape in shapes.items():
        size = 64 // shape.stride, 96 // shape.stride
        assert features[name].shape == (2, shape.channels, *size)
    assert backbone.size_divisibility == 0


def test_channels_are_weighed_by_a_hard_sigmoid():
    attention = EffectiveSqueezeExcitation(4)
    nn.init.zeros_(attention.fc.weight)
    attention.fc.bias.data = torch.tensor([-3.0, 0, 1.5, 3])
    weights = attention(torch.ones(1, 4, 2, 2))[0, :, 0, 0]
    assert weights.tolist() == pytest.approx([0, 0.5, 0.75, 1])


@pytest.mark.parametrize("layer", [conv_layer, depthwise_layer])
def test_a_block_is_its_definition(layer):
    settings = {"width": 6, "num_layers": 3, "layer": layer, "norm": "FrozenBN"}
    block = OSABlock("OSA", 4, 5, adds_input=False, **settings).double()
    x = torch.randn(2, 4, 7, 8, dtype=torch.float64)
    chain, outputs = x, [x]
    if layer is depthwise_layer:
        chain = F.relu(F.conv2d(chain, block.conv_reduction[0].weight))
    for one in block.layers:
        for conv in one:
            if isinstance(conv, nn.Conv2d):
                padding = conv.kernel_size[0] // 2
                chain = F.conv2d(chain, conv.weight, padding=padding, groups=conv.groups)
        chain = chain.relu()
        outputs.append(chain)
    joined = F.relu(F.conv2d(torch.cat(outputs, 1), block.concat[0].weight))
    weights = (F.linear(joined.mean((2, 3)), block.ese.fc.weight[:, :, 0, 0]) + 3).clamp(0, 6) / 6
    expected = joined * weights[:, :, None, None]
    close = {"rtol": 1e-4, "atol": 1e-4}  # the norms' epsilon
    torch.testing.assert_close(block(x), expected, **close)


def test_the_input_is_added_from_the_second_block_on():
    stage = make_stage(
        3, 4, 6, width=4, num_blocks=3, num_layers=2, layer=conv_layer, norm="FrozenBN"
    )
    pooling, *blocks = stage
    for block in blocks:
        nn.init.zeros_(block.concat[0].weight)
    x = torch.rand(1, 6, 5, 5)
    assert not blocks[0](torch.rand(1, 4, 5, 5)).any()
    assert torch.equal(blocks[1](x), x) and torch.equal(blocks[2](x), x)
    assert all(isinstance(block.ese, EffectiveSqueezeExcitation) for block in blocks)
    sides = {side: pooling(torch.zeros(1, 1, side, side)).shape[-1] for side in (200, 101, 99)}
    assert sides == {200: 100, 101: 50, 99: 49}


def test_a_depthwise_chain_of_its_own_width_needs_no_reduction():
    settings = {"num_layers": 2, "layer": depthwise_layer, "norm": "FrozenBN", "adds_input": True}
    assert OSABlock("OSA", 6, 6, width=6, **settings).conv_reduction is None
    assert OSABlock("OSA", 4, 4, width=6, **settings).conv_reduction is not None


@pytest.mark.parametrize("modulated", [True, False])
def test_a_deformable_layer_starts_as_the_plain_one(modulated):
    """Its offsets are 0, and the weights of its samples a half."""
    layer = DeformLayer("a", 4, 6, norm="FrozenBN", modulated=modulated, num_groups=2)
    plain = conv_layer("a", 4, 6, norm="FrozenBN")
    missing = layer.load_state_dict(plain.state_dict(), strict=False)
    assert missing.missing_keys == ["a/conv_offset.weight", "a/conv_offset.bias"]
    assert layer.get_parameter("a/conv_offset.weight").shape[0] == 2 * (27 if modulated else 18)
    x = torch.randn(2, 4, 9, 10)
    torch.testing.assert_close(layer(x), plain(x / 2 if modulated else x), rtol=1e-4, atol=1e-5)


def test_deformable_stages_take_plain_weights():
    settings = {"stage_with_dcn": (False, False, True, True), "with_modulated_dcn": True}
    plain, deformable = on_meta(conv_body="V-19-eSE"), on_meta(conv_body="V-19-eSE", **settings)
    extra = [name for name in deformable.state_dict() if name not in plain.state_dict()]
    assert len(extra) == 2 * 2 * 3 and all("/conv_offset." in name for name in extra)
    assert {name.split(".")[0] for name in extra} == {"stage4", "stage5"}
    assert not set(plain.state_dict()) - set(deformable.state_dict())


def test_gradients_reach_every_parameter_of_a_deformable_body():
    config = VoVNetConfig(
        conv_body="V-19-slim-eSE", stage_with_dcn=(True,) * 4, with_modulated_dcn=True
    )
    backbone = config.build(freeze_at=0)
    sum(f.square().mean() for f in backbone(torch.randn(1, 3, 64, 64)).values()).backward()
    without = [n for n, p in backbone.named_parameters() if p.grad is None]
    assert not without


@pytest.mark.parametrize("freeze_at, frozen", [(-1, 0), (0, 0), (1, 1), (2, 2), (5, 5)])
def test_freeze_at(freeze_at, frozen):
    backbone = VoVNetConfig(conv_body="V-19-slim-dw-eSE", norm="BN").build(freeze_at=freeze_at)
    for index, part in enumerate(("stem", "stage2", "stage3", "stage4", "stage5")):
        module = backbone.get_submodule(part)
        assert all(p.requires_grad == (index >= frozen) for p in module.parameters())
        norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)]
        assert norms
        assert all(isinstance(norm, FrozenBatchNorm2d) == (index < frozen) for norm in norms)


def test_nothing_is_built_above_the_last_output():
    backbone = on_meta(out_features=("stage3",))
    assert not hasattr(backbone, "stage4") and list(backbone.output_shape()) == ["stage3"]


def test_without_norms_convolutions_have_biases():
    names = on_meta(conv_body="V-19-slim-eSE", norm="").state_dict()
    assert "stem.stem_1/conv.bias" in names and "stem.stem_1/norm.weight" not in names


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"conv_body": "V-40"}, "CONV_BODY 'V-40' is unknown; known: V-19-slim-dw-eSE, V-19-dw"),
        ({"out_features": ("res2",)}, r"OUT_FEATURES must name some of stem, stage2, .* \('res2',"),
        ({"stage_with_dcn": (True,)}, "STAGE_WITH_DCN must have a value for each of stage2"),
        (
            {"conv_body": "V-19-dw-eSE", "stage_with_dcn": (True,) * 4},
            "STAGE_WITH_DCN must be all False for V-19-dw-eSE, whose convolutions are depthwise",
        ),
    ],
)
def test_refuses_unusable_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        VoVNetConfig(**settings)
