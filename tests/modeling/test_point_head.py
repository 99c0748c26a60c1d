import pytest
import torch

from segdet.errors import ConfigError
from segdet.modeling.mask_head import masks_of_class
from segdet.modeling.point_features import generate_regular_grid_point_coords, subdivide
from segdet.modeling.point_head import (
    MaskRenderer,
    PointHeadConfig,
    calculate_uncertainty,
    point_loss,
)


def test_names_and_shapes():
    head = PointHeadConfig(fc_dim=8, num_fc=2, num_classes=5).build(4, coarse_channels=5)
    assert {n: list(p.shape) for n, p in head.named_parameters()} == {
        "fc1.weight": [8, 9, 1],
        "fc1.bias": [8],
        "fc2.weight": [8, 13, 1],
        "fc2.bias": [8],
        "predictor.weight": [5, 13, 1],
        "predictor.bias": [5],
    }
    assert head(torch.rand(3, 4, 7), torch.rand(3, 5, 7)).shape == (3, 5, 7)


@pytest.mark.parametrize("each_layer", [False, True])
def test_a_point_is_a_perceptrons_input(each_layer):
    section = PointHeadConfig(fc_dim=6, num_fc=2, coarse_pred_each_layer=each_layer)
    head = section.build(4, coarse_channels=3)
    fine, coarse = torch.randn(2, 4, 5), torch.randn(2, 3, 5)
    expected = torch.empty(2, 80, 5)
    for r in range(2):
        for p in range(5):
            x = torch.cat((fine[r, :, p], coarse[r, :, p]))
            for fc in (head.fc1, head.fc2):
                x = (fc.weight[:, :, 0] @ x + fc.bias).relu()
                x = torch.cat((x, coarse[r, :, p])) if each_layer else x
            expected[r, :, p] = head.predictor.weight[:, :, 0] @ x + head.predictor.bias
    torch.testing.assert_close(head(fine, coarse), expected)


def test_uncertainty_is_of_the_regions_own_class():
    logits = torch.tensor([[[1.0], [-2.0]], [[3.0], [-4.0]]])  # (2 regions, 2 classes, 1 point)
    assert calculate_uncertainty(logits, torch.tensor([1, 0])).tolist() == [[[-2.0]], [[-3.0]]]
    agnostic = calculate_uncertainty(logits[:, 1:], torch.tensor([1, 0]))
    assert agnostic.tolist() == [[[-2.0]], [[-4.0]]]


@pytest.mark.parametrize("masks", [1, 3])
def test_loss_is_the_soft_cross_entropy_of_the_own_class(masks):
    logits, labels = torch.randn(4, masks, 6), torch.rand(4, 6)
    classes = torch.tensor([2, 0, 1, 2])
    expected = 0.0
    for r in range(4):
        p = logits[r, 0 if masks == 1 else classes[r]].sigmoid()
        expected -= (labels[r] * p.log() + (1 - labels[r]) * (1 - p).log()).mean() / 4
    torch.testing.assert_close(point_loss(logits, labels, classes)["loss_mask_point"], expected)


def test_no_region_is_zero_and_connected():
    logits = torch.zeros(0, 3, 9, requires_grad=True)
    losses = point_loss(logits, torch.zeros(0, 9), torch.zeros(0).long())
    losses.total().backward()
    assert losses["loss_mask_point"].item() == 0 and logits.grad is not None


def test_accuracy_is_decided_at_a_half():
    logits, labels = torch.tensor([[[1.0, 1.0, -1.0, -1.0]]]), torch.tensor([[0.9, 0.1, 0.2, 0.6]])
    losses = point_loss(logits, labels, torch.tensor([0]))
    assert float(losses.metrics["point/accuracy"]) == 0.5


@pytest.mark.parametrize(
    "side, steps, num_points, expected",
    [(7, 5, 784, (28, 3)), (7, 5, 783, (14, 4)), (7, 5, 100, (7, 5)), (14, 4, 784, (28, 3))],
)
def test_steps_that_would_predict_every_cell_are_saved(side, steps, num_points, expected):
    section = PointHeadConfig(subdivision_steps=steps, subdivision_num_points=num_points)
    assert section.build_renderer(side) == MaskRenderer(*expected, num_points)


def test_masks_are_as_if_all_classes_were_subdivided():
    torch.manual_seed(0)
    weight = torch.randn(3, 2, 4).double() * 9

    def predict_all(points: torch.Tensor) -> torch.Tensor:
        waves = torch.cat((points.sin(), (7 * points).cos()), dim=2)  # (R, P, 4)
        return (waves @ weight.reshape(6, 4).T).transpose(1, 2).unflatten(1, (3, 2)).prod(2)

    boxes, classes = torch.zeros(4, 4).double(), torch.tensor([2, 0, 1, 2])
    found = MaskRenderer(6, 3, 40)(
        lambda points: masks_of_class(predict_all(points), classes), boxes
    )
    first = predict_all(generate_regular_grid_point_coords(4, 6, "cpu", torch.float64))
    expected = subdivide(
        first.unflatten(2, (6, 6)),
        predict_all,
        lambda logits: calculate_uncertainty(logits, classes),
        steps=3,
        num_points=40,
    )
    assert found.shape == (4, 1, 48, 48)
    torch.testing.assert_close(found[:, 0], masks_of_class(expected, classes))


def test_no_boxes_have_no_masks():
    found = MaskRenderer(4, 2, 9)(lambda points: points[..., 0], torch.zeros(0, 4))
    assert found.shape == (0, 1, 16, 16)


def test_a_head_of_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match=r"POINT_HEAD\.NAME 'X' is unknown; known: StandardPoint"):
        PointHeadConfig(name="X").build(4, 3)
