import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segdet.errors import ConfigError
from segdet.layers import ShapeSpec
from segdet.modeling.backbones import (
    FPN,
    Backbone,
    FPNConfig,
    LastLevelMaxPool,
    LastLevelP6P7,
)

WIDTHS = {"res2": 4, "res3": 6, "res4": 8, "res5": 10}


class Pooled(Backbone):
    """Maps that are averages of the image: a backbone whose output is known in advance."""

    def forward(self, images):
        return {
            name: F.avg_pool2d(images, 2**level, ceil_mode=True).repeat(1, width, 1, 1)
            for level, (name, width) in enumerate(WIDTHS.items(), start=2)
        }

    def output_shape(self):
        return {
            name: ShapeSpec(channels=width, stride=2**level)
            for level, (name, width) in enumerate(WIDTHS.items(), start=2)
        }


def pyramid_by_definition(fpn: FPN, images: torch.Tensor, share: float) -> dict:
    maps = fpn.bottom_up(images)
    merged = {5: fpn.fpn_lateral5(maps["res5"])}
    for level in (4, 3, 2):
        above = merged[level + 1].repeat_interleave(2, 2).repeat_interleave(2, 3)
        lateral = getattr(fpn, f"fpn_lateral{level}")(maps[f"res{level}"])
        merged[level] = share * (lateral + above)
    return {f"p{k}": getattr(fpn, f"fpn_output{k}")(merged[k]) for k in (2, 3, 4, 5)}


@pytest.mark.parametrize("fuse_type, share", [("sum", 1.0), ("avg", 0.5)])
@pytest.mark.parametrize("norm", ["", "GN"])
def test_matches_definition(fuse_type, share, norm):
    config = FPNConfig(in_features=tuple(WIDTHS), out_channels=32, fuse_type=fuse_type, norm=norm)
    fpn = config.build(Pooled(), LastLevelMaxPool())
    images = torch.randn(2, 1, 64, 96)
    features = fpn(images)
    expected = pyramid_by_definition(fpn, images, share)
    expected["p6"] = expected["p5"][:, :, ::2, ::2]  # plain subsampling
    assert list(features) == list(expected) == list(fpn.output_shape())
    for name, value in expected.items():
        torch.testing.assert_close(features[name], value)


@pytest.mark.parametrize("source, channels", [("res5", 10), ("p5", 32)])
def test_p6_and_p7_of_one_stage_detectors(source, channels):
    config = FPNConfig(in_features=("res3", "res4", "res5"), out_channels=32)
    top = LastLevelP6P7(channels, 32, source)
    fpn = config.build(Pooled(), top)
    images = torch.randn(1, 1, 96, 64)
    features = fpn(images)
    x = fpn.bottom_up(images)["res5"] if source == "res5" else features["p5"]
    torch.testing.assert_close(features["p6"], top.p6(x))
    torch.testing.assert_close(features["p7"], top.p7(features["p6"].clamp(min=0)))
    shapes = fpn.output_shape()
    assert list(features) == list(shapes) == ["p3", "p4", "p5", "p6", "p7"]
    assert [s.stride for s in shapes.values()] == [8, 16, 32, 64, 128]
    assert {s.channels for s in shapes.values()} == {32}


def test_size_divisibility_is_that_of_the_coarsest_input():
    assert FPN(Pooled(), ["res2", "res3", "res4", "res5"], 8).size_divisibility == 32
    assert FPN(Pooled(), ["res2", "res3", "res4"], 8).size_divisibility == 16


def test_padding_constraints_are_the_backbone_s():
    class Square(Pooled):
        @property
        def padding_constraints(self):
            return {"square_size": 1024}

    assert FPN(Square(), ["res2"], 8).padding_constraints == {"square_size": 1024}


def test_images_of_other_sizes_are_named():
    fpn = FPN(Pooled(), list(WIDTHS), 8)
    with pytest.raises(ValueError, match=r"multiples of 32.*size_divisibility"):
        fpn(torch.randn(1, 1, 64, 72))


def test_convolutions_are_xavier_filled():
    torch.manual_seed(0)
    fpn = FPN(Pooled(), ["res2"], 256)
    bound = (3 / (256 * 9)) ** 0.5
    weight = fpn.fpn_output2.weight
    assert bound * 0.99 < weight.abs().max().item() <= bound
    assert not fpn.fpn_output2.bias.any()
    assert isinstance(FPN(Pooled(), ["res2"], 32, norm="GN").fpn_lateral2.norm, nn.GroupNorm)


@pytest.mark.parametrize(
    "in_features, message",
    [
        ((), "must name some of the backbone's maps, res2, res3, res4, res5"),
        (("res3", "res6"), "must name some of the backbone's maps"),
        (("res2", "res4"), r"must double in stride.*res2, res4 have strides \[4, 16\]"),
        (("res2", "res3", "res4"), "p5 is made from p5, which is not among p2, p3, p4, res2"),
    ],
)
def test_refuses_unusable_inputs(in_features, message):
    with pytest.raises(ConfigError, match=message):
        FPNConfig(in_features=in_features).build(Pooled(), LastLevelMaxPool())


def test_refuses_unknown_fuse_type():
    with pytest.raises(ConfigError, match="FUSE_TYPE must be sum or avg, is 'max'"):
        FPNConfig(fuse_type="max")
