import pytest
import torch
from torch import nn

from segdet.errors import ConfigError
from segdet.layers import FrozenBatchNorm2d
from segdet.modeling.backbones import (
    BasicBlock,
    BasicStem,
    BottleneckBlock,
    DeformBottleneckBlock,
    ResNet,
    ResNetConfig,
    make_stage,
)
from segdet.modeling.backbones.resnet import BLOCKS_PER_STAGE

ALL = ("stem", "res2", "res3", "res4", "res5")
SMALL = {"depth": 18, "res2_out_channels": 64}


def torchvision_names(resnet: ResNet) -> dict[str, torch.Tensor]:
    """Our state dict under torchvision's names, written independently of the checkpoint code."""
    renamed = {}
    for name, value in resnet.state_dict().items():
        name = name.removeprefix("stem.")
        for level in range(2, 6):
            name = name.replace(f"res{level}.", f"layer{level - 1}.")
        for k in "123":
            name = name.replace(f"conv{k}.norm", f"bn{k}")
        name = name.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
        renamed[name] = value
    return renamed


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnext50_32x4d"])
def test_matches_torchvision(name):
    models = pytest.importorskip("torchvision.models", exc_type=ImportError)
    settings = {
        "resnet18": SMALL,
        "resnet34": {"depth": 34, "res2_out_channels": 64},
        "resnet50": {},
        "resnext50_32x4d": {"num_groups": 32, "width_per_group": 4},
    }[name]
    ours = ResNetConfig(out_features=ALL, norm="BN", stride_in_1x1=False, **settings)
    ours = ours.build(freeze_at=0).double().eval()
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.weight, 0.5, 1.0)
    theirs = getattr(models, name)().double().eval()
    left_over = theirs.load_state_dict(torchvision_names(ours), strict=False)
    assert left_over.missing_keys == ["fc.weight", "fc.bias"]
    assert not left_over.unexpected_keys

    images = torch.randn(1, 3, 70, 45, dtype=torch.float64)
    expected = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
    features = ours(images)
    torch.testing.assert_close(features["stem"], expected)
    for level in range(2, 6):
        expected = getattr(theirs, f"layer{level - 1}")(expected)
        torch.testing.assert_close(features[f"res{level}"], expected)


@pytest.mark.parametrize("depth", BLOCKS_PER_STAGE)
@pytest.mark.parametrize("size", [(64, 64), (65, 33), (1, 1), (47, 250)])
def test_output_shape_tells_the_truth_at_any_size(depth, size):
    narrow = 64 if depth < 50 else 256
    with torch.device("meta"):
        config = ResNetConfig(depth=depth, res2_out_channels=narrow, out_features=ALL)
        backbone = config.build(freeze_at=0)
        features = backbone(torch.zeros(2, 3, *size))
    shapes = backbone.output_shape()
    assert list(features) == list(shapes) == list(ALL)
    for name, shape in shapes.items():
        sides = tuple(-(-side // shape.stride) for side in size)  # odd sizes round up
        assert features[name].shape == (2, shape.channels, *sides)
    assert [s.stride for s in shapes.values()] == [4, 4, 8, 16, 32]
    assert backbone.size_divisibility == 0
    assert backbone.padding_constraints == {}


def test_dilated_res5_stays_at_stride_16():
    with torch.device("meta"):
        config = ResNetConfig(out_features=("res4", "res5"), res5_dilation=2)
        backbone = config.build(freeze_at=0)
        features = backbone(torch.zeros(1, 3, 64, 96))
    assert features["res5"].shape == (1, 2048, 4, 6)
    assert backbone.output_shape()["res5"].stride == 16
    convs = [block.conv2 for block in backbone.res5]
    assert [(c.dilation, c.padding, c.stride) for c in convs] == [((2, 2), (2, 2), (1, 1))] * 3


@pytest.mark.parametrize("in_1x1, strides", [(True, (2, 1)), (False, (1, 2))])
def test_stride_in_1x1(in_1x1, strides):
    with torch.device("meta"):
        block = ResNetConfig(stride_in_1x1=in_1x1).build(freeze_at=0).res3[0]
    assert (block.conv1.stride[0], block.conv2.stride[0]) == strides
    assert block.shortcut.stride[0] == 2


def test_nothing_is_built_above_the_last_output():
    with torch.device("meta"):
        backbone = ResNetConfig(out_features=("res3",)).build(freeze_at=0)
    assert [name for name, _ in backbone.named_children()] == ["stem", "res2", "res3"]
    assert list(backbone.output_shape()) == ["res3"]


@pytest.mark.parametrize("freeze_at", [-1, 0, 1, 2, 3, 5, 9])
def test_freeze_at(freeze_at):
    backbone = ResNetConfig(out_features=ALL, norm="BN", **SMALL).build(freeze_at=freeze_at)
    for index, name in enumerate(ALL):
        part = getattr(backbone, name)
        is_frozen = index < freeze_at
        assert all(p.requires_grad != is_frozen for p in part.parameters())
        norms = [m for m in part.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)]
        assert norms
        assert all(isinstance(norm, FrozenBatchNorm2d) == is_frozen for norm in norms)


def test_frozen_group_norm_stays_group_norm():
    backbone = ResNetConfig(norm="GN", out_features=("res2",), **SMALL).build(freeze_at=2)
    assert isinstance(backbone.stem.conv1.norm, nn.GroupNorm)
    assert not any(p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "GN", ""])
def test_gradients_reach_what_is_not_frozen(norm):
    config = ResNetConfig(out_features=("res2", "res3"), norm=norm, **SMALL)
    backbone = config.build(freeze_at=2)
    sum(f.square().mean() for f in backbone(torch.randn(2, 3, 40, 40)).values()).backward()
    for name, parameter in backbone.named_parameters():
        if name.startswith("res3."):
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name


def test_convolutions_have_a_bias_only_without_a_norm():
    with torch.device("meta"):
        bare = ResNetConfig(norm="", **SMALL).build(freeze_at=0)
        normed = ResNetConfig(norm="GN", **SMALL).build(freeze_at=0)
    assert "stem.conv1.bias" in bare.state_dict()
    assert "stem.conv1.bias" not in normed.state_dict()


def test_convolutions_are_msra_filled():
    torch.manual_seed(0)
    weight = ResNetConfig().build(freeze_at=0).res4[0].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)


def test_make_stage_of_either_block():
    basic = make_stage(BasicBlock, 2, in_channels=8, out_channels=8, stride=1, norm="BN")
    assert [block.shortcut for block in basic] == [None, None]
    settings = {"bottleneck_channels": 4, "norm": "BN"}
    wide = make_stage(BottleneckBlock, 3, in_channels=8, out_channels=16, stride=2, **settings)
    assert [block.stride for block in wide] == [2, 1, 1]
    assert [block.shortcut is not None for block in wide] == [True, False, False]
    assert wide(basic(torch.randn(1, 8, 9, 7))).shape == (1, 16, 5, 4)
    grid = make_stage(
        BottleneckBlock,
        2,
        in_channels=8,
        out_channels=8,
        stride=1,
        dilation_per_block=[2, 4],
        **settings,
    )
    assert [block.conv2.dilation for block in grid] == [(2, 2), (4, 4)]


def test_a_stem_that_pools_without_padding_looks_right_and_down():
    """At 0 stands the largest of the cells 0 to 2, in place of 0 to 1 with a padded border."""
    padded, plain = (BasicStem(1, 1, norm="", pool_padding=n) for n in (1, 0))
    for stem in (padded, plain):
        stem.conv1 = torch.nn.Identity()
    x = torch.arange(42.0).reshape(1, 1, 6, 7)
    assert padded(x)[0, 0, 0].tolist() == [8, 10, 12, 13]
    assert plain(x)[0, 0, 0].tolist() == [16, 18, 20]
    assert plain(x)[0, 0, :, 0].tolist() == [16, 30, 37]  # the last one reaches over the border
    net = ResNetConfig(stem_pool_padding=0).build(freeze_at=0)
    assert isinstance(net.stem, BasicStem) and net.stem.pool_padding == 0


def test_stages_may_come_from_elsewhere():
    stage = make_stage(BasicBlock, 1, in_channels=16, out_channels=24, stride=2, norm="BN")
    backbone = ResNet(BasicStem(3, 16, norm="BN"), [stage], out_features=["res2"])
    assert backbone(torch.randn(1, 3, 32, 32))["res2"].shape == (1, 24, 4, 4)
    with pytest.raises(ValueError, match=r"\['res3'\] are not in \['stem', 'res2'\]"):
        ResNet(BasicStem(3, 16, norm="BN"), [stage], out_features=["res3"])


@pytest.mark.parametrize("modulated", [False, True])
def test_a_fresh_deformable_block_is_a_plain_one(modulated):
    settings = {"bottleneck_channels": 8, "stride": 2, "norm": "BN", "dilation": 2}
    plain = BottleneckBlock(16, 24, num_groups=2, **settings).eval()
    block = DeformBottleneckBlock(
        16, 24, num_groups=2, deform_modulated=modulated, deform_num_groups=4, **settings
    ).eval()
    left_over = block.load_state_dict(plain.state_dict(), strict=False)
    assert left_over.missing_keys == ["conv2_offset.weight", "conv2_offset.bias"]
    assert block.conv2_offset.out_channels == (27 if modulated else 18) * 4
    x = torch.randn(2, 16, 9, 10)
    if modulated:  # the mask starts as sigmoid(0)
        block.conv2.weight.data *= 2
    torch.testing.assert_close(block(x), plain(x))


def test_every_third_block_may_be_deformable():
    settings = {"deform_on_per_stage": (False, True, True, True), "deform_interval": 3}
    with torch.device("meta"):
        resnet = ResNetConfig(out_features=ALL, depth=101, **settings).build(freeze_at=0)
    sites = [
        f"res{level}.{index}"
        for level in range(2, 6)
        for index, block in enumerate(resnet.get_submodule(f"res{level}"))
        if isinstance(block, DeformBottleneckBlock)
    ]
    in_res4 = [f"res4.{index}" for index in range(0, 23, 3)]
    assert sites == ["res3.0", "res3.3", *in_res4, "res5.0"]


def test_deformable_stages_are_those_that_the_config_names():
    names = {"deform_on_per_stage": (False, True, False, True), "deform_modulated": True}
    resnet = ResNetConfig(out_features=ALL, res5_dilation=2, **names).build(freeze_at=0)
    kinds = {f"res{k}": {type(block) for block in getattr(resnet, f"res{k}")} for k in range(2, 6)}
    assert kinds["res2"] == kinds["res4"] == {BottleneckBlock}
    assert kinds["res3"] == kinds["res5"] == {DeformBottleneckBlock}
    features = resnet(torch.randn(1, 3, 64, 96))
    assert features["res5"].shape == (1, 2048, 4, 6)
    with pytest.raises(ConfigError, match="DEFORM_ON_PER_STAGE must not name res5 where heads"):
        ResNetConfig(**names).build_res5(1024)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"depth": 42}, "DEPTH must be one of 18, 26, 34, 50, 101, 152, is 42"),
        ({"out_features": ("res6",)}, "OUT_FEATURES must name some of stem, res2"),
        ({"out_features": ()}, "OUT_FEATURES must name some of"),
        ({"res5_dilation": 4}, "RES5_DILATION must be 1 or 2, is 4"),
        ({"depth": 18}, "DEPTH 18 needs RES2_OUT_CHANNELS = 64, it is 256"),
        ({**SMALL, "res5_dilation": 2}, "DEPTH 18 needs RES5_DILATION = 1, it is 2"),
        ({**SMALL, "num_groups": 32}, "DEPTH 18 needs NUM_GROUPS = 1, it is 32"),
        (
            {**SMALL, "deform_on_per_stage": (False, True, True, True)},
            "DEPTH 18 needs DEFORM_ON_PER_STAGE = False, it is True",
        ),
        (
            {"deform_on_per_stage": (True,)},
            r"DEFORM_ON_PER_STAGE must have a value for each of res2 to res5, is \(True,\)",
        ),
    ],
)
def test_refuses_unusable_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        ResNetConfig(**settings).build(freeze_at=0)


def test_a_deformable_block_with_a_bias_starts_as_half_a_plain_one():
    torch.manual_seed(0)
    section = ResNetConfig(
        out_features=("res2",),
        norm="BN",
        deform_on_per_stage=(True, False, False, False),
        deform_modulated=True,
        deform_bias=True,
    )
    conv = section.build(freeze_at=0).res2[0].conv2
    assert conv.bias.shape == (64,) and conv.bias.abs().max() == 0
    conv.norm = conv.activation = None
    nn.init.normal_(conv.bias)
    x, zeros = torch.randn(1, 64, 9, 9), torch.zeros(1, 18, 9, 9)
    half = torch.full((1, 9, 9, 9), 0.5)
    plain = nn.functional.conv2d(x, conv.weight, padding=1)
    expected = plain / 2 + conv.bias[:, None, None]
    torch.testing.assert_close(conv(x, zeros, half), expected, atol=1e-4, rtol=1e-4)


def test_version_1_has_no_bias():
    with pytest.raises(ConfigError, match="DEFORM_BIAS needs DEFORM_MODULATED"):
        ResNetConfig(deform_bias=True)
