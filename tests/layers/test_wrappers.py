import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segdet.layers import Conv2d, ShapeSpec, cat, conv3x3_relu, cross_entropy, nonzero_tuple


def test_conv_then_norm_then_activation():
    norm = nn.BatchNorm2d(4).eval()
    norm.running_mean.uniform_()
    conv = Conv2d(3, 4, 3, padding=1, bias=False, norm=norm, activation=torch.relu)
    x = torch.randn(2, 3, 5, 6)
    expected = norm(F.conv2d(x, conv.weight, padding=1)).relu()
    torch.testing.assert_close(conv(x), expected)


def test_norm_is_a_child_of_the_official_name():
    conv = Conv2d(3, 4, 1, bias=False, norm=nn.GroupNorm(2, 4))
    assert list(conv.state_dict()) == ["weight", "norm.weight", "norm.bias"]
    assert list(Conv2d(3, 4, 1, activation=nn.ReLU()).state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.GroupNorm(2, 4)])
def test_empty_batch_passes_gradients(norm, device):
    conv = Conv2d(3, 4, 3, stride=2, norm=norm, activation=F.relu).to(device)
    output = conv(torch.zeros(0, 3, 9, 9, device=device))
    assert output.shape == (0, 4, 4, 4)
    output.sum().backward()
    assert conv.weight.grad is not None and not conv.weight.grad.any()


def test_heads_layer_keeps_the_size_or_halves_it():
    x = torch.randn(2, 3, 7, 7)
    assert conv3x3_relu(3, 4)(x).shape == (2, 4, 7, 7)
    half = conv3x3_relu(3, 4, stride=2)
    assert half(x).shape == (2, 4, 4, 4) and (half(x) >= 0).all()


def test_cat_of_one_copies_nothing():
    one = torch.ones(2, 3)
    assert cat([one]) is one
    assert cat([one, one], dim=1).shape == (2, 6)


def test_cross_entropy_of_no_rows_is_a_zero_with_gradient():
    logits = torch.zeros(0, 5, requires_grad=True)
    loss = cross_entropy(logits, torch.zeros(0, dtype=torch.long))
    assert loss.item() == 0
    loss.backward()
    assert logits.grad is not None


def test_cross_entropy_of_rows():
    logits, target = torch.randn(4, 5), torch.tensor([0, 4, 2, 2])
    for reduction in ("mean", "sum", "none"):
        ours = cross_entropy(logits, target, reduction=reduction, label_smoothing=0.1)
        theirs = F.cross_entropy(logits, target, reduction=reduction, label_smoothing=0.1)
        torch.testing.assert_close(ours, theirs)


def test_nonzero_tuple():
    rows, columns = nonzero_tuple(torch.tensor([[0, 3], [1, 0]]))
    assert rows.tolist() == [0, 1] and columns.tolist() == [1, 0]


def test_shape_spec_knows_what_it_is_told():
    assert ShapeSpec(channels=256, stride=4) == ShapeSpec(256, None, None, 4)
