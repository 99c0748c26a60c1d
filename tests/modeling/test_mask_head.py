import pytest
import torch
import torch.nn.functional as F

from segdet.errors import ConfigError
from segdet.modeling.mask_head import (
    MaskHeadConfig,
    SpatialAttention,
    mask_loss,
    masks_of_class,
)


def test_names_and_shapes():
    head = MaskHeadConfig(num_conv=2, conv_dim=8).build(in_channels=4, num_classes=3)
    assert {n: list(p.shape) for n, p in head.named_parameters()} == {
        "mask_fcn1.weight": [8, 4, 3, 3],
        "mask_fcn1.bias": [8],
        "mask_fcn2.weight": [8, 8, 3, 3],
        "mask_fcn2.bias": [8],
        "deconv.weight": [8, 8, 2, 2],
        "deconv.bias": [8],
        "predictor.weight": [3, 8, 1, 1],
        "predictor.bias": [3],
    }
    assert head(torch.rand(5, 4, 14, 14)).shape == (5, 3, 28, 28)


def test_spatial_attention_stands_before_the_deconvolution():
    config = MaskHeadConfig(name="SpatialAttentionMaskHead", num_conv=1, conv_dim=8)
    head = config.build(in_channels=4, num_classes=3)
    assert [name.rpartition(".")[0] for name, _ in head.named_parameters()][1:6] == [
        "mask_fcn1",
        "spatialAtt.conv",
        "deconv",
        "deconv",
        "predictor",
    ]
    assert head(torch.rand(0, 4, 14, 14)).shape == (0, 3, 28, 28)
    x, seen = torch.rand(5, 4, 14, 14), []
    head.deconv.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    assert head(x).shape == (5, 3, 28, 28)
    torch.testing.assert_close(seen[0], head.spatialAtt(head.mask_fcn1(x)))


def test_spatial_attention_is_its_definition():
    attention = SpatialAttention()
    attention.conv.weight.data = torch.zeros(1, 2, 3, 3)
    attention.conv.weight.data[0, :, 1, 2] = torch.tensor([2.0, -1.0])  # mean first, then maximum
    x = torch.randn(1, 6, 4, 5)
    right = F.pad(x, (0, 1))[..., 1:]  # the kernel looks one cell to the right
    weights = (2 * right.mean(1) - right.amax(1)).sigmoid()
    torch.testing.assert_close(attention(x), x * weights[:, None])


@pytest.mark.parametrize("agnostic", [False, True])
def test_loss_matches_definition(agnostic):
    masks = 1 if agnostic else 3
    logits, gt = torch.randn(4, masks, 6, 6), torch.rand(4, 6, 6) > 0.5
    classes = torch.tensor([2, 0, 1, 2])
    expected = 0.0
    for r in range(4):
        p = logits[r, 0 if agnostic else classes[r]].sigmoid()
        expected += -torch.where(gt[r], p.log(), (1 - p).log()).mean() / 4
    torch.testing.assert_close(mask_loss(logits, gt, classes)["loss_mask"], expected)


def test_no_foreground_is_zero_and_connected():
    logits = torch.zeros(0, 3, 28, 28, requires_grad=True)
    losses = mask_loss(logits, torch.zeros(0, 28, 28, dtype=torch.bool), torch.zeros(0).long())
    losses.total().backward()
    assert losses["loss_mask"].item() == 0 and logits.grad is not None


def test_metrics_count_pixels():
    logits = torch.tensor([[[[1.0, -1.0], [1.0, -1.0]]]])
    gt = torch.tensor([[[True, True], [False, False]]])
    metrics = mask_loss(logits, gt, torch.tensor([0])).metrics
    assert {k: float(v) for k, v in metrics.items()} == {
        "mask_rcnn/accuracy": 0.5,
        "mask_rcnn/false_positive": 0.5,
        "mask_rcnn/false_negative": 0.5,
    }


def test_own_channel_is_chosen():
    logits = torch.arange(6.0).reshape(2, 3, 1, 1)
    assert masks_of_class(logits, torch.tensor([2, 0])).flatten().tolist() == [2, 3]


@pytest.mark.parametrize("regions", [0, 11])
@pytest.mark.parametrize("agnostic", [False, True])
def test_masks_of_one_class_are_those_among_all(regions, agnostic):
    torch.manual_seed(0)
    config = MaskHeadConfig(num_conv=1, conv_dim=8, cls_agnostic_mask=agnostic)
    head = config.build(in_channels=4, num_classes=3).double()
    x = torch.randn(regions, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    classes = torch.randint(3, (regions,))
    weights = torch.randn(regions, 6, 6, dtype=torch.float64)
    learning = [x, *head.parameters()]
    of_all = masks_of_class(head(x), classes)
    own = head(x, classes)[:, 0]
    torch.testing.assert_close(own, of_all)
    expected, gradients = (
        torch.autograd.grad((masks * weights).sum(), learning) for masks in (of_all, own)
    )
    torch.testing.assert_close(gradients, expected)


def test_masks_of_one_class_keep_no_map_for_the_gradient():
    head = MaskHeadConfig(num_conv=1, conv_dim=8).build(in_channels=4, num_classes=3)
    x, classes = torch.randn(5, 4, 4, 4), torch.tensor([0, 2, 1, 1, 0])
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        own = head(x, classes)
    assert own.requires_grad
    assert max(shape.numel() for shape in kept) == 5 * 8 * 4 * 4  # of the convolution before


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="mask sizes differ"):
        mask_loss(torch.zeros(1, 1, 28, 28), torch.zeros(1, 14, 14), torch.zeros(1).long())


def test_bad_settings_name_the_key():
    with pytest.raises(
        ConfigError, match="NAME 'Nope' is unknown; known: MaskRCNNConvUpsampleHead"
    ):
        MaskHeadConfig(name="Nope")
