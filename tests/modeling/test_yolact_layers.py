import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segdet.modeling.yolact_layers import BilinearFPN, FastMaskIoUNet, PredictionHead, ProtoNet


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_the_pyramid_resizes_to_any_size():
    fpn = BilinearFPN({"res3": 2, "res4": 3, "res5": 4}, 8)
    sizes = {"res3": (2, 9, 7), "res4": (3, 5, 4), "res5": (4, 3, 2)}
    features = {name: torch.randn(1, *size) for name, size in sizes.items()}
    levels = fpn(features)
    assert [tuple(x.shape[-2:]) for x in levels] == [(9, 7), (5, 4), (3, 2), (2, 1), (1, 1)]
    top = fpn.lat_layers[0](features["res5"])
    merged = fpn.lat_layers[1](features["res4"]) + F.interpolate(top, (5, 4), mode="bilinear")
    torch.testing.assert_close(levels[1], fpn.pred_layers[1](merged).relu())
    torch.testing.assert_close(levels[3], fpn.downsample_layers[0](levels[2]))
    torch.testing.assert_close(levels[4], fpn.downsample_layers[1](levels[3]))
    assert (levels[2] >= 0).all() and (levels[3] < 0).any(), "a ReLU ends the first three alone"


def test_prototypes_have_twice_the_size_and_no_negative_values():
    prototypes = ProtoNet(4, 6)(torch.randn(2, 4, 5, 7))
    assert prototypes.shape == (2, 6, 10, 14)
    assert (prototypes >= 0).all() and (prototypes == 0).any()


def test_the_head_lists_cells_row_by_row_and_then_priors():
    sizes = [[(1.0, 1.0), (2.0, 2.0)]] * 2
    head = PredictionHead(4, prior_sizes=sizes, num_classes=3, num_prototypes=5)
    levels = [torch.randn(2, 4, 3, 2), torch.randn(2, 4, 1, 1)]
    deltas, logits, coefficients = head(levels)
    assert (deltas.shape, logits.shape) == ((2, 14, 4), (2, 14, 4))
    assert coefficients.shape == (2, 14, 5) and coefficients.abs().max() <= 1
    maps = head.conf_layer(head.upfeature(levels[0]))
    row, column, prior = 2, 1, 1
    torch.testing.assert_close(
        logits[:, (row * 2 + column) * 2 + prior], maps[:, 4 * prior : 4 * prior + 4, row, column]
    )


def test_maskiou_goes_from_138_to_3_pixels_and_takes_the_largest():
    net = FastMaskIoUNet(7)
    nn.init.normal_(net.maskiou_net[-2].weight)
    sizes = []
    for layer in net.maskiou_net:
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _, __, x: sizes.append(x.shape[-1]))
    masks = torch.rand(2, 138, 138)
    ious = net(masks)
    assert sizes == [68, 33, 16, 7, 3, 3] and ious.shape == (2, 7)
    torch.testing.assert_close(ious, net.maskiou_net(masks[:, None]).amax((2, 3)))
    assert (ious >= 0).all() and (ious == 0).any(), "it ends in a ReLU"


def test_every_class_of_maskiou_can_learn_from_the_first_mask_on():
    net = FastMaskIoUNet(80)
    ious = net(torch.rand(3, 138, 138))
    torch.testing.assert_close(ious, torch.full((3, 80), net.FIRST_IOU))
    ious.sum().backward()
    last = net.maskiou_net[-2]
    assert (last.bias.grad > 0).all() and (last.weight.grad.flatten(1).amax(1) > 0).all()


@pytest.mark.parametrize("size", [(63, 63), (40, 70), (1, 1)])
def test_maskiou_takes_masks_of_any_size(size):
    assert FastMaskIoUNet(3)(torch.rand(2, *size)).shape == (2, 3)
    assert FastMaskIoUNet(3)(torch.rand(0, *size)).shape == (0, 3)


def test_convolutions_start_as_glorot_has_it():
    layer = ProtoNet(64, 32)[0]
    bound = (6 / (2 * 64 * 9)) ** 0.5
    assert layer.bias.abs().max() == 0
    assert 0.99 * bound < layer.weight.abs().max() <= bound
