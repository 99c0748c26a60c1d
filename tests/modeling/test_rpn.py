import pytest
import torch

from segdet.errors import ConfigError
from segdet.modeling.anchors import AnchorGeneratorConfig
from segdet.modeling.rpn import RPNConfig, StandardRPNHead
from segdet.structures import Boxes, ImageList, Targets

SIZES = [(60, 64), (64, 50)]


def small_rpn(**settings):
    anchors = AnchorGeneratorConfig(sizes=((16,), (32,))).build([8, 16])
    config = RPNConfig(in_features=("p3", "p4"), **settings)
    head = config.build_head([8, 16])(4, anchors.anchors_per_cell, anchors.box_dim)
    return config.build(head, anchors, min_size=0)


def inputs():
    images = ImageList(torch.zeros(2, 3, 64, 64), SIZES)
    return images, {"p3": torch.randn(2, 4, 8, 8), "p4": torch.randn(2, 4, 4, 4)}


def targets(*boxes):
    return [
        Targets(
            size,
            gt_boxes=Boxes(torch.tensor(b).reshape(-1, 4)),
            gt_classes=torch.zeros(len(b), dtype=torch.int64),
        )
        for size, b in zip(SIZES, boxes, strict=True)
    ]


def test_names():
    one = small_rpn().state_dict()
    assert {n.split(".")[1] for n in one} == {"conv", "objectness_logits", "anchor_deltas"}
    several = small_rpn(conv_dims=(-1, 6)).state_dict()
    assert {"rpn_head.conv.conv0.weight", "rpn_head.conv.conv1.weight"} <= set(several)
    assert several["rpn_head.anchor_deltas.weight"].shape == (12, 6, 1, 1)


def test_proposals_are_sorted_clipped_and_capped():
    rpn = small_rpn(pre_nms_topk_test=40, post_nms_topk_test=10, nms_thresh=0.7)
    with torch.no_grad():
        rpn.rpn_head.anchor_deltas.weight.normal_(std=0.3)
    proposals = rpn.predict(*inputs())
    for p, (height, width) in zip(proposals, SIZES, strict=True):
        boxes, logits = p.proposal_boxes.tensor, p.objectness_logits
        assert 0 < len(p) <= 10 and p.image_size == (height, width)
        assert (logits.diff() <= 0).all()
        assert (boxes >= 0).all() and (boxes <= torch.tensor([width, height] * 2)).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert not boxes.requires_grad


def test_losses_match_definition():
    rpn = small_rpn(batch_size_per_image=10**6)  # everything is used
    images, features = inputs()
    gt = targets([[3.0, 3, 20, 18]], [[10.0, 10, 40, 44], [0, 0, 9, 9]])
    proposals, losses = rpn.losses(images, features, gt)
    logits, _ = rpn.rpn_head([features["p3"], features["p4"]])
    logits = torch.cat([x.permute(0, 2, 3, 1).reshape(2, -1) for x in logits], dim=1)
    anchors = torch.cat(rpn.anchor_generator([features["p3"], features["p4"]]))
    expected = torch.zeros(())
    for i, target in enumerate(gt):
        g = target.gt_boxes.tensor
        corner = torch.minimum(g[:, None, 2:], anchors[:, 2:]) - torch.maximum(
            g[:, None, :2], anchors[:, :2]
        )
        inter = corner.clamp(min=0).prod(-1)
        area = lambda b: (b[:, 2:] - b[:, :2]).prod(-1)  # noqa: E731
        iou = inter / (area(g)[:, None] + area(anchors) - inter)
        best = iou.max(0).values
        positive = (best >= 0.7) | (iou == iou.max(1, keepdim=True).values).any(0)
        negative = (best < 0.3) & ~positive
        p = logits[i].sigmoid()
        expected = expected - p[positive].log().sum() - (1 - p[negative]).log().sum()
    torch.testing.assert_close(losses["loss_rpn_cls"], expected / (2 * 10**6))
    assert losses["loss_rpn_loc"] > 0 and len(proposals) == 2
    assert losses.metrics["rpn/num_pos_anchors"] >= 1


def test_images_without_objects_train():
    rpn = small_rpn()
    _, losses = rpn.losses(*inputs(), targets([], []))
    losses.total().backward()
    assert losses["loss_rpn_loc"].item() == 0 and losses["loss_rpn_cls"] > 0
    assert all(p.grad is not None for p in rpn.parameters())


def test_far_anchors_are_ignored_on_demand():
    rpn = small_rpn(boundary_thresh=0, batch_size_per_image=10**6)
    _, losses = rpn.losses(*inputs(), targets([], []))
    every = small_rpn(batch_size_per_image=10**6).losses(*inputs(), targets([], []))[1]
    assert losses.metrics["rpn/num_neg_anchors"] < every.metrics["rpn/num_neg_anchors"]


def test_divergence_is_named():
    rpn = small_rpn()
    images, features = inputs()
    features["p3"][0, 0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="the RPN predicts NaN or infinity"):
        rpn.losses(images, features, targets([], []))
    assert all(torch.isfinite(p.proposal_boxes.tensor).all() for p in rpn.predict(images, features))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"head_name": "X"}, "HEAD_NAME 'X' is unknown"),
        ({"bbox_reg_loss_type": "X"}, "BBOX_REG_LOSS_TYPE 'X' is unknown"),
        ({"conv_dims": (0,)}, "CONV_DIMS must be positive or -1"),
    ],
)
def test_rejects_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        small_rpn(**settings)


class HeadOfAPlugIn(StandardRPNHead):
    def forward(self, features):
        return super().forward(features)


@pytest.mark.parametrize("conv_dims", [(-1,), (6, -1, 5)])
def test_drawn_anchors_predict_and_learn_as_in_whole_maps(conv_dims):
    torch.manual_seed(0)
    rpn = small_rpn(conv_dims=conv_dims, batch_size_per_image=60).double()
    images, features = inputs()
    gt = targets([[3.0, 3, 20, 18]], [[10.0, 10, 40, 44], [0, 0, 9, 9]])
    maps = {name: x.double().requires_grad_() for name, x in features.items()}

    def gradients():
        torch.manual_seed(1)
        losses = rpn.losses(images, maps, gt)[1]
        leaves = [*maps.values(), *rpn.parameters()]
        return losses, torch.autograd.grad(losses.total(), leaves)

    at_cells = gradients()
    rpn.rpn_head.__class__ = HeadOfAPlugIn
    torch.testing.assert_close(gradients(), at_cells)
