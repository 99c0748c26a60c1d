import math

import pytest
import torch

from segdet.errors import ConfigError
from segdet.modeling.box_coder import (
    SCALE_CLAMP,
    Box2BoxTransform,
    Box2BoxTransformRotated,
    BoxRegressionLoss,
)

SRC = torch.tensor([[10.0, 10, 30, 50]])
TARGET = torch.tensor([[12.0, 8, 40, 44]])


def test_golden_deltas():
    deltas = Box2BoxTransform((10, 10, 5, 5)).get_deltas(SRC, TARGET)
    torch.testing.assert_close(
        deltas, torch.tensor([[3.0, -1.0, 1.6824, -0.5268]]), atol=1e-4, rtol=0
    )


def test_decoding_undoes_encoding():
    coder = Box2BoxTransform((10, 10, 5, 5))
    corners = torch.rand(50, 2, 2).sort(dim=1).values * 100
    src, target = corners.flatten(1) + torch.tensor([0, 0, 1.0, 1]), SRC.expand(50, 4) + 3
    torch.testing.assert_close(
        coder.apply_deltas(coder.get_deltas(src, target), src), target, atol=1e-3, rtol=1e-4
    )


def test_several_classes_share_the_source_box():
    coder = Box2BoxTransform((1, 1, 1, 1))
    deltas = torch.tensor([[0, 0, 0, 0, 0.5, 0, 0, math.log(2)]])
    expected = torch.tensor([[10.0, 10, 30, 50, 20, -10, 40, 70]])
    torch.testing.assert_close(coder.apply_deltas(deltas, SRC), expected)


def test_growth_is_clamped_above_only():
    coder = Box2BoxTransform((1, 1, 1, 1))
    moved = coder.apply_deltas(torch.tensor([[0, 0, 100.0, -100.0]]), SRC)
    width, height = (moved[:, 2:] - moved[:, :2])[0]
    assert width == pytest.approx(20 * math.exp(SCALE_CLAMP), rel=1e-5)
    assert height == 0


def test_half_precision_deltas_are_decoded_in_the_boxes_dtype():
    assert (
        Box2BoxTransform((1, 1, 1, 1)).apply_deltas(torch.zeros(1, 4).half(), SRC).dtype
        == SRC.dtype
    )


def test_encoding_needs_extent():
    with pytest.raises(ValueError, match="positive width and height"):
        Box2BoxTransform((1, 1, 1, 1)).get_deltas(torch.zeros(1, 4), TARGET)


@pytest.mark.parametrize("loss_type", ["smooth_l1", "giou", "diou", "ciou"])
def test_perfect_deltas_cost_nothing(loss_type):
    coder = Box2BoxTransform((10, 10, 5, 5))
    loss = BoxRegressionLoss(coder, loss_type=loss_type)
    deltas = coder.get_deltas(SRC, TARGET)
    assert loss(deltas, SRC, TARGET).item() == pytest.approx(0, abs=1e-5)
    worse = loss(deltas + 0.3, SRC, TARGET)
    assert worse > 1e-3
    doubled = BoxRegressionLoss(coder, loss_type=loss_type, weight=2.0)
    assert doubled(deltas + 0.3, SRC, TARGET).item() == pytest.approx(2 * worse.item())


def test_beta_rounds_smooth_l1_off():
    coder = Box2BoxTransform((1, 1, 1, 1))
    deltas = torch.tensor([[0.1, 0, 0, 0]])
    assert BoxRegressionLoss(coder)(deltas, SRC, SRC).item() == pytest.approx(0.1)
    smooth = BoxRegressionLoss(coder, smooth_l1_beta=0.5)
    assert smooth(deltas, SRC, SRC).item() == pytest.approx(0.5 * 0.1**2 / 0.5)


def test_no_boxes_stay_connected():
    deltas = torch.zeros(0, 4, requires_grad=True)
    empty = torch.zeros(0, 4)
    loss = BoxRegressionLoss(Box2BoxTransform((1, 1, 1, 1)), loss_type="giou")
    loss = loss(deltas, empty, empty)
    loss.backward()
    assert loss.item() == 0 and deltas.grad is not None


def test_unknown_loss_is_refused():
    with pytest.raises(ConfigError, match="BBOX_REG_LOSS_TYPE 'l3' is unknown"):
        BoxRegressionLoss(Box2BoxTransform((1, 1, 1, 1)), loss_type="l3")


ROTATED = torch.tensor([[10.0, 20, 4, 8, 170]])


def test_rotated_deltas_are_relative_and_turn_the_short_way():
    coder = Box2BoxTransformRotated((10, 10, 5, 5, 1))
    target = torch.tensor([[12.0, 16, 8, 4, -170]])
    expected = [10 * 2 / 4, 10 * -4 / 8, 5 * math.log(2), -5 * math.log(2), math.radians(20)]
    torch.testing.assert_close(coder.get_deltas(ROTATED, target), torch.tensor([expected]))


def test_decoding_undoes_encoding_of_rotated_boxes():
    coder = Box2BoxTransformRotated((10, 10, 5, 5, 2))
    boxes = torch.rand(2, 50, 5) * torch.tensor([100, 100, 50, 50, 360]) + torch.tensor(
        [0, 0, 1, 1, -180]
    )
    src, target = boxes.double()
    torch.testing.assert_close(coder.apply_deltas(coder.get_deltas(src, target), src), target)
    twice = coder.apply_deltas(torch.zeros(50, 10), src)  # two sets of deltas a box
    torch.testing.assert_close(twice, src.repeat(1, 2))


def test_rotated_boxes_take_five_weights_and_no_iou_loss():
    with pytest.raises(ConfigError, match=r"BBOX_REG_WEIGHTS must be 5 numbers here, is \(1, 1"):
        Box2BoxTransformRotated((1, 1, 1, 1))
    with pytest.raises(ConfigError, match="giou is for upright boxes only"):
        BoxRegressionLoss(Box2BoxTransformRotated((1,) * 5), loss_type="giou")
    with pytest.raises(ValueError, match="positive width and height"):
        Box2BoxTransformRotated((1,) * 5).get_deltas(torch.zeros(1, 5), ROTATED)
