import pytest
import torch

from segdet.config import get_cfg
from segdet.errors import ConfigError
from segdet.modeling import build_backbone, build_model
from segdet.modeling.backbones import BasicStem

FEATURES = ("stem", "res2", "res3", "res4", "res5")


def build(deeplab, **settings):
    small = {"stem_out_channels": 8, "res2_out_channels": 16, "width_per_group": 4, "norm": "BN"}
    section = deeplab.resnet.DeepLabResNetConfig(**small, out_features=FEATURES, **settings)
    return section.build(freeze_at=0)


@pytest.mark.parametrize(
    "dilations, strides, in_res4, in_res5",
    [
        ((1, 1), (4, 4, 8, 16, 32), 1, [1, 2, 4]),
        ((1, 2), (4, 4, 8, 16, 16), 1, [2, 4, 8]),
        ((1, 4), (4, 4, 8, 16, 16), 1, [4, 8, 16]),
        ((2, 4), (4, 4, 8, 8, 8), 2, [4, 8, 16]),
    ],
)
def test_dilation_keeps_the_stride(deeplab, dilations, strides, in_res4, in_res5):
    net = build(deeplab, res4_dilation=dilations[0], res5_dilation=dilations[1])
    assert tuple(shape.stride for shape in net.output_shape().values()) == strides
    for name, features in net(torch.zeros(1, 3, 64, 96)).items():
        stride = net.output_shape()[name].stride
        assert features.shape[-2:] == (64 // stride, 96 // stride), name
    assert {block.conv2.dilation for block in net.res4} == {(in_res4, in_res4)}
    assert [block.conv2.dilation[0] for block in net.res5] == in_res5
    assert {block.conv2.dilation for block in net.res3} == {(1, 1)}


def test_the_stem_is_of_three_convolutions_or_the_usual_one(deeplab):
    shapes = {name: tuple(p.shape) for name, p in build(deeplab).stem.named_parameters()}
    convolutions = {name: shape for name, shape in shapes.items() if len(shape) == 4}
    assert convolutions == {
        "conv1.weight": (4, 3, 3, 3),
        "conv2.weight": (4, 4, 3, 3),
        "conv3.weight": (8, 4, 3, 3),
    }
    assert build(deeplab, stem_type="basic").stem.conv1.kernel_size == (7, 7)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"res4_dilation": 2, "res5_dilation": 2}, "are 2 and 2"),
        ({"res4_dilation": 1, "res5_dilation": 3}, "are 1 and 3"),
        ({"res4_dilation": 3}, "are 3 and 1"),
        ({"stem_type": "deep"}, 'STEM_TYPE must be "basic" or "deeplab", is "deep"'),
        ({"res5_multi_grid": (1, 2)}, r"each block of res5, 3 at DEPTH 50; is \(1, 2\)"),
    ],
)
def test_unusable_values_are_named(deeplab, settings, said):
    with pytest.raises(ConfigError, match=said):
        build(deeplab, **settings)


def test_any_system_may_stand_on_it(deeplab):
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "build_resnet_deeplab_backbone"])
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "ProposalNetwork", "MODEL.DEVICE", "cpu"])
    cfg.merge_from_list(["MODEL.RESNETS.RES2_OUT_CHANNELS", 16, "MODEL.RESNETS.NORM", "BN"])
    cfg.merge_from_list(["MODEL.RESNETS.RES4_DILATION", 2, "MODEL.RESNETS.RES5_DILATION", 4])
    for backbone in (build_model(cfg).backbone, build_backbone(cfg)):
        assert isinstance(backbone.stem, deeplab.resnet.DeepLabStem)
        assert backbone.output_shape()["res4"].channels == 64
        assert backbone.output_shape()["res4"].stride == 8


def test_deeplab_may_stand_on_an_ordinary_trunk(deeplab):
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "DeepLab", "MODEL.DEVICE", "cpu"])
    cfg.merge_from_list(["MODEL.RESNETS.RES5_DILATION", 2, "MODEL.RESNETS.OUT_FEATURES", ["res5"]])
    cfg.merge_from_list(["MODEL.SEM_SEG_HEAD.NAME", "DeepLabV3Head"])
    cfg.merge_from_list(["MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res5"]])
    cfg.merge_from_list(["MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 16])
    cfg.merge_from_list(["MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", 8, "MODEL.SEM_SEG_HEAD.NORM", "BN"])
    backbone = build_model(cfg).backbone
    assert type(backbone.stem) is BasicStem
    assert [block.conv2.dilation[0] for block in backbone.res5] == [2, 2, 2]
    cfg.MODEL.RESNETS.RES5_DILATION = 4
    with pytest.raises(ConfigError, match=r"MODEL.RESNETS.RES5_DILATION must be 1 or 2, is 4"):
        build_model(cfg)
