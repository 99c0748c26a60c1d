import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segdet.layers import (
    Losses,
    ciou_loss,
    diou_loss,
    giou_loss,
    sigmoid_focal_loss,
    smooth_l1_loss,
)
from segdet.structures.boxes import box_area, box_iou

BOX_LOSSES = [giou_loss, diou_loss, ciou_loss]


def random_boxes(n: int) -> Tensor:
    corner = torch.rand(n, 2, dtype=torch.float64) * 8
    return torch.cat([corner, corner + 0.5 + torch.rand(n, 2, dtype=torch.float64) * 9], 1)


class TestLosses:
    def test_is_a_dict_of_scalars(self):
        losses = Losses({"loss_cls": torch.tensor(1.0)}, {"accuracy": 0.5})
        assert isinstance(losses, dict) and sum(losses.values()) == 1
        assert losses.metrics == {"accuracy": 0.5}
        assert Losses() == {} and Losses().metrics == {}

    def test_merging(self):
        first = Losses({"a": torch.tensor(1.0)}, {"m": 1.0})
        second = Losses({"b": torch.tensor(2.0)}, {"n": 2.0})
        both = first | second
        assert isinstance(both, Losses)
        assert list(both) == ["a", "b"] and both.metrics == {"m": 1.0, "n": 2.0}
        assert list(first) == ["a"] and first.metrics == {"m": 1.0}
        grown = first
        grown |= second
        assert grown == both and grown.metrics == both.metrics and list(first) == ["a"]
        assert (first | {"c": torch.tensor(3.0)}).total() == 4

    @pytest.mark.parametrize("merge", [lambda a, b: a | b, lambda a, b: a.__ior__(b)])
    def test_a_clash_is_an_error(self, merge):
        one = Losses({"loss_cls": torch.tensor(1.0)}, {"accuracy": 0.5})
        with pytest.raises(ValueError, match="two parts of a model report loss_cls"):
            merge(one, Losses({"loss_cls": torch.tensor(1.0)}))
        with pytest.raises(ValueError, match="report accuracy"):
            merge(one, Losses({}, {"accuracy": 0.5}))

    def test_total(self):
        parts = {name: torch.tensor(2.0, requires_grad=True) for name in "abc"}
        losses = Losses(parts)
        losses.total().backward()
        assert losses.total() == 6 and all(part.grad == 1 for part in parts.values())
        with pytest.raises(ValueError, match="no losses to sum"):
            Losses().total()

    def test_copies_and_pickles(self):
        losses = Losses({"a": torch.tensor(1.0)}, {"m": 1.0})
        for same in (pickle.loads(pickle.dumps(losses)), copy.deepcopy(losses)):
            assert same == losses and same.metrics == losses.metrics


class TestSmoothL1:
    @pytest.mark.parametrize("beta", [0.1, 1.0, 3.0])
    def test_matches_torch(self, beta):
        a, b = torch.randn(50), torch.randn(50)
        expected = F.smooth_l1_loss(a, b, beta=beta, reduction="sum")
        torch.testing.assert_close(smooth_l1_loss(a, b, beta, "sum"), expected)

    @pytest.mark.parametrize("beta", [0.0, 1e-6])
    def test_is_l1_without_beta(self, beta):
        a = torch.tensor([1.0, -2, 0], requires_grad=True)
        loss = smooth_l1_loss(a, torch.zeros(3), beta)
        assert loss.tolist() == [1, 2, 0]
        loss.sum().backward()
        assert a.grad is not None and a.grad.tolist() == [1, -1, 0]

    def test_at_beta_the_pieces_meet(self):
        at = torch.tensor([0.5])
        assert smooth_l1_loss(at, torch.zeros(1), 0.5).item() == 0.25


class TestBoxLosses:
    @pytest.mark.parametrize("loss", BOX_LOSSES)
    def test_equal_boxes_cost_nothing(self, loss):
        boxes = random_boxes(20)
        assert loss(boxes, boxes).abs().max() < 1e-6

    def test_giou_by_definition(self):
        a, b = random_boxes(30), random_boxes(30)
        hull = torch.cat([torch.minimum(a, b)[:, :2], torch.maximum(a, b)[:, 2:]], 1)
        iou = box_iou(a, b).diagonal()
        union = (box_area(a) + box_area(b)) / (1 + iou)
        expected = 1 - (iou - (box_area(hull) - union) / box_area(hull))
        torch.testing.assert_close(giou_loss(a, b), expected, rtol=0, atol=1e-6)

    def test_boxes_far_apart(self):
        a, b = torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[3.0, 0, 4, 1]])
        torch.testing.assert_close(giou_loss(a, b), torch.tensor([1 + 2 / 4]))
        torch.testing.assert_close(diou_loss(a, b), torch.tensor([1 + 9 / 17]))
        torch.testing.assert_close(ciou_loss(a, b), torch.tensor([1 + 9 / 17]))  # same shape

    def test_ciou_adds_the_aspect_term(self):
        a, b = random_boxes(30), random_boxes(30)
        iou = box_iou(a, b).diagonal()
        w, h = (a[:, 2:] - a[:, :2]).unbind(1)
        gw, gh = (b[:, 2:] - b[:, :2]).unbind(1)
        v = 4 / math.pi**2 * (torch.atan(gw / gh) - torch.atan(w / h)) ** 2
        expected = diou_loss(a, b) + v * v / (1 - iou + v)
        torch.testing.assert_close(ciou_loss(a, b), expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("loss", [giou_loss, diou_loss])
    def test_gradient(self, loss):
        a, b = random_boxes(5).requires_grad_(), random_boxes(5)
        assert torch.autograd.gradcheck(lambda x: loss(x, b), a)

    def test_ciou_weight_carries_no_gradient(self):
        a, b = random_boxes(1).requires_grad_(), random_boxes(1)
        (grad,) = torch.autograd.grad(ciou_loss(a, b).sum(), a)
        w, h = (a[:, 2:] - a[:, :2]).unbind(1)
        gw, gh = (b[:, 2:] - b[:, :2]).unbind(1)
        v = 4 / math.pi**2 * (torch.atan(gw / gh) - torch.atan(w / h)) ** 2
        weight = (v / (1 - box_iou(a, b)[0] + v)).detach()
        (expected,) = torch.autograd.grad((diou_loss(a, b) + weight * v).sum(), a)
        torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize("loss", BOX_LOSSES)
    def test_boxes_without_extent_give_finite_numbers(self, loss):
        point = torch.tensor([[5.0, 5, 5, 5]], requires_grad=True)
        value = loss(point, torch.tensor([[1.0, 1, 3, 3]]), "sum")
        assert value.isfinite()


class TestFocal:
    def test_without_focus_it_is_cross_entropy(self):
        x, y = torch.randn(40), (torch.rand(40) > 0.5).float()
        expected = F.binary_cross_entropy_with_logits(x, y, reduction="mean")
        torch.testing.assert_close(sigmoid_focal_loss(x, y, gamma=0, reduction="mean"), expected)

    @pytest.mark.parametrize("alpha", [-1, 0.25])
    def test_by_definition(self, alpha):
        x, y = torch.randn(40, dtype=torch.float64), torch.randint(0, 2, (40,))
        true = torch.where(y == 1, x.sigmoid(), 1 - x.sigmoid())
        weight = torch.ones(()) if alpha < 0 else torch.where(y == 1, alpha, 1 - alpha)
        expected = -weight * (1 - true) ** 2 * true.log()
        torch.testing.assert_close(sigmoid_focal_loss(x, y, alpha=alpha), expected)

    def test_large_logits_stay_finite(self):
        x = torch.tensor([200.0, -200.0], requires_grad=True)
        loss = sigmoid_focal_loss(x, torch.tensor([0.0, 1.0]), 0.25, reduction="sum")
        loss.backward()
        assert loss.isfinite() and x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize(
    "loss",
    [
        lambda reduction: smooth_l1_loss(NOTHING, NOTHING.detach(), 1.0, reduction),
        lambda reduction: sigmoid_focal_loss(NOTHING, NOTHING.detach(), reduction=reduction),
        *[lambda reduction, f=f: f(NOTHING, NOTHING.detach(), reduction) for f in BOX_LOSSES],
    ],
)
def test_reductions_of_nothing(loss):
    assert loss("none").numel() == 0
    for reduction in ("sum", "mean"):
        value = loss(reduction)
        value.backward()
        assert value.item() == 0
    with pytest.raises(ValueError, match=r'reduction must be "none", "mean" or "sum", is .max.'):
        loss("max")


NOTHING = torch.zeros(0, 4, requires_grad=True)
