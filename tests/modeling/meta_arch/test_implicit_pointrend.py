import math

import pytest
import torch
import torch.nn.functional as F

from segdet.errors import ConfigError
from segdet.modeling import build_model
from segdet.modeling.meta_arch.implicit_pointrend import ImplicitPointHead
from segdet.modeling.point_features import sample_point_labels
from segdet.structures import Boxes, Proposals


@pytest.fixture
def cfg(tiny_cfg):
    torch.manual_seed(0)
    return tiny_cfg("ImplicitPointRend")


@pytest.fixture
def pixels(image_for):
    return image_for("ImplicitPointRend")


def a_head(**settings) -> ImplicitPointHead:
    given = {"in_channels": 3, "num_masks": 2, "fc_dim": 5, "num_fc": 2, "encode_positions": True}
    return ImplicitPointHead(**(given | settings))


def test_the_official_perceptron_has_so_many_parameters():
    assert a_head(in_channels=256, num_masks=80, fc_dim=256, num_fc=3).num_params == 283_472


@pytest.mark.parametrize(
    "settings", [{}, {"encode_positions": False}, {"in_channels": 0}, {"num_fc": 0}]
)
def test_each_region_has_its_own_perceptron(settings):
    torch.manual_seed(0)
    head = a_head(**settings)
    features, points = torch.randn(2, 3, 4), torch.rand(2, 4, 2)
    params = torch.randn(2, head.num_params)
    found = head(features, points, params)
    assert found.shape == (2, 2, 4)
    for r in range(2):
        for p in range(4):
            parts = []
            if head.encode_positions:
                angles = (
                    2 * math.pi * (2 * points[r, p] - 1) @ head.positional_encoding_gaussian_matrix
                )
                parts += [angles.sin(), angles.cos()]
            if head.use_features:
                parts.append(features[r, :, p])
            x, left = torch.cat(parts), params[r]
            weights = []
            for shape in head.shapes:  # all weights stand before all biases
                weight, left = left[: math.prod(shape)], left[math.prod(shape) :]
                weights.append(weight.reshape(shape))
            for k, weight in enumerate(weights):
                bias, left = left[: len(weight)], left[len(weight) :]
                x = weight @ x + bias
                x = x.relu() if k < len(weights) - 1 else x
            torch.testing.assert_close(found[r, :, p], x, rtol=1e-4, atol=1e-3)
            assert len(left) == 0


def test_places_are_encoded_in_full_precision_under_autocast():
    head, points = a_head(), torch.rand(1, 50, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head.encode(points)
    torch.testing.assert_close(found, head.encode(points))


def test_frequencies_are_no_parameter_but_saved():
    head = a_head()
    assert not list(head.parameters())
    assert head.state_dict()["positional_encoding_gaussian_matrix"].shape == (2, 128)


def test_parameters_are_kept_small(cfg, pixels):
    cfg.MODEL.IMPLICIT_POINTREND.PARAMS_L2_REGULARIZER = 2.0
    model = build_model(cfg).train()
    bias = model.roi_heads.mask_head.parameter_head.prediction.bias
    torch.nn.init.zeros_(model.roi_heads.mask_head.parameter_head.prediction.weight)
    torch.nn.init.constant_(bias, 3.0)
    losses = model([pixels((5, 5, 40, 50))])
    assert losses["loss_l2"].item() == pytest.approx(2.0 * 9)


def test_point_loss_is_that_of_evenly_drawn_points(cfg, pixels):
    model = build_model(cfg).train()
    head = model.roi_heads.mask_head
    torch.nn.init.normal_(head.parameter_head.prediction.bias, std=0.1)
    one = pixels((5, 5, 40, 50))
    features = model.backbone(model.preprocess_image([one]).tensor)
    box = torch.tensor([[4.0, 6, 44, 48]])
    region = Proposals(
        (64, 80),
        proposal_boxes=Boxes(box),
        gt_classes=torch.tensor([1]),
        gt_index=torch.tensor([0]),
    )
    torch.manual_seed(3)
    losses = head.losses(features, [region], [one["instances"]])
    torch.manual_seed(3)
    points = torch.rand(1, 20, 2)
    params = head.parameter_head(head.pooler(features, [box]))
    logits = head.point_head(head.fine_features(features, [box], points), points, params)[:, 1]
    labels = sample_point_labels([region], [one["instances"]], points)
    expected = F.binary_cross_entropy_with_logits(logits, labels)
    torch.testing.assert_close(losses["loss_mask_point"], expected)
    assert set(losses) == {"loss_mask_point", "loss_l2"}


@torch.no_grad()
def test_masks_start_from_as_many_cells_as_a_step_predicts(cfg, pixels):
    cfg.MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS = 36
    model = build_model(cfg).eval()
    features = model.backbone(model.preprocess_image([pixels()]).tensor)
    boxes = [torch.tensor([[2.0, 3, 60, 50]])]
    masks = model.roi_heads.mask_head.predict(features, boxes, torch.tensor([1]))
    assert masks.shape == (1, 1, 12, 12)
    cfg.MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS = 37
    with pytest.raises(ConfigError, match="SUBDIVISION_NUM_POINTS must be a square, is 37"):
        build_model(cfg)


def test_points_need_features(cfg):
    cfg.MODEL.IMPLICIT_POINTREND.POS_ENC_ENABLED = False
    cfg.MODEL.IMPLICIT_POINTREND.IMAGE_FEATURE_ENABLED = False
    with pytest.raises(ConfigError, match="both off: points would have no features"):
        build_model(cfg)
