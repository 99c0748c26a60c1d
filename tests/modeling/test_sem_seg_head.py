import math

import pytest
import torch
import torch.nn.functional as F

from segdet.config import get_cfg
from segdet.errors import ConfigError, DataError
from segdet.layers import ShapeSpec
from segdet.modeling import build_sem_seg_head
from segdet.modeling.sem_seg_head import SemSegFPNHead, SemSegHeadConfig, sem_seg_loss

SHAPES = {f"p{level}": ShapeSpec(channels=6, stride=2**level) for level in range(2, 6)}
K = 3


def a_head(**settings):
    values = {"num_classes": K, "convs_dim": 8, "norm": "", **settings}
    return SemSegHeadConfig(**values).build(SHAPES)


def maps(height=64, width=96, batch=2):
    return {
        name: torch.randn(batch, 6, height // shape.stride, width // shape.stride)
        for name, shape in SHAPES.items()
    }


def test_names_shapes_and_order_do_not_depend_on_the_configs_order():
    straight = a_head(norm="GN", convs_dim=32)
    mixed = a_head(norm="GN", convs_dim=32, in_features=("p4", "p2", "p5", "p3"))
    table = [(name, list(p.shape)) for name, p in straight.state_dict().items()]
    assert table == [(name, list(p.shape)) for name, p in mixed.state_dict().items()]
    assert [(name, shape) for name, shape in table if "norm" not in name] == [
        ("p2.0.weight", [32, 6, 3, 3]),
        ("p3.0.weight", [32, 6, 3, 3]),
        ("p4.0.weight", [32, 6, 3, 3]),
        ("p4.2.weight", [32, 32, 3, 3]),
        ("p5.0.weight", [32, 6, 3, 3]),
        ("p5.2.weight", [32, 32, 3, 3]),
        ("p5.4.weight", [32, 32, 3, 3]),
        ("predictor.weight", [K, 32, 1, 1]),
        ("predictor.bias", [K]),
    ]
    mixed.load_state_dict(straight.state_dict())
    features = maps()
    assert torch.equal(mixed.layers(features), straight.layers(features))


def test_without_a_norm_convolutions_have_biases():
    assert a_head().state_dict()["p5.4.bias"].shape == (8,)


def test_layers_match_definition():
    head, features = a_head(), maps()
    weights = head.state_dict()

    def conv(x, name):
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1).relu()

    def double(x):
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

    total = conv(features["p2"], "p2.0") + double(conv(features["p3"], "p3.0"))
    total = total + double(conv(double(conv(features["p4"], "p4.0")), "p4.2"))
    p5 = double(conv(double(conv(features["p5"], "p5.0")), "p5.2"))
    total = total + double(conv(p5, "p5.4"))
    expected = F.conv2d(total, weights["predictor.weight"], weights["predictor.bias"])
    torch.testing.assert_close(head.layers(features), expected)
    upsampled = F.interpolate(expected, scale_factor=4, mode="bilinear", align_corners=False)
    torch.testing.assert_close(head.predict(features), upsampled)
    assert upsampled.shape == (2, K, 64, 96)


def test_convolutions_and_predictor_start_as_caffe2s_msra_fill():
    head = a_head(convs_dim=64, num_classes=50)
    for name in ("p2.0", "p5.4", "predictor"):
        layer = head.get_submodule(name)
        fan_out = layer.out_channels * layer.kernel_size[0] ** 2
        assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
        assert (layer.bias == 0).all()


def test_a_coarser_common_stride():
    head = a_head(common_stride=8, in_features=("p3", "p4", "p5"))
    assert [name for name in head.state_dict() if name.endswith("weight")] == [
        *("p3.0.weight", "p4.0.weight", "p5.0.weight", "p5.2.weight", "predictor.weight")
    ]
    assert head.layers(maps()).shape == (2, K, 8, 12)
    assert head.predict(maps()).shape == (2, K, 64, 96)


def test_loss_matches_definition():
    logits, labels = torch.randn(2, K, 5, 7), torch.randint(0, K, (2, 5, 7))
    labels[0, :2], labels[1, 3, 4] = 255, 255
    terms = [
        -logits[b, :, y, x].log_softmax(0)[labels[b, y, x]]
        for b, y, x in (labels != 255).nonzero().tolist()
    ]
    expected = torch.stack(terms).mean()
    torch.testing.assert_close(sem_seg_loss(logits, labels, 255), expected)


def test_nothing_labelled_is_zero_and_connected():
    logits = torch.randn(1, K, 4, 4, requires_grad=True)
    loss = sem_seg_loss(logits, torch.full((1, 4, 4), 255), 255)
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and (logits.grad == 0).all()


def test_the_loss_is_taken_at_the_images_size_and_weighted():
    head, features = a_head(loss_weight=0.5), maps()
    labels = torch.randint(0, K, (2, 64, 96))
    expected = 0.5 * sem_seg_loss(head.predict(features), labels, 255)
    torch.testing.assert_close(head(features, labels)["loss_sem_seg"], expected)
    # A backbone that takes any size gives maps that reach over the image.
    cut = 0.5 * sem_seg_loss(head.predict(features)[..., :61, :94], labels[:, :61, :94], 255)
    ours = head.losses(head.layers(features), labels[:, :61, :94])["loss_sem_seg"]
    torch.testing.assert_close(ours, cut)


def test_losses_of_half_precision_logits_are_computed_in_float32():
    logits, labels = torch.full((1, K, 16, 16), 300.0), torch.zeros(1, 64, 64, dtype=torch.int64)
    loss = a_head().losses(logits.bfloat16(), labels)["loss_sem_seg"]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log(K), rel=1e-5)


def test_label_maps_that_do_not_fit_are_refused():
    head, labels = a_head(), torch.tensor([[0, 1, 2], [255, 255, 0]])
    head.check_labels(labels, (2, 3))
    with pytest.raises(ValueError, match=r"of shape \(2, 3\), the image of \(3, 2\)"):
        head.check_labels(labels, (3, 2))
    labels[0, 0], labels[0, 1] = 53, -1
    with pytest.raises(DataError, match=r"labels \[-1, 53\]; they .*NUM_CLASSES, 3, or IGNORE"):
        head.check_labels(labels, (2, 3))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"name": "Head"}, "NAME 'Head' is unknown; known: SemSegFPNHead"),
        ({"in_features": ("p2", "p9")}, "IN_FEATURES: no feature 'p9'"),
        ({"common_stride": 8}, "COMMON_STRIDE 8 cannot be reached from feature 'p2' of stride 4"),
        ({"common_stride": 3}, "COMMON_STRIDE 3 cannot be reached from feature 'p2' of stride 4"),
        ({"norm": "GN", "convs_dim": 40}, "32"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        a_head(**settings)


def test_built_by_name_from_a_config():
    cfg = get_cfg()
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 7
    head = build_sem_seg_head(cfg, SHAPES)
    assert isinstance(head, SemSegFPNHead)
    assert head.predictor.weight.shape == (7, 128, 1, 1) and head.loss_weight == 1.0
