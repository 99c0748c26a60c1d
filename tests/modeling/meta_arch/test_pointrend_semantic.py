import pytest
import torch
import torch.nn.functional as F

from segdet.errors import ConfigError
from segdet.modeling import build_model
from segdet.modeling.meta_arch.pointrend_semantic import calculate_uncertainty, sample_nearest


@pytest.fixture
def cfg(tiny_cfg):
    torch.manual_seed(0)
    return tiny_cfg("PointRendSemSeg")


def test_uncertainty_is_how_close_the_second_best_class_comes():
    logits = torch.tensor([[[3.0, 0.0], [1.0, 5.0], [2.0, 4.5]]])  # (1, 3 classes, 2 points)
    assert calculate_uncertainty(logits).tolist() == [[[-1.0, -0.5]]]


def test_labels_are_those_of_the_pixels():
    torch.manual_seed(0)
    labels, points = torch.randint(0, 255, (2, 6, 9)), torch.rand(2, 50, 2)
    grid = (2 * points - 1)[:, :, None]
    expected = F.grid_sample(labels.float()[:, None], grid, mode="nearest", align_corners=False)
    assert torch.equal(sample_nearest(labels, points), expected[:, 0, :, 0].long())
    corner = torch.ones(2, 1, 2)
    assert torch.equal(sample_nearest(labels, corner), labels[:, -1:, -1])


def test_padding_and_unlabelled_pixels_are_in_no_loss(cfg, image):
    model = build_model(cfg).train()
    head = model.sem_seg_head
    # All points in the upper tenth of the images, which has no label.
    head.sample_points = lambda coarse, _: torch.full((len(coarse), 4, 2), 0.05)
    losses = model([image(), image()])
    assert losses["loss_sem_seg_point"] == 0 and losses["loss_sem_seg"] > 0
    assert losses["loss_sem_seg_point"].requires_grad


def test_the_point_loss_has_no_weight(cfg, image):
    one = image()
    losses = []
    for weight in (1.0, 3.0):
        cfg.MODEL.SEM_SEG_HEAD.LOSS_WEIGHT = weight
        torch.manual_seed(0)
        losses.append(build_model(cfg).train()([one]))
    first, weighted = losses
    torch.testing.assert_close(weighted["loss_sem_seg"], 3 * first["loss_sem_seg"])
    torch.testing.assert_close(weighted["loss_sem_seg_point"], first["loss_sem_seg_point"])


@torch.no_grad()
@pytest.mark.parametrize("names", [("p2",), ("p2", "p3")])
def test_points_everywhere_make_every_pixel_the_point_heads(cfg, image, names):
    cfg.MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS = 100_000
    cfg.MODEL.POINT_HEAD.IN_FEATURES = names  # several are joined by channel
    model = build_model(cfg).eval()
    torch.nn.init.normal_(model.sem_seg_head.point_head.predictor.weight)
    images = model.preprocess_image([image(size=(50, 70)), image(size=(64, 64))])
    features = model.backbone(images.tensor)
    logits = model.sem_seg_head.predict(features)
    assert logits.shape == (2, 5, 64, 96)
    coarse = model.sem_seg_head.layers(features)
    fine = torch.cat(
        [F.interpolate(features[name], (64, 96), mode="bilinear") for name in names], 1
    )
    coarse = F.interpolate(coarse, (64, 96), mode="bilinear")
    expected = model.sem_seg_head.point_head(fine.flatten(2), coarse.flatten(2)).view_as(logits)
    inner = (..., slice(8, 56), slice(8, 88))  # samples at a map's border fade to zero
    torch.testing.assert_close(logits[inner], expected[inner], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_pixels_that_are_certain_stay_as_the_coarse_logits_have_them(cfg, image):
    cfg.MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS = 10
    model = build_model(cfg).eval()
    features = model.backbone(model.preprocess_image([image()]).tensor)
    coarse = model.sem_seg_head.layers(features)
    doubled = coarse
    for _ in range(2):
        doubled = F.interpolate(doubled, scale_factor=2, mode="bilinear", align_corners=False)
    changed = (model.sem_seg_head.predict(features) - doubled).abs().amax(dim=1) > 1e-5
    # 10 cells of the first step, each of which reaches 4 x 4 pixels, and 10 of the second.
    assert 10 <= changed.sum() <= 10 * 16 + 10


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("POINT_HEAD.NUM_CLASSES", 19, "must be SEM_SEG_HEAD.NUM_CLASSES, are 19 and 5"),
        ("POINT_HEAD.SUBDIVISION_STEPS", 3, r"2\*\*3 is not 4"),
        ("POINT_HEAD.COARSE_SEM_SEG_HEAD_NAME", "X", "COARSE_SEM_SEG_HEAD_NAME 'X' is unknown"),
    ],
)
def test_settings_that_do_not_fit_are_refused(cfg, key, value, message):
    cfg.merge_from_list([f"MODEL.{key}", value])
    with pytest.raises(ConfigError, match=message):
        build_model(cfg)


def test_one_class_is_refused(cfg):
    cfg.MODEL.POINT_HEAD.NUM_CLASSES = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 1
    with pytest.raises(ConfigError, match="NUM_CLASSES must be >= 2, is 1"):
        build_model(cfg)
