import pytest
import torch
import torch.nn.functional as F

from segdet.errors import ConfigError
from segdet.modeling.box_head import BoxHeadConfig
from segdet.structures import Boxes, Proposals

K = 3


def predictor(**settings):
    config = BoxHeadConfig(**settings)
    return config.build_predictor(
        8, num_classes=K, score_thresh=0.05, nms_thresh=0.5, detections_per_image=5
    )


def sampled(classes, *, with_gt=True):
    boxes = torch.tensor([[10.0, 10, 30, 50]]).repeat(len(classes), 1)
    p = Proposals(
        (60, 60), proposal_boxes=Boxes(boxes), gt_classes=torch.tensor(classes, dtype=torch.int64)
    )
    if with_gt:
        p.gt_boxes = Boxes(boxes + 2)
    return p


def test_head_names_and_shapes():
    config = BoxHeadConfig(
        name="FastRCNNConvFCHead", pooler_resolution=7, num_conv=1, conv_dim=6, num_fc=2, fc_dim=8
    )
    head = config.build(4)
    assert {n: list(p.shape) for n, p in head.named_parameters()} == {
        "conv1.weight": [6, 4, 3, 3],
        "conv1.bias": [6],
        "fc1.weight": [8, 6 * 49],
        "fc1.bias": [8],
        "fc2.weight": [8, 8],
        "fc2.bias": [8],
    }
    assert head(torch.rand(0, 4, 7, 7)).shape == (0, 8)


def test_losses_match_definition():
    proposals = [sampled([0, 2, K]), sampled([K, K], with_gt=False)]
    logits, deltas = torch.randn(5, K + 1), torch.randn(5, K * 4)
    losses = predictor().losses(logits, deltas, proposals)
    classes = torch.tensor([0, 2, K, K, K])
    torch.testing.assert_close(losses["loss_cls"], F.cross_entropy(logits, classes))
    target = torch.tensor([10 * 2 / 20, 10 * 2 / 40, 0, 0])
    expected = (deltas[0, 0:4] - target).abs().sum() + (deltas[1, 8:12] - target).abs().sum()
    torch.testing.assert_close(losses["loss_box_reg"], expected / 5)


def test_class_agnostic_boxes():
    head = predictor(cls_agnostic_bbox_reg=True)
    assert head.bbox_pred.out_features == 4
    assert head.losses(torch.randn(1, K + 1), torch.randn(1, 4), [sampled([1])])["loss_box_reg"] > 0
    assert len(head.predict(torch.randn(1, K + 1), torch.zeros(1, 4), [sampled([1])])[0]) >= 1


@pytest.mark.parametrize("sigmoid", [False, True])
def test_no_proposals(sigmoid):
    head = predictor(use_sigmoid_ce=sigmoid)
    logits, deltas = head(torch.zeros(0, 8))
    losses = head.losses(logits, deltas, [sampled([])])
    losses.total().backward()
    assert losses.total().item() == 0 and head.cls_score.weight.grad is not None
    assert len(head.predict(logits, deltas, [sampled([])])[0]) == 0


def test_predict_filters_scores_nms_and_counts():
    head = predictor()
    proposals = sampled([K] * 4)
    proposals.proposal_boxes = Boxes(
        torch.tensor([[0.0, 0, 20, 20], [0, 0, 20, 21], [30, 30, 90, 90], [0, 0, 20, 20]])
    )
    logits = torch.log(
        torch.tensor(
            [
                [0.7, 0.01, 0.01, 0.28],
                [0.6, 0.30, 0.01, 0.09],  # class 0 overlaps the first, class 1 does not
                [0.01, 0.01, 0.9, 0.08],
                [0.04, 0.03, 0.03, 0.90],  # nothing above the threshold
            ]
        )
    )
    found = head.predict(logits, torch.zeros(4, K * 4), [proposals])[0]
    assert found.pred_classes.tolist() == [2, 0, 1]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.7, 0.3]))
    assert found.pred_boxes.tensor[0].tolist() == [30, 30, 60, 60]  # clipped


def test_non_finite_rows_are_dropped():
    head = predictor()
    deltas = torch.zeros(2, K * 4)
    deltas[0, 0] = float("nan")
    found = head.predict(torch.zeros(2, K + 1), deltas, [sampled([0, 0])])[0]
    assert len(found) == K and torch.isfinite(found.pred_boxes.tensor).all()


def test_boxes_of_gt_class():
    deltas = torch.zeros(2, K * 4)
    deltas[0, 4] = 10.0  # dx of class 1: one width
    boxes = predictor().boxes_of_gt_class(deltas, [sampled([1, K])])[0]
    assert boxes.tolist() == [[30, 10, 50, 50], [10, 10, 30, 50]]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"use_fed_loss": True}, "USE_FED_LOSS leaves out single classes: set USE_SIGMOID_CE"),
        ({"bbox_reg_loss_type": "l3"}, "BBOX_REG_LOSS_TYPE 'l3' is unknown"),
    ],
)
def test_rejects_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        BoxHeadConfig(**settings)


def test_head_needs_a_layer():
    with pytest.raises(ConfigError, match="NUM_FC is 0"):
        BoxHeadConfig(name="FastRCNNConvFCHead").build(4)
