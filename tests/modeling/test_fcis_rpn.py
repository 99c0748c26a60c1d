import pytest
import torch

from segdet.modeling.anchors import AnchorGeneratorConfig
from segdet.modeling.fcis_rpn import FCISRPNConfig
from segdet.structures import Boxes, ImageList, Targets, pairwise_iou

SIZE = (64, 64)
ANCHORS = AnchorGeneratorConfig(name="RoundedAnchorGenerator", sizes=((32, 64),))


def rpn(**settings):
    torch.manual_seed(0)
    anchors = ANCHORS.build([16])
    config = FCISRPNConfig(in_features=("c4",), **settings)
    head = config.build_head([16])(4, anchors.anchors_per_cell, anchors.box_dim)
    return config.build(head, anchors, min_size=2)


def losses(model, *boxes):
    target = Targets(
        SIZE,
        gt_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)),
        gt_classes=torch.zeros(len(boxes), dtype=torch.int64),
    )
    images = ImageList(torch.zeros(1, 3, *SIZE), [SIZE])
    return model.losses(images, {"c4": torch.zeros(1, 4, 4, 4)}, [target])[1]


def test_an_anchors_logit_is_its_second_score_less_its_first():
    head = rpn(conv_dims=(8,)).rpn_head
    assert head.objectness_logits.weight.shape == (12, 8, 1, 1)
    with torch.no_grad():
        head.objectness_logits.bias.copy_(torch.arange(12.0) ** 2)
        (logits,), (deltas,) = head([torch.zeros(1, 4, 2, 2)])
    assert logits.shape == (1, 6, 2, 2) and deltas.shape == (1, 24, 2, 2)
    assert logits[0, :, 1, 1].tolist() == [(k + 6) ** 2 - k**2 for k in range(6)]


def test_the_score_loss_is_a_mean_over_the_anchors_drawn():
    """Half of the anchors that fit are drawn; at logits of 0 each costs log 2."""
    model = rpn(boundary_thresh=1)
    model.rpn_head.objectness_logits.weight.data.zero_()
    loss = losses(model, (0.0, 0, 40, 40))
    assert loss["loss_rpn_cls"].item() == pytest.approx(0.6931472)
    drawn = loss.metrics["rpn/num_pos_anchors"] + loss.metrics["rpn/num_neg_anchors"]
    assert 0 < drawn < 96


def test_an_object_takes_the_best_anchor_that_lies_inside():
    """One whose very best anchor crosses the border would otherwise have none."""
    object_at_the_border = (0.0, 0, 20, 20)
    assert losses(rpn(boundary_thresh=1), object_at_the_border).metrics["rpn/num_pos_anchors"] == 1
    anchors = ANCHORS.build([16])([torch.zeros(1, 4, 4, 4)])[0]
    boxes, gt = Boxes(anchors), Boxes(torch.tensor([object_at_the_border]))
    inside = boxes.inside_box(SIZE, 1)
    iou = pairwise_iou(gt, boxes)[0]
    assert iou.max() > iou[inside].max() > 0


def test_no_anchor_inside_and_no_objects():
    model = rpn(boundary_thresh=1)
    assert losses(model)["loss_rpn_loc"] == 0 < losses(model)["loss_rpn_cls"]
    images = ImageList(torch.zeros(1, 3, 16, 16), [(16, 16)])
    target = Targets(
        (16, 16), gt_boxes=Boxes(torch.tensor([[0.0, 0, 9, 9]])), gt_classes=torch.zeros(1).long()
    )
    loss = model.losses(images, {"c4": torch.zeros(1, 4, 1, 1)}, [target])[1]
    loss.total().backward()
    assert loss.total() == 0


def test_without_a_border_rule_all_anchors_count():
    loss = losses(rpn(batch_size_per_image=1000), (0.0, 0, 40, 40))
    drawn = loss.metrics["rpn/num_pos_anchors"] + loss.metrics["rpn/num_neg_anchors"]
    assert drawn > 48  # of 96, without those between the thresholds
