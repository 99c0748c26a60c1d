import math

import pytest
import torch
import torch.nn.functional as F

from segdet.errors import ConfigError
from segdet.modeling import fcis_head
from segdet.modeling.box_coder import Box2BoxTransform
from segdet.modeling.fcis_head import FCISHeadConfig, RegionScores, RegionTargets, crop_masks
from segdet.structures import BitMasks, Boxes, PolygonMasks, Proposals, Targets

SMALL = FCISHeadConfig(conv_dim=8, group_size=3, pooled_size=6)
BOXES = torch.tensor([[4.0, 8, 60, 50], [0, 0, 64, 64], [-9, -9, 3, 3], [30, 30, 31, 31]])
MASKS = torch.zeros(2, 20, 30)
MASKS[0, 5:15, 10:20] = 1
MASKS[1, 0:2, 0:30] = 1


@pytest.fixture
def head():
    torch.manual_seed(0)
    return SMALL.build(4, num_classes=2, stride=8).double()


@pytest.fixture
def maps(head):
    return head(torch.rand(2, 4, 8, 8).double())


def test_it_has_as_many_parameters_as_the_original():
    head = FCISHeadConfig().build(2048, num_classes=80, stride=16)
    counts = {
        name: sum(p.numel() for p in part.parameters()) for name, part in head.named_children()
    }
    # Of the original's 401 800 box parameters, half are the background's, which nothing reads.
    assert counts == {"conv_new_1": 2_098_176, "fcis_cls_seg": 8_136_450, "fcis_bbox": 200_900}
    stds = [part.weight.std().item() for part in head.children()]
    assert stds == pytest.approx([0.01] * 3, rel=0.01)


def test_narrow_layers_start_with_outputs_as_large_as_wide_ones():
    head = FCISHeadConfig(conv_dim=64).build(128, num_classes=80, stride=16)
    assert head.conv_new_1.weight.std().item() == pytest.approx(0.04, rel=0.05)
    assert head.fcis_cls_seg.weight.std().item() == pytest.approx(0.04, rel=0.05)


def test_regions_are_what_the_paper_defines(head, maps):
    """Bin by bin: means of the bin's own maps, then the larger of the two, and their mean."""
    scores = head.regions(maps, [BOXES[:2].double(), BOXES[1:2].double()])
    for row, (image, box) in enumerate([(0, BOXES[0]), (0, BOXES[1]), (1, BOXES[1])]):
        x0, y0, x1, y1 = (box / 8).tolist()
        pooled = torch.zeros(3 * 2 + 4, 6, 6).double()
        for i in range(6):
            for j in range(6):
                top, bottom = (y0 + k * (y1 - y0) / 6 for k in (i, i + 1))
                left, right = (x0 + k * (x1 - x0) / 6 for k in (j, j + 1))
                cells = (
                    slice(math.floor(top), math.ceil(bottom)),
                    slice(math.floor(left), math.ceil(right)),
                )
                part = 3 * (i // 2) + j // 2
                both = torch.cat((maps.seg[image], maps.box[image]))[part::9]
                pooled[:, i, j] = both[:, *cells].mean((1, 2))
        outside, inside = pooled[0:6:2], pooled[1:6:2]
        logits = torch.maximum(outside, inside).mean((1, 2))
        torch.testing.assert_close(scores.class_logits[row], logits)
        best = logits[:2].argmax()
        torch.testing.assert_close(scores.mask_logits[row], (inside - outside)[best])
        torch.testing.assert_close(scores.deltas[row], pooled[6:].mean((1, 2)))


def test_the_mask_of_a_class_can_be_asked_for(head, maps):
    boxes = [BOXES[:1].double(), BOXES[:1].double()]
    first, second = (head.regions(maps, boxes, torch.tensor([k, 2])).mask_logits for k in (0, 1))
    assert not torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_chunks_change_nothing(head, maps, monkeypatch):
    boxes = [BOXES.double(), BOXES[:3].double()]
    whole = head.regions(maps, boxes)
    monkeypatch.setattr(fcis_head, "CHUNK", 2)
    with torch.no_grad():
        parts = head.regions(maps, boxes)
        chosen = head.regions(maps, boxes, torch.arange(7) % 3).mask_logits
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(chosen, head.regions(maps, boxes, torch.arange(7) % 3).mask_logits)


@pytest.mark.parametrize("gradients", [False, True])
def test_no_regions(head, gradients):
    with torch.set_grad_enabled(gradients):
        maps = head(torch.rand(2, 4, 8, 8).double())
        nothing = [torch.zeros(0, 4).double()] * 2
        scores = head.regions(maps, nothing, torch.zeros(0).long())
        assert [tuple(one.shape) for one in scores] == [(0, 3), (0, 6, 6), (0, 4)]
    if gradients:
        wanted = RegionTargets(
            nothing[0], torch.zeros(0).long(), torch.zeros(0, 6, 6).bool(), nothing[0]
        )
        loss = SMALL.build_loss(Box2BoxTransform((5, 5, 2, 2)), 4)(scores, wanted, 2)
        loss.total().backward()
        assert loss.total() == 0
        assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def some_scores(regions: int) -> RegionScores:
    return RegionScores(
        torch.randn(regions, 3, requires_grad=True),
        torch.randn(regions, 6, 6, requires_grad=True),
        torch.randn(regions, 4, requires_grad=True),
    )


def some_targets(classes: list[int]) -> RegionTargets:
    count = len(classes)
    return RegionTargets(
        torch.rand(count, 4), torch.tensor(classes), torch.rand(count, 6, 6) > 0.5,
        torch.randn(count, 4),
    )  # fmt: skip


def test_losses_are_as_defined():
    torch.manual_seed(0)
    scores, wanted = some_scores(3), some_targets([1, 2, 0])  # the second is background
    loss = SMALL.build_loss(Box2BoxTransform((5, 5, 2, 2)), 8)(scores, wanted, 2)
    assert loss["loss_cls"].item() == pytest.approx(
        F.cross_entropy(scores.class_logits, wanted.classes).item()
    )
    pairs = torch.stack((torch.zeros(3, 6, 6), scores.mask_logits), dim=1)
    pixel = F.cross_entropy(pairs, wanted.masks.long(), reduction="none").mean((1, 2))
    assert loss["loss_mask"].item() == pytest.approx((10 / 16 * (pixel[0] + pixel[2])).item())
    box = F.smooth_l1_loss(scores.deltas, wanted.deltas, reduction="none").sum(1)
    assert loss["loss_box_reg"].item() == pytest.approx(((box[0] + box[2]) / 16).item())
    loss.total().backward()
    assert not scores.mask_logits.grad[1].any() and not scores.deltas.grad[1].any()


@pytest.mark.parametrize("number, kept", [(2, [0, 3]), (9, [0, 1, 2, 3, 4])])
def test_the_hardest_regions_have_the_largest_sum_of_losses(number, kept):
    wanted = some_targets([2, 2, 0, 0, 2])
    logits = torch.tensor([[9.0, 0, 0], [0, 0, 9], [9, 0, 0], [9, 0, 0], [0, 0, 9]])
    masks = torch.where(wanted.masks, 20.0, -20.0)
    masks[3] *= -1
    scores = RegionScores(logits, masks, wanted.deltas.clone())
    loss = SMALL.build_loss(Box2BoxTransform((5, 5, 2, 2)), number)
    assert loss.hardest(scores, wanted).sort().values.tolist() == kept


def test_targets_of_an_image():
    loss = SMALL.build_loss(Box2BoxTransform((5, 5, 2, 2)), 8)
    sampled = Proposals(
        (20, 30),
        proposal_boxes=Boxes(torch.tensor([[10.0, 5, 20, 15], [0, 0, 9, 9], [10, 5, 14, 15]])),
        gt_classes=torch.tensor([1, 2, 1]),
        gt_index=torch.tensor([0, 0, 0]),
    )
    target = Targets(
        (20, 30), gt_boxes=Boxes(torch.tensor([[10.0, 5, 20, 15]])), gt_masks=BitMasks(MASKS[:1])
    )
    found = loss.targets(sampled, target, num_classes=2)
    assert found.masks[0].all() and not found.masks[1].any() and found.masks[2].all()
    assert found.deltas[0].tolist() == [0, 0, 0, 0] == found.deltas[1].tolist()
    assert found.deltas[2].tolist() == pytest.approx([5 * 3 / 4, 0, 2 * math.log(2.5), 0])
    polygons = Targets((20, 30), gt_boxes=target.gt_boxes)
    polygons.gt_masks = PolygonMasks([[[10.0, 5, 20, 5, 20, 15, 10, 15]]])
    assert torch.equal(loss.targets(sampled, polygons, num_classes=2).masks, found.masks)


def test_a_cut_is_the_object_resized_bilinearly():
    box = torch.tensor([[6.0, 2, 17, 19]])  # 11 by 17 pixels, some left of and above the object
    gt = torch.tensor([[10.0, 5, 20, 15]])
    soft = crop_masks(MASKS, gt, box, torch.tensor([0]), 7)
    expected = F.interpolate(MASKS[None, :1, 2:19, 6:17], size=(7, 7), mode="bilinear")[0]
    torch.testing.assert_close(soft, expected)


def test_pixels_off_the_objects_box_are_empty_and_corners_are_rounded_to_even():
    gt = torch.tensor([[12.5, 5, 20, 15]])  # the object's pixels 10 and 11 are off its box
    soft = crop_masks(MASKS, gt, torch.tensor([[10.0, 5, 20, 15]]), torch.tensor([0]), 10)
    assert (soft[0] == (torch.arange(10) >= 2)).all()
    apart = crop_masks(MASKS, gt, torch.tensor([[0.0, 0, 9, 5]]), torch.tensor([0]), 3)
    assert not apart.any()


def test_cuts_of_a_pixel_or_beyond_the_image():
    gt = torch.tensor([[10.0, 5, 20, 15], [0, 0, 30, 2]])
    boxes = torch.tensor([[10.2, 5.1, 10.4, 5.2], [-5, -5, 40, 40], [10, 5, 11, 6]])
    soft = crop_masks(MASKS, gt, boxes, torch.tensor([0, 1, 0]), 4)
    assert soft.isfinite().all() and soft[2].eq(1).all() and 0 < soft[1].sum() < 16


def test_bad_settings_name_the_key():
    with pytest.raises(ConfigError, match=r"GROUP_SIZE must be at most POOLED_SIZE = 21, is 22"):
        FCISHeadConfig(group_size=22)
