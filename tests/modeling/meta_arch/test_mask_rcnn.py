import pytest
import torch

from segdet.errors import ConfigError
from segdet.modeling import build_model
from segdet.structures import Boxes, Instances, Keypoints


def test_boxes_only(tiny_cfg, image):
    cfg = tiny_cfg("MaskRCNN")
    cfg.MODEL.MASK_ON = False
    model = build_model(cfg)
    assert "loss_mask" not in model([image((5, 5, 40, 50))])
    assert not model.eval()([image()])[0]["instances"].has("pred_masks")


def test_masks_train_on_refined_boxes_on_demand(tiny_cfg, image):
    cfg = tiny_cfg("MaskRCNN")
    cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES = True
    assert torch.isfinite(build_model(cfg)([image((5, 5, 40, 50))]).total())


def test_a_feature_that_the_backbone_lacks_is_named(tiny_cfg):
    cfg = tiny_cfg("MaskRCNN")
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p9"]
    with pytest.raises(ConfigError, match=r"ROI_HEADS.IN_FEATURES: no feature 'p9'"):
        build_model(cfg)


def with_keypoints(one: dict) -> dict:
    boxes = one["instances"].gt_boxes
    centres = torch.cat((boxes.get_centers(), torch.full((len(boxes), 1), 2.0)), dim=1)
    one["instances"].gt_keypoints = Keypoints(centres[:, None].repeat(1, 5, 1))
    return one


@pytest.fixture
def keypoint_model(tiny_cfg):
    cfg = tiny_cfg("MaskRCNN")
    cfg.MODEL.MASK_ON, cfg.MODEL.KEYPOINT_ON = False, True
    cfg.MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS = (8,)
    cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = 5
    return build_model(cfg)


def test_keypoints_train_every_parameter(keypoint_model, image):
    for boxes in [((5, 5, 40, 50), (0, 0, 30, 30)), ()]:
        keypoint_model.zero_grad()
        losses = keypoint_model([with_keypoints(image(*boxes)), with_keypoints(image())])
        assert (losses["loss_keypoint"].item() > 0) == bool(boxes)
        losses.total().backward()
        without = [n for n, p in keypoint_model.named_parameters() if p.grad is None]
        assert not without


@torch.no_grad()
def test_keypoints_lie_in_their_boxes(keypoint_model, image):
    found = keypoint_model.eval()([image()])[0]["instances"]
    points, boxes = found.pred_keypoints, found.pred_boxes.tensor[:, None]
    assert points.shape == (len(found), 5, 3) and len(found)
    assert (points[..., :2] >= boxes[..., :2] - 1e-3).all()
    assert (points[..., :2] <= boxes[..., 2:] + 1e-3).all()
    assert (points[..., 2] > 0).all()


def test_c4_heads_refuse_keypoints(tiny_cfg):
    cfg = tiny_cfg("MaskRCNNC4")
    cfg.MODEL.KEYPOINT_ON = True
    with pytest.raises(ConfigError, match="KEYPOINT_ON does not work with Res5ROIHeads"):
        build_model(cfg)


def a_proposal(*boxes: tuple[float, ...]) -> Instances:
    return Instances(
        (64, 80),
        proposal_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32)),
        objectness_logits=torch.zeros(len(boxes)),
    )


@pytest.mark.parametrize("system", ["MaskRCNN", "MaskRCNNC4", "CascadeRCNN"])
def test_proposals_can_come_with_the_images(tiny_cfg, image, system):
    cfg = tiny_cfg(system)
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    with pytest.raises(ConfigError, match="PrecomputedProposals needs LOAD_PROPOSALS: True"):
        build_model(cfg)
    cfg.MODEL.LOAD_PROPOSALS = True
    model = build_model(cfg)
    assert not any(name.startswith("proposal_generator") for name in model.state_dict())
    one = image((5, 5, 40, 50)) | {"proposals": a_proposal((4, 6, 41, 50), (0, 0, 9, 9))}
    losses = model([one])
    assert not {"loss_rpn_cls", "loss_rpn_loc"} & set(losses) and losses.total() > 0
    assert losses.metrics["roi_head/num_fg_samples"] == 2  # of 2 proposals and the object itself
    assert len(model.eval()([one])[0]["instances"]) > 0
    with pytest.raises(ValueError, match=r"takes `proposals`.* inputs of images \[1\] have none"):
        model([one, image()])
