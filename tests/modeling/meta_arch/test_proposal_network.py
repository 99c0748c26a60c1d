import pytest
import torch

from segdet.errors import ConfigError
from segdet.layers import pairwise_iou_rotated
from segdet.modeling import build_model
from segdet.structures import RotatedBoxes


@torch.no_grad()
def test_results_are_the_rpns_proposals_at_the_asked_size(tiny_cfg, image):
    model = build_model(tiny_cfg("ProposalNetwork")).eval()
    inputs = [image()]
    images = model.preprocess_image(inputs)
    expected = model.proposal_generator.predict(images, model.backbone(images.tensor))[0]
    found = model(inputs)[0]["proposals"]
    scale = torch.tensor([100 / 80, 128 / 64] * 2)
    torch.testing.assert_close(found.proposal_boxes.tensor, expected.proposal_boxes.tensor * scale)
    assert found.objectness_logits.tolist() == expected.objectness_logits.tolist()


def test_precomputed_proposals_are_refused(tiny_cfg):
    cfg = tiny_cfg("ProposalNetwork")
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    with pytest.raises(ConfigError, match="leaves a ProposalNetwork no work"):
        build_model(cfg)


@pytest.fixture
def rotated_cfg(tiny_cfg):
    cfg = tiny_cfg("ProposalNetwork")
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "RRPN"
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "RotatedAnchorGenerator"
    cfg.MODEL.RPN.BBOX_REG_WEIGHTS = (1.0,) * 5
    return cfg


def test_rotated_proposals_train_and_predict(rotated_cfg, image):
    model = build_model(rotated_cfg)
    assert model.state_dict()["proposal_generator.rpn_head.anchor_deltas.weight"].shape[0] == 9 * 5
    one, none = image((5, 5, 40, 50)), image()
    one["instances"].gt_boxes = RotatedBoxes(torch.tensor([[32.0, 32, 30, 14, 42]]))
    none["instances"].gt_boxes = RotatedBoxes(torch.zeros(0, 5))
    losses = model([one, none])
    losses.total().backward()
    assert losses["loss_rpn_loc"] > 0 and losses.metrics["rpn/num_pos_anchors"] > 0
    assert all(p.grad is not None for p in model.parameters())
    with torch.no_grad():
        found = model.eval()([image()])[0]["proposals"]
    boxes = found.proposal_boxes
    assert isinstance(boxes, RotatedBoxes) and 0 < len(boxes) <= 7
    assert (found.objectness_logits.diff() <= 0).all() and boxes.nonempty().all()
    iou = pairwise_iou_rotated(boxes.tensor, boxes.tensor) - torch.eye(len(boxes))
    # NMS works within levels and in network pixels, hence the slack.
    assert (iou < 1).all()


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator", "RotatedAnchorGenerator need each"),
        ("PROPOSAL_GENERATOR.NAME", "RPN", "BBOX_REG_WEIGHTS must be 4 numbers here"),
        ("RPN.BBOX_REG_WEIGHTS", (1.0,) * 4, "BBOX_REG_WEIGHTS must be 5 numbers here"),
    ],
)
def test_rotated_parts_need_each_other(rotated_cfg, key, value, message):
    rotated_cfg.merge_from_list([f"MODEL.{key}", value])
    with pytest.raises(ConfigError, match=message):
        build_model(rotated_cfg)
