import pytest
import torch

from segdet.errors import ConfigError
from segdet.modeling import build_model
from segdet.modeling.matching import Matcher
from segdet.modeling.meta_arch.cascade_rcnn import ScaleGradient
from segdet.structures import Boxes, Proposals, Targets


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False, "set ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"),
        ("ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True, "TRAIN_ON_PRED_BOXES does not work"),
        ("ROI_BOX_CASCADE_HEAD.IOUS", (0.5, 0.6), "one entry a stage, have 3 and 2"),
        ("ROI_BOX_CASCADE_HEAD.IOUS", (0.4, 0.6, 0.7), r"IOU_THRESHOLDS must be \[0.4\]"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tiny_cfg, key, value, message):
    cfg = tiny_cfg("CascadeRCNN")
    cfg.merge_from_list([f"MODEL.{key}", value])
    with pytest.raises(ConfigError, match=message):
        build_model(cfg)


def test_the_number_of_stages_is_free(tiny_cfg, image):
    cfg = tiny_cfg("CascadeRCNN")
    cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS = (0.5, 0.6)
    cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS = ((10.0,) * 4, (20.0,) * 4)
    losses = build_model(cfg)([image((5, 5, 40, 50))])
    assert "loss_cls_stage1" in losses and "loss_cls_stage2" not in losses


def test_later_stages_label_by_their_own_overlap(tiny_cfg):
    heads = build_model(tiny_cfg("CascadeRCNN")).roi_heads
    boxes = Boxes(torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6.5], [50, 50, 60, 60]]))
    target = Targets(
        (64, 64), gt_boxes=Boxes(torch.tensor([[0.0, 0, 10, 10]])), gt_classes=torch.tensor([2])
    )
    nothing = Targets((64, 64), gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0).long())
    proposals = [Proposals((64, 64), proposal_boxes=boxes) for _ in range(2)]
    found, metrics = heads._relabel(proposals, [target, nothing], Matcher([0.7], [0, 1]))
    assert found[0].gt_classes.tolist() == [2, 3, 3] and found[1].gt_classes.tolist() == [3] * 3
    assert metrics == {"roi_head/num_fg_samples": 0.5, "roi_head/num_bg_samples": 2.5}


def test_gradients_are_scaled_and_values_are_not():
    x = torch.ones(2, requires_grad=True)
    y = ScaleGradient.apply(x, 1 / 4)
    (y * 8).sum().backward()
    assert y.tolist() == [1, 1] and x.grad.tolist() == [2, 2]
