import copy
import math

import pytest
import torch
from torch import nn

from segdet.layers import Conv2d
from segdet.modeling.fcos_head import (
    BATCH_NORMS,
    FCOSHead,
    NormOfEachLevel,
    OffsetDeformConv,
    TopLayer,
)

SIZES = [(8, 10), (4, 5), (2, 3)]


def a_head(channels=32, **settings):
    settings = {"num_classes": 3, "num_levels": len(SIZES), "num_convs": (1, 1, 1), **settings}
    return FCOSHead(channels, **settings)


def maps(channels=32, batch=2):
    return [torch.randn(batch, channels, *size) for size in SIZES]


def test_outputs_are_per_level():
    found = a_head()(maps())
    for level, size in enumerate(SIZES):
        assert found.logits[level].shape == (2, 3, *size)
        assert found.ltrb[level].shape == (2, 4, *size)
        assert found.quality[level].shape == (2, 1, *size)
        assert found.tower[level].shape == (2, 32, *size)


def test_an_untrained_head_finds_little():
    head = a_head(prior_prob=0.01, num_convs=(0, 4, 4))
    scores = torch.cat([x.flatten() for x in head(maps()).logits]).sigmoid()
    assert scores.mean().item() == pytest.approx(0.01, rel=0.1)
    assert head.cls_logits.bias.tolist() == pytest.approx([-math.log(99)] * 3)
    weights = [m.weight for m in head.modules() if isinstance(m, nn.Conv2d)]
    assert len(weights) == 11 and all(w.std().item() < 0.012 for w in weights)
    assert not head.bbox_pred.bias.any() and not head.ctrness.bias.any()


def test_boxes_are_scaled_per_level_and_never_negative():
    head = a_head(num_convs=(0, 0, 0))
    features = maps()
    assert [s.scale.tolist() for s in head.scales] == [[1], [1], [1]]
    with torch.no_grad():
        head.scales[1].scale.fill_(3)
        plain = [head.bbox_pred(x) for x in features]
        found = head(features).ltrb
    for level, x in enumerate(plain):
        torch.testing.assert_close(found[level], x.clamp(min=0) * (3 if level == 1 else 1))
    assert not any("scales" in name for name in a_head(use_scale=False).state_dict())


def test_quality_and_top_layer_see_the_box_tower():
    head, features = a_head(), maps()
    found = head(features)
    for level, x in enumerate(features):
        box = head.bbox_tower(head.share_tower(x, level), level)
        torch.testing.assert_close(found.quality[level], head.ctrness(box))
        torch.testing.assert_close(found.tower[level], box)


def test_without_towers_the_top_layer_sees_the_shared_one():
    head, features = a_head(num_convs=(3, 0, 0)), maps()
    found = head(features)
    torch.testing.assert_close(found.tower[0], head.share_tower(features[0], 0))


def test_a_top_layer_is_a_convolution_at_chosen_cells():
    layer = TopLayer(4, 7).double()
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    image, cell = torch.arange(2).repeat_interleave(15), torch.arange(15).repeat(2)
    everywhere = layer(x).flatten(2)[image, :, cell]
    torch.testing.assert_close(layer.at(x, image, cell), everywhere)
    order = torch.randperm(30)[:11]
    torch.testing.assert_close(layer.at(x, image[order], cell[order]), everywhere[order])
    weights = torch.randn(11, 7, dtype=torch.float64)
    parameters = [x, layer.weight, layer.bias]
    ours = torch.autograd.grad((layer.at(x, image[order], cell[order]) * weights).sum(), parameters)
    theirs = torch.autograd.grad((everywhere[order] * weights).sum(), parameters)
    torch.testing.assert_close(ours, theirs)
    assert layer.at(x, image[:0], cell[:0]).shape == (0, 7)


@pytest.mark.parametrize(
    "norm, names",
    [
        ("", {"0.weight", "0.bias", "2.weight", "2.bias"}),
        ("GN", {f"{i}.{n}" for i in (0, 1, 3, 4) for n in ("weight", "bias")}),
        ("FrozenBN", None),
    ],
)
def test_names_of_a_tower(norm, names):
    tower = a_head(norm=norm, num_convs=(0, 2, 2)).cls_tower
    if names is None:
        names = {f"{i}.{n}" for i in (0, 3) for n in ("weight", "bias")}
        fields = ("weight", "bias", "running_mean", "running_var")
        names |= {f"{i}.{level}.{n}" for i in (1, 4) for level in range(3) for n in fields}
    assert set(tower.state_dict()) == names


@pytest.mark.parametrize("norm", BATCH_NORMS)
def test_each_level_has_a_batch_norm_of_its_own(norm):
    head = a_head(norm=norm)
    norms = [m for m in head.modules() if isinstance(m, NormOfEachLevel)]
    assert [len(m) for m in norms] == [3, 3, 3]
    head.train()(maps())
    if norm == "FrozenBN":
        return
    for one in norms:
        means = [level.running_mean for level in one]
        assert not torch.equal(means[0], means[1]) and not torch.equal(means[1], means[2])
        assert [int(level.num_batches_tracked) for level in one] == [1, 1, 1]
    again = a_head(norm=norm)
    again.load_state_dict(head.state_dict())
    features = maps()
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(features), head.eval()(features))


def test_a_forward_that_breaks_off_leaves_the_levels_norms_in_step():
    head = a_head(norm="BN").eval()
    twin, features = copy.deepcopy(head), maps()
    broken = [features[0], features[1][:, :5]]  # a level of too few channels
    with pytest.raises(RuntimeError):
        head(broken)
    with torch.no_grad():
        torch.testing.assert_close(head(features), twin(features), rtol=0, atol=0)


def test_deformable_convolutions_are_the_last_of_a_tower():
    head = a_head(num_convs=(1, 3, 3), deformable=(0, 1, 3))
    kinds = {
        name: [type(layer) for layer in tower if not isinstance(layer, (nn.GroupNorm, nn.ReLU))]
        for name, tower in head.named_children()
        if name.endswith("tower")
    }
    assert kinds == {
        "share_tower": [Conv2d],
        "cls_tower": [Conv2d, Conv2d, OffsetDeformConv],
        "bbox_tower": [OffsetDeformConv] * 3,
    }
    assert head.cls_tower[6].offset.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert not head.cls_tower[6].offset.bias.any()
    assert head.cls_tower[6].conv.weight.std() > 0.02  # the op's own initialisation
    head(maps())[0][0].sum().backward()
    assert head.cls_tower[6].offset.weight.grad.any()


def test_a_deformable_convolution_that_looks_straight_is_half_a_plain_one():
    layer, x = OffsetDeformConv(8), torch.randn(2, 8, 5, 6)
    nn.init.zeros_(layer.offset.weight), nn.init.zeros_(layer.offset.bias)
    plain = nn.functional.conv2d(x, layer.conv.weight, padding=1)
    torch.testing.assert_close(layer(x), plain / 2)  # the sigmoid of 0
