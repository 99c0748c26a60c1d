import math

import pytest
import torch

from segdet.errors import ConfigError
from segdet.layers import sigmoid_focal_loss
from segdet.modeling import build_model
from segdet.modeling.box_coder import Box2BoxTransform
from segdet.modeling.meta_arch.retinanet import (
    BATCH_NORMS,
    DenseSelector,
    LevelNorm,
    RetinaNetHeadConfig,
)
from segdet.structures import Boxes, Targets

ANCHORS = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 20], [0, 0, 10, 22], [40, 40, 50, 50]])
K = 3


def a_loss(**settings):
    section = RetinaNetHeadConfig(num_classes=K, smooth_l1_loss_beta=0.0, **settings)
    return section.build_loss(Box2BoxTransform(section.bbox_reg_weights))


def a_target(*boxes, classes=()):
    return Targets(
        (64, 64),
        gt_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)),
        gt_classes=torch.tensor(classes, dtype=torch.int64),
    )


def test_losses_match_definition():
    torch.manual_seed(0)
    logits, deltas = torch.randn(2, 4, K), torch.randn(2, 4, 4)
    targets = [a_target([0.0, 0, 10, 10], classes=[1]), a_target()]
    losses = a_loss()(ANCHORS, logits, deltas, targets, update_normalizer=True)
    # IoU with the object: 1, 1/2, 10/22 (ignored), 0; the other image is background.
    one_hot = torch.zeros(2, 4, K)
    one_hot[0, :2, 1] = 1
    used = torch.ones(2, 4, dtype=torch.bool)
    used[0, 2] = False
    normalizer = 0.9 * 100 + 0.1 * 2
    focal = sigmoid_focal_loss(logits[used], one_hot[used], alpha=0.25, gamma=2, reduction="sum")
    torch.testing.assert_close(losses["loss_cls"], focal / normalizer)
    shifted = torch.tensor([0, -0.25, 0, math.log(0.5)])  # the second anchor to the object
    expected = deltas[0, 0].abs().sum() + (deltas[0, 1] - shifted).abs().sum()
    torch.testing.assert_close(losses["loss_box_reg"], expected / normalizer)
    assert losses.metrics == {"num_pos_anchors": 1}


def test_the_normalizer_follows_training_batches_only():
    loss, targets = a_loss(), [a_target([0.0, 0, 10, 10], classes=[1])]
    arguments = (ANCHORS, torch.zeros(1, 4, K), torch.zeros(1, 4, 4), targets)
    loss(*arguments, update_normalizer=False)
    assert loss.normalizer == 100
    loss(*arguments, update_normalizer=True)
    assert loss.normalizer == pytest.approx(90.2)
    loss(*arguments[:3], [a_target()], update_normalizer=True)  # never drawn below 1
    assert loss.normalizer == pytest.approx(90.2 * 0.9 + 0.1)


def test_every_object_gets_an_anchor():
    loss = a_loss()
    small = a_target([0.0, 0, 10, 3], classes=[2])  # IoU 0.3 at most
    assert loss._label(ANCHORS, small)[0].tolist() == [2, K, K, K]


def test_selection_thresholds_caps_and_suppresses():
    select = DenseSelector(
        Box2BoxTransform((1, 1, 1, 1)),
        score_thresh=0.3,
        topk_candidates=2,
        nms_thresh=0.5,
        detections_per_image=10,
    )
    scores = torch.tensor([[0.9, 0.1, 0.1], [0.8, 0.1, 0.1], [0.1, 0.7, 0.1], [0.1, 0.1, 0.2]])
    found = select([ANCHORS], [scores.logit()], [torch.zeros(4, 4)], (30, 30))
    assert found.pred_classes.tolist() == [0, 0]  # the third is not among the best 2
    assert found.pred_boxes.tensor.tolist() == ANCHORS[:2].tolist()  # IoU 1/2 is not above 0.5
    both = select([ANCHORS] * 2, [scores.logit()] * 2, [torch.zeros(4, 4)] * 2, (30, 30))
    assert len(both) == 2  # the levels' copies go


def test_the_untrained_head_scores_everything_with_the_prior(tiny_cfg):
    cfg = tiny_cfg("RetinaNet")
    cfg.MODEL.RETINANET.PRIOR_PROB = 0.2
    bias = build_model(cfg).head.cls_score.bias
    torch.testing.assert_close(bias.sigmoid(), torch.full_like(bias, 0.2))


def test_group_norm_in_the_head(tiny_cfg, image):
    cfg = tiny_cfg("RetinaNet")
    cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.RETINANET.NORM = 32, "GN"
    model = build_model(cfg)
    assert {"head.cls_subnet.0.bias", "head.cls_subnet.1.weight"} <= set(model.state_dict())
    assert torch.isfinite(model([image((5, 5, 40, 50)), image()]).total())


@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
def test_batch_norm_in_the_head_is_of_one_level(tiny_cfg, image, norm):
    cfg = tiny_cfg("RetinaNet")
    cfg.MODEL.RETINANET.NUM_CONVS, cfg.MODEL.RETINANET.NORM = 1, norm
    model = build_model(cfg)
    assert all(type(one) is BATCH_NORMS[norm] for one in model.head.cls_subnet[1])
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    of_levels = {f"1.{level}.{name}" for level in range(5) for name in statistics}
    expected = {"0.weight", "0.bias", "1.weight", "1.bias"} | of_levels
    assert set(model.head.cls_subnet.state_dict()) == expected
    assert set(model.head.bbox_subnet.state_dict()) == expected
    assert torch.isfinite(model([image((5, 5, 40, 50)), image()]).total())


def test_levels_share_the_scale_but_not_the_statistics():
    norm = LevelNorm(torch.nn.BatchNorm2d, 2, 1)
    norm.weight.data.fill_(3), norm.bias.data.fill_(5)
    for level, mean in enumerate((10.0, -10.0)):
        out = norm(torch.tensor([mean - 1, mean + 1]).reshape(2, 1, 1, 1), level)
        torch.testing.assert_close(out.flatten(), torch.tensor([2.0, 8.0]), atol=1e-4, rtol=0)
        assert norm[level].running_mean.item() == pytest.approx(mean / 10)


def test_rejects_an_unknown_loss():
    with pytest.raises(ConfigError, match="BBOX_REG_LOSS_TYPE 'l3' is unknown"):
        RetinaNetHeadConfig(bbox_reg_loss_type="l3")


def test_p6_needs_res5(tiny_cfg):
    cfg = tiny_cfg("RetinaNet")
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4"]
    with pytest.raises(ConfigError, match=r"makes p6 of res5; .*OUT_FEATURES has only res3, res4"):
        build_model(cfg)
