import math

import pytest
import torch

from segdet.engine.accumulation import as_share
from segdet.layers import sigmoid_focal_loss
from segdet.modeling.fcos_losses import (
    BOX_LOSSES,
    FCOSLoss,
    focal_loss_of_locations,
    overlaps,
)
from segdet.modeling.fcos_targets import LocationMatcher, centerness
from tests.modeling.test_fcos import a_target

SIZES, STRIDES, RANGES = [(8, 10), (4, 5)], (8, 16), [(-1, 30), (30, math.inf)]
K = 3
MATCH = LocationMatcher(STRIDES, RANGES)
TARGETS = [
    a_target([[5, 5, 40, 30], [30, 20, 76, 60]], [0, 2]),
    a_target([[10, 30, 50, 62]], [1]),
]


def outputs(batch=2, dtype=torch.float32):
    """Random logits, distances and quality, as leaves."""

    def maps(channels):
        return [torch.randn(batch, channels, *size, dtype=dtype) for size in SIZES]

    found = maps(K), [x.abs() for x in maps(4)], maps(1)
    for level in (x for kind in found for x in kind):
        level.requires_grad_()
    return found


def losses_of(found, targets=TARGETS, *, update=True, **settings):
    loss = FCOSLoss(**settings)
    return loss(*found, MATCH(SIZES, targets), update_normalizer=update)


@pytest.mark.parametrize(
    "predicted, iou, giou",
    [((1, 2, 3, 4), 0.448276, 0.381609), ((0, 0, 0, 0), 0.058824, 0.058824)],
)
def test_golden_overlaps(predicted, iou, giou):
    target = torch.full((1, 4), 2.0)
    ours = overlaps(torch.tensor([predicted]).float(), target)
    assert [x.item() for x in ours] == [pytest.approx(iou, abs=1e-6), pytest.approx(giou, abs=1e-6)]


def test_focal_loss_matches_definition():
    logits = [x.requires_grad_() for x in (torch.randn(2, K, *size) * 3 for size in SIZES)]
    positives = MATCH(SIZES, TARGETS)
    assert sum(positives.counts) > 5
    ours = focal_loss_of_locations(logits, positives, alpha=0.25, gamma=1.5)
    start, expected = 0, torch.zeros(())
    for x, count in zip(logits, positives.counts, strict=True):
        rows = slice(start, start + count)
        targets = torch.zeros_like(x).flatten(2)
        own = positives.image[rows], positives.gt_classes[rows], positives.cell[rows]
        targets[own] = 1
        expected = expected + sigmoid_focal_loss(
            x.flatten(2), targets, alpha=0.25, gamma=1.5, reduction="sum"
        )
        start += count
    torch.testing.assert_close(ours, expected)
    gradients = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(torch.autograd.grad(ours, logits), gradients)


def test_extreme_logits_have_finite_losses_and_gradients():
    logits = [torch.full((2, K, *size), 1e4).requires_grad_() for size in SIZES]
    loss = focal_loss_of_locations(logits, MATCH(SIZES, TARGETS), alpha=0.25, gamma=2.0)
    (gradient, *_) = torch.autograd.grad(loss, logits)
    assert loss.isfinite() and gradient.isfinite().all()


def test_half_precision_is_summed_in_single():
    positives = MATCH(SIZES, TARGETS)
    logits = [torch.randn(2, K, *size).half() for size in SIZES]
    settings = {"alpha": 0.25, "gamma": 2.0}
    ours = focal_loss_of_locations(logits, positives, **settings)
    assert ours.dtype == torch.float32
    wide = focal_loss_of_locations([x.float() for x in logits], positives, **settings)
    torch.testing.assert_close(ours, wide)


def test_the_box_loss_is_weighted_by_centerness_and_divided_by_its_sum():
    found = outputs()
    losses = losses_of(found)
    positives = MATCH(SIZES, TARGETS)
    weight = centerness(positives.ltrb)
    _, giou = overlaps(positives.gather(found[1]), positives.ltrb)
    torch.testing.assert_close(losses["loss_fcos_loc"], (weight * (1 - giou)).sum() / weight.sum())
    torch.testing.assert_close(losses.counts["loss_fcos_loc"], weight.sum())
    assert losses.counts["loss_fcos_cls"] == sum(positives.counts)


@pytest.mark.parametrize("quality", ["ctrness", "iou"])
def test_the_quality_loss(quality):
    found = outputs()
    losses = losses_of(found, quality=quality)
    positives = MATCH(SIZES, TARGETS)
    target = centerness(positives.ltrb)
    iou, giou = overlaps(positives.gather(found[1]), positives.ltrb)
    if quality == "iou":
        target = iou.detach()
        torch.testing.assert_close(losses["loss_fcos_loc"], (1 - giou).sum() / len(target))
    logits = positives.gather(found[2]).squeeze(1)
    expected = -(target * logits.sigmoid().log() + (1 - target) * (-logits).sigmoid().log())
    name = {"ctrness": "loss_fcos_ctr", "iou": "loss_fcos_iou"}[quality]
    torch.testing.assert_close(losses[name], expected.sum() / len(target))
    (gradient,) = torch.autograd.grad(losses[name], found[1][:1], allow_unused=True)
    assert gradient is None or not gradient.any()  # the boxes do not learn from it


def test_the_floor_is_what_perfect_quality_costs():
    found = outputs()
    losses = losses_of(found)
    positives = MATCH(SIZES, TARGETS)
    perfect = [torch.zeros(2, 1, *size) for size in SIZES]
    target, start = centerness(positives.ltrb), 0
    for x, count in zip(perfect, positives.counts, strict=True):
        rows = slice(start, start + count)
        x.flatten(2)[positives.image[rows], 0, positives.cell[rows]] = target[rows].logit()
        start += count
    at_best = losses_of((found[0], found[1], perfect))
    floor = losses.metrics["fcos/ctr_floor"]
    torch.testing.assert_close(at_best["loss_fcos_ctr"], floor)
    assert 0 < floor < losses["loss_fcos_ctr"]


def test_a_location_in_the_middle_of_its_box_has_a_floor_of_zero():
    losses = losses_of(outputs(batch=1), [a_target([[8, 8, 16, 16]], [0])])
    assert losses.counts["loss_fcos_ctr"] == losses.counts["loss_fcos_loc"] == 1
    assert losses.metrics["fcos/ctr_floor"] == 0


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_box_losses_fall_to_zero(name):
    one = torch.ones(2)
    assert BOX_LOSSES[name](one, one).tolist() == [0, 0]
    worse = BOX_LOSSES[name](one * 0.5, one * 0.4)
    assert (worse > 0).all()
    assert losses_of(outputs(), box_loss=name)["loss_fcos_loc"].isfinite()


def test_normalizers_of_the_class_loss():
    found = outputs()
    positives = sum(MATCH(SIZES, TARGETS).counts)
    by_name = {
        name: losses_of(found, normalizer=name)["loss_fcos_cls"].item()
        for name in ("fg", "moving_fg", "all")
    }
    total = by_name["fg"] * positives
    assert by_name["all"] == pytest.approx(total / (2 * (80 + 20)), rel=1e-6)
    assert by_name["moving_fg"] == pytest.approx(total / (0.9 * 100 + 0.1 * positives), rel=1e-6)


def test_the_moving_normalizer_follows_training_batches_only():
    loss, found = FCOSLoss(normalizer="moving_fg"), outputs()
    positives = MATCH(SIZES, TARGETS)
    loss(*found, positives, update_normalizer=False)
    assert loss.moving_positives == 100
    loss(*found, positives, update_normalizer=True)
    loss(*found, positives, update_normalizer=True)
    n = sum(positives.counts)
    assert float(loss.moving_positives) == pytest.approx(0.9 * (90 + 0.1 * n) + 0.1 * n)


@pytest.mark.parametrize("quality", ["ctrness", "iou"])
def test_without_objects_every_output_is_in_the_graph(quality):
    found = outputs()
    losses = losses_of(found, [a_target(), a_target()], quality=quality)
    assert not any(losses.counts.values())
    assert losses["loss_fcos_loc"] == 0 and losses["loss_fcos_cls"] > 0
    leaves = [x for kind in found for x in kind]
    gradients = torch.autograd.grad(losses.total(), leaves)
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("quality", ["ctrness", "iou"])
@pytest.mark.parametrize("normalizer", ["fg", "all"])
def test_parts_of_a_batch_learn_the_same(normalizer, quality):
    found = outputs(dtype=torch.float64)
    leaves = [x for kind in found for x in kind]
    targets = [*TARGETS, a_target()]  # an image without objects has a part of its own
    found = tuple([torch.cat((x, x[:1])) for x in kind] for kind in found)
    settings = {"normalizer": normalizer, "quality": quality}
    whole = torch.autograd.grad(losses_of(found, targets, **settings).total(), leaves)
    parts = []
    for image in range(3):
        own = tuple([x[image : image + 1] for x in kind] for kind in found)
        parts.append(losses_of(own, targets[image : image + 1], **settings))
    totals = {name: sum(float(part.counts[name]) for part in parts) for name in parts[0].counts}
    total = torch.stack([as_share(part, 1 / 3, totals).total() for part in parts]).sum()
    torch.testing.assert_close(torch.autograd.grad(total, leaves), whole)
