import pytest
import torch
import torch.nn.functional as F

from segdet.errors import ConfigError
from segdet.layers import ShapeSpec

SHAPES = {
    "res2": ShapeSpec(channels=6, stride=4),
    "res3": ShapeSpec(channels=8, stride=8),
    "res5": ShapeSpec(channels=10, stride=16),
}
V3 = {"name": "DeepLabV3Head", "in_features": ("res5",), "common_stride": 16}
V3_PLUS = {"name": "DeepLabV3PlusHead", "in_features": ("res2", "res5"), "common_stride": 4}


@pytest.fixture
def build(deeplab):
    def build(**settings):
        small = {"aspp_channels": 4, "convs_dim": 5, "num_classes": 3, "norm": "BN"}
        return deeplab.DeepLabHeadConfig(**(small | settings)).build(SHAPES)

    return build


def features() -> dict[str, torch.Tensor]:
    """Of two images of 32 by 64 pixels."""
    return {
        name: torch.randn(2, shape.channels, 32 // shape.stride, 64 // shape.stride)
        for name, shape in SHAPES.items()
    }


def test_v3_classifies_what_aspp_gives(build):
    head, maps = build(**V3).eval(), features()
    logits = head.layers(maps)
    assert logits.shape == (2, 3, 2, 4)
    torch.testing.assert_close(logits, head.predictor(head.aspp(maps["res5"])))
    assert head.predict(maps).shape == (2, 3, 32, 64)


@pytest.mark.parametrize("separable", [False, True])
def test_v3_plus_adds_finer_maps_one_after_the_other(build, separable):
    head = build(
        **(V3_PLUS | {"in_features": ("res5", "res2", "res3")}),
        project_features=("res3", "res2"),
        project_channels=(7, 2),
        use_depthwise_separable_conv=separable,
    ).eval()
    maps = features()
    x = head.decoder.res5.project_conv(maps["res5"])
    for name, channels in (("res3", 7), ("res2", 2)):
        stage = getattr(head.decoder, name)
        fine = stage.project_conv(maps[name])
        assert fine.shape[1] == channels
        x = F.interpolate(x, size=fine.shape[-2:], mode="bilinear")
        x = stage.fuse_conv(torch.cat([fine, x], dim=1))
    torch.testing.assert_close(head.layers(maps), head.predictor(x))
    assert list(head.decoder) == ["res2", "res3", "res5"]
    kernel = head.decoder.res2.fuse_conv.depthwise.kernel_size if separable else (5, 5)
    assert kernel == (5, 5)


def test_training_on_crops_pools_over_windows_of_their_size(build):
    crop = {"crop_enabled": True, "crop_type": "absolute", "crop_size": (32.0, 48.0)}
    assert build(**V3, **crop).aspp.convs[-1][0].size == (2, 3)
    assert build(**V3).aspp.convs[-1][0].size is None


@pytest.mark.parametrize(
    "settings, said",
    [
        (V3 | {"in_features": ("res4",)}, "IN_FEATURES: no feature 'res4'"),
        (V3 | {"in_features": ("res2", "res5"), "common_stride": 4}, "must be one map"),
        (V3 | {"common_stride": 4}, "COMMON_STRIDE must be 16, the stride of the finest"),
        (V3_PLUS | {"project_features": ("res3",)}, r"PROJECT_FEATURES must be IN_FEATURES but"),
        (V3_PLUS | {"project_channels": (1, 2)}, r"are \('res2',\) and \(1, 2\)"),
        (V3 | {"loss_type": "focal"}, "LOSS_TYPE must be one of cross_entropy, hard_pixel_mi"),
        (V3 | {"crop_enabled": True, "crop_type": "relative"}, 'TYPE must be "absolute", is "rel'),
        (
            V3 | {"crop_enabled": True, "crop_size": (32.0, 40.0)},
            "multiples of the map's stride 16",
        ),
    ],
)
def test_unusable_values_are_named(build, settings, said):
    with pytest.raises(ConfigError, match=said):
        build(**settings)


def test_the_hardest_fifth_of_all_pixels_counts(deeplab):
    logits = torch.randn(2, 3, 6, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 3, (2, 6, 5))
    labels[0, :5] = 255
    per_pixel = [
        -logits[b, :, y, x].log_softmax(0)[labels[b, y, x]].item() if labels[b, y, x] < 255 else 0.0
        for b in range(2)
        for y in range(6)
        for x in range(5)
    ]
    expected = sum(sorted(per_pixel)[-12:]) / 12  # a fifth of 60, the ignored ones counted
    found = deeplab.sem_seg_head.hard_pixel_loss(logits, labels, 255)
    assert found.item() == pytest.approx(expected)
    nothing = deeplab.sem_seg_head.hard_pixel_loss(logits, torch.full_like(labels, 255), 255)
    nothing.backward()
    assert nothing.item() == 0 and logits.grad.abs().sum() == 0


@pytest.mark.parametrize("loss_type", ["cross_entropy", "hard_pixel_mining"])
def test_the_loss_is_of_the_named_type_and_weighted(deeplab, build, loss_type):
    head = build(**V3, loss_type=loss_type, loss_weight=2.0)
    logits, labels = torch.randn(1, 3, 2, 3), torch.randint(0, 3, (1, 30, 40))  # 30 is not 2 * 16
    (found,) = head.losses(logits, labels).values()
    whole = F.interpolate(logits, scale_factor=16, mode="bilinear")[..., :30, :40]
    loss = F.cross_entropy(whole, labels, reduction="none").flatten()
    expected = loss.mean() if loss_type == "cross_entropy" else loss.sort().values[-240:].mean()
    torch.testing.assert_close(found, 2 * expected)
