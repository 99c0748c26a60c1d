import pytest
import torch

from segdet.checkpoint.loading import load_weights
from segdet.errors import ConfigError
from segdet.modeling import build_model
from segdet.modeling.meta_arch.pointrend import CoarseMaskHead
from segdet.structures import Boxes, Detections, Proposals


@pytest.fixture
def cfg(tiny_cfg):
    torch.manual_seed(0)
    return tiny_cfg("PointRend")


@pytest.fixture
def pixels(image_for):
    return image_for("PointRend")


def features_and_boxes(model, *images: dict) -> tuple[dict, list[torch.Tensor]]:
    features = model.backbone(model.preprocess_image(list(images)).tensor)
    boxes = [torch.tensor([[2.0, 3, 60, 50], [10, 10, 14, 13]]) for _ in images]
    return features, boxes


@torch.no_grad()
def test_regions_of_any_size_take_the_finest_map_alone(cfg, pixels):
    cfg.merge_from_list(["MODEL.ROI_MASK_HEAD.CONV_DIM", 8])  # fewer than the map's channels
    model = build_model(cfg).eval()
    features, boxes = features_and_boxes(model, pixels(), pixels())
    boxes[1] = torch.tensor([[0.0, 0, 640, 640]])  # which RoIAlign would pool from p4
    classes = torch.tensor([0, 1, 2])
    head = model.roi_heads.mask_head
    masks = head.predict(features, boxes, classes)
    assert masks.shape == (3, 1, 56, 56)
    others = {name: map + 1 for name, map in features.items() if name != "p2"}
    assert torch.equal(head.predict(features | others, boxes, classes), masks)


@torch.no_grad()
def test_the_pooled_grid_is_of_points_not_of_areas(cfg, pixels):
    model = build_model(cfg).eval()
    features, boxes = features_and_boxes(model, pixels())
    height, width = features["p2"].shape[-2:]
    x, y = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
    features["p2"] = torch.stack((x, y)).float()[None]
    pooled = model.roi_heads.mask_head.pooler(features, [boxes[0][:1]])  # (1, 2, 14, 14)
    centres = (torch.arange(14) + 0.5) / 14
    expected_x = (2 + centres * 58) / 4 - 0.5  # of the map, whose cells are 4 pixels
    expected_y = (3 + centres * 47) / 4 - 0.5
    torch.testing.assert_close(pooled[0, 0], expected_x.clamp(max=width - 1).expand(14, 14))
    torch.testing.assert_close(pooled[0, 1], expected_y[:, None].expand(14, 14))


def fg_of(image: dict, *boxes: tuple[float, ...]) -> list[Proposals]:
    count = len(boxes)
    return [
        Proposals(
            image["instances"].image_size,
            proposal_boxes=Boxes(torch.tensor(boxes)),
            gt_classes=torch.zeros(count, dtype=torch.int64),
            gt_index=torch.zeros(count, dtype=torch.int64),
        )
    ]


def test_points_train_the_coarse_head_too(cfg, pixels):
    model = build_model(cfg).train()
    one = pixels((5, 5, 40, 50))
    features, _ = features_and_boxes(model, one)
    head = model.roi_heads.mask_head
    torch.nn.init.normal_(head.point_head.predictor.weight)
    losses = head.losses(features, fg_of(one, (4.0, 6, 44, 48)), [one["instances"]])
    losses["loss_mask_point"].backward()
    assert head.coarse_head.prediction.weight.grad.abs().sum() > 0
    assert head.point_head.fc1.weight.grad.abs().sum() > 0


def test_losses_repeat_with_the_seed(cfg, pixels):
    model = build_model(cfg).train()
    one = pixels((5, 5, 40, 50))
    for part in model.roi_heads.mask_head.modules():
        if isinstance(part, (torch.nn.Conv1d, torch.nn.Linear)):
            torch.nn.init.normal_(part.weight, std=0.1)

    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        return model([one])["loss_mask_point"].item()

    assert loss(1) == loss(1) != loss(2)


@pytest.mark.parametrize("coarse, points", [(True, True), (True, False), (False, True)])
def test_class_agnostic_masks(cfg, pixels, coarse, points):
    cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = coarse
    cfg.MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK = points
    model = build_model(cfg)
    head = model.roi_heads.mask_head
    assert head.coarse_head.prediction.out_features == 7 * 7 * (1 if coarse else 3)
    assert head.point_head.predictor.out_channels == (1 if points else 3)
    losses = model([pixels((5, 5, 40, 50)), pixels()])
    losses.total().backward()
    assert losses["loss_mask_point"] > 0
    with torch.no_grad():
        found = model.eval()([pixels()])[0]["instances"]
    assert found.pred_masks.shape == (len(found), 128, 100)


def test_without_its_point_head_masks_stay_coarse(cfg, pixels):
    cfg.MODEL.ROI_MASK_HEAD.POINT_HEAD_ON = False
    model = build_model(cfg)
    assert not any("point_head" in name for name in model.state_dict())
    losses = model([pixels((5, 5, 40, 50))])
    assert "loss_mask" in losses and "loss_mask_point" not in losses
    features, boxes = features_and_boxes(model.eval(), pixels())
    masks = model.roi_heads.mask_head.predict(features, boxes, torch.tensor([0, 1]))
    assert masks.shape == (2, 1, 7, 7)


def test_boxes_alone(cfg, pixels):
    cfg.MODEL.MASK_ON = False
    model = build_model(cfg)
    assert "loss_mask" not in model([pixels((5, 5, 40, 50))])
    assert not model.eval()([pixels()])[0]["instances"].has("pred_masks")


def test_masks_can_be_predicted_for_given_boxes(cfg, pixels):
    model = build_model(cfg).eval()
    features, boxes = features_and_boxes(model, pixels())
    given = Detections((64, 80), pred_boxes=Boxes(boxes[0]), pred_classes=torch.tensor([1, 2]))
    (found,) = model.roi_heads.predict_masks(features, [given])
    assert found.pred_masks.shape == (2, 1, 56, 56)
    assert ((found.pred_masks > 0) & (found.pred_masks < 1)).all()


def test_polygons_are_refused_with_what_to_set(cfg, image):
    with pytest.raises(ConfigError, match=r"set INPUT\.MASK_FORMAT to bitmask"):
        build_model(cfg)([image((5, 5, 40, 50))])


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("POINT_HEAD.NUM_CLASSES", 80, "must be ROI_HEADS.NUM_CLASSES, are 80 and 3"),
        ("POINT_HEAD.IN_FEATURES", ("p6",), "POINT_HEAD.IN_FEATURES must be of ROI_HEADS.IN_F"),
        ("ROI_MASK_HEAD.IN_FEATURES", (), "ROI_MASK_HEAD.IN_FEATURES must be of ROI_HEADS.IN_F"),
        ("ROI_MASK_HEAD.POOLER_RESOLUTION", 7, "POOLER_RESOLUTION must be even and >= 2, is 7"),
    ],
)
def test_settings_that_do_not_fit_are_refused(cfg, key, value, message):
    cfg.merge_from_list([f"MODEL.{key}", value])
    with pytest.raises(ConfigError, match=message):
        build_model(cfg)


def test_features_of_several_maps_are_joined(cfg, pixels):
    cfg.MODEL.POINT_HEAD.IN_FEATURES = cfg.MODEL.ROI_MASK_HEAD.IN_FEATURES = ("p2", "p4")
    model = build_model(cfg)
    assert model.roi_heads.mask_head.point_head.fc1.in_channels == 2 * 16 + 3
    assert model([pixels((5, 5, 40, 50))]).total().isfinite()


def test_names_of_the_coarse_head():
    head = CoarseMaskHead(12, 4, (3, 5, 5), conv_dim=8, fc_dim=6, num_fc=2)
    assert {n: list(p.shape) for n, p in head.named_parameters() if n.endswith("weight")} == {
        "reduce_channel_dim_conv.weight": [8, 12, 1, 1],
        "reduce_spatial_dim_conv.weight": [8, 8, 2, 2],
        "fc1.weight": [6, 32],
        "fc2.weight": [6, 6],
        "prediction.weight": [75, 6],
    }
    assert head(torch.rand(2, 12, 4, 4)).shape == (2, 3, 5, 5)
    narrow = CoarseMaskHead(4, 4, (9,), conv_dim=8, fc_dim=6, num_fc=0)
    assert not hasattr(narrow, "reduce_channel_dim_conv")
    assert narrow(torch.rand(2, 4, 4, 4)).shape == (2, 9)


def test_masks_start_at_a_half(cfg):
    torch.manual_seed(0)
    head = build_model(cfg).roi_heads.mask_head
    for predictor in (head.coarse_head.prediction, head.point_head.predictor):
        assert 0.0007 < predictor.weight.std() < 0.0013 and not predictor.bias.any()
    fc, conv = head.coarse_head.fc1.weight, head.coarse_head.reduce_spatial_dim_conv.weight
    bound = (3 / fc.shape[1]) ** 0.5  # Xavier's uniform; the convolutions are MSRA's normal
    assert 0.99 * bound < fc.abs().max() <= bound
    assert conv.std().item() == pytest.approx((2 / (conv.shape[0] * 4)) ** 0.5, rel=0.1)


def test_configs_of_the_first_release_mean_the_same_model(cfg, tmp_path):
    today = build_model(cfg).state_dict()
    cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE = "ROIAlignV2"
    (tmp_path / "old.yaml").write_text(
        "MODEL: {ROI_HEADS: {NAME: PointRendROIHeads}, ROI_MASK_HEAD: {NAME: CoarseMaskHead}}"
    )
    cfg.merge_from_file(tmp_path / "old.yaml")
    old = build_model(cfg).state_dict()
    assert {n: t.shape for n, t in today.items()} == {n: t.shape for n, t in old.items()}


def test_weights_of_the_first_release_load(cfg):
    torch.manual_seed(1)
    weights = build_model(cfg).state_dict()

    def old_name(name: str) -> str:
        name = name.replace("mask_head.coarse_head.fc", "mask_coarse_head.coarse_mask_fc")
        name = name.replace("mask_head.coarse_head", "mask_coarse_head")
        return name.replace("mask_head.point_head", "mask_point_head")

    old = {old_name(name): tensor for name, tensor in weights.items()}
    assert "roi_heads.mask_coarse_head.coarse_mask_fc1.weight" in old
    assert "roi_heads.mask_point_head.fc1.weight" in old
    torch.manual_seed(2)
    model = build_model(cfg)
    report = load_weights(model, old, file="old.pkl", strict=True)
    assert report.renamed["roi_heads.mask_head.point_head.fc1.weight"] == (
        "roi_heads.mask_point_head.fc1.weight"
    )
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
