import pytest
import torch

from segdet.modeling.meta_arch.yolact import YolactHeadConfig
from segdet.modeling.prior_boxes import IGNORED
from segdet.modeling.yolact_layers import FastMaskIoUNet, Predictions
from segdet.modeling.yolact_loss import CROWD, hard_negatives, read_image_targets
from segdet.structures import BitMasks, Boxes, Targets

PRIORS = torch.tensor(
    [
        [0.25, 0.25, 0.3, 0.3],
        [0.25, 0.25, 0.5, 0.5],
        [0.5, 0.5, 0.3, 0.3],
        [0.8, 0.8, 0.2, 0.2],
        [0.28, 0.25, 0.3, 0.25],
    ]
)
BOXES = torch.tensor([[0.1, 0.1, 0.4, 0.4], [0.45, 0.45, 0.75, 0.85]])


def a_target(rows=(0, 1), classes=(0, 2)) -> Targets:
    masks = torch.zeros(2, 32, 32)
    masks[0, 4:12, 4:12] = masks[1, 16:26, 16:24] = 1
    return Targets(
        (32, 32),
        gt_boxes=Boxes(BOXES[list(rows)] * 32),
        gt_classes=torch.tensor(classes, dtype=torch.int64),
        gt_masks=BitMasks(masks[list(rows)]),
    )


def losses_of(*targets: Targets, net: FastMaskIoUNet | None = None, **settings):
    count = len(targets)
    predictions = Predictions(
        torch.zeros(count, 5, 4),
        torch.zeros(count, 5, 4),
        torch.tensor([1.0, -1.0]).expand(count, 5, 2).clone(),
    )
    prototypes = torch.stack([torch.linspace(0, 2, 8).expand(8, 8), torch.ones(8, 8)])
    given = [*predictions, prototypes.expand(count, 2, 8, 8).clone(), torch.zeros(count, 3, 8, 8)]
    deltas, logits, coefficients, prototypes, maps = (x.requires_grad_() for x in given)
    loss = YolactHeadConfig(num_classes=3, **settings).build_loss()
    found = loss(
        PRIORS,
        Predictions(deltas, logits, coefficients),
        prototypes,
        maps,
        [read_image_targets(one, (32, 32), PRIORS) for one in targets],
        net,
    )
    found.total().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in given)
    return {name: value.item() for name, value in found.items()}


EXPECTED = {
    "loss_cls": 2.310491,
    "loss_box_reg": 4.593629,
    "loss_mask": 15.114303,
    "loss_semantic": 2.079441,
}


def test_the_losses_are_the_originals():
    assert losses_of(a_target()) == pytest.approx(EXPECTED, rel=1e-5)


def test_a_batch_is_divided_by_all_its_positives():
    # The second image has the same positives, so its means are those of one.
    assert losses_of(a_target(), a_target()) == pytest.approx(EXPECTED, rel=1e-5)
    # Without objects an image has class maps alone to learn.
    alone = losses_of(a_target(), a_target((), ()))
    assert alone == pytest.approx(EXPECTED, rel=1e-5)


@pytest.mark.parametrize("target", [a_target((), ()), a_target((0,), (CROWD,))])
def test_without_objects_only_class_maps_are_learnt(target):
    net = FastMaskIoUNet(3)
    losses = losses_of(target, net=net)
    assert losses["loss_semantic"] == pytest.approx(3 * 0.693147)
    assert not any(value for name, value in losses.items() if name != "loss_semantic")
    assert all(p.grad is not None for p in net.parameters())


def test_boxes_without_extent_teach_nothing():
    flat = a_target()
    flat.gt_boxes.tensor[1, 2] = flat.gt_boxes.tensor[1, 0]
    assert losses_of(flat)["loss_box_reg"] == losses_of(a_target((0,), (0,)))["loss_box_reg"]


def test_a_box_of_one_pixel_is_learnt():
    small = a_target()
    small.gt_boxes.tensor[1] = torch.tensor([5.0, 5, 6, 6])
    assert all(torch.tensor(value).isfinite() for value in losses_of(small).values())


def test_drawn_masks_stand_for_all_positives():
    # All positives of an image with one object have the same mask.
    target = a_target((0,), (0,))
    all_masks = losses_of(target)["loss_mask"]
    assert losses_of(target, masks_to_train=1)["loss_mask"] == pytest.approx(all_masks)


def test_small_objects_teach_no_iou():
    torch.manual_seed(0)
    assert losses_of(a_target(), net=FastMaskIoUNet(3), discard_mask_area=3)["loss_maskiou"] > 0
    net = FastMaskIoUNet(3)
    losses = losses_of(a_target(), net=net, discard_mask_area=25)
    assert losses["loss_maskiou"] == 0
    assert all(p.grad is not None for p in net.parameters())


def test_weights_are_those_of_the_config():
    settings = {"cls": 2.0, "bbox_reg": 3.0, "mask": 12.25, "semantic": 0.5}
    given = {f"{name}_loss_weight": value for name, value in settings.items()}
    factors = {"loss_cls": 2, "loss_box_reg": 2, "loss_mask": 2, "loss_semantic": 0.5}
    expected = {name: EXPECTED[name] * factor for name, factor in factors.items()}
    assert losses_of(a_target(), **given) == pytest.approx(expected, rel=1e-5)


def test_hard_negatives_are_the_most_like_objects():
    labels = torch.tensor([1, 0, 0, 0, 0, 0, IGNORED])
    logits = torch.zeros(7, 2)
    logits[:, 1] = torch.tensor([9.0, 1, 5, 2, 4, 3, 8])
    assert hard_negatives(logits, labels, 3).tolist() == [
        False,
        False,
        True,
        False,
        True,
        True,
        False,
    ]
    assert hard_negatives(logits, labels, 99).tolist() == (labels == 0).tolist()
    assert not hard_negatives(logits, labels.clamp(max=0), 3).any()


def test_targets_are_read_in_fractions_without_crowds():
    one = read_image_targets(a_target((0, 1), (1, CROWD)), (64, 64), PRIORS)
    torch.testing.assert_close(one.boxes, BOXES[:1] / 2)
    torch.testing.assert_close(one.crowds, BOXES[1:] / 2)
    assert one.classes.tolist() == [1] and one.masks.shape == (1, 64, 64)
