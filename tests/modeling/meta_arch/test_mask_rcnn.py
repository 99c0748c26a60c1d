"""Every system passes the same checks; a system adds its section and what is special to it."""

import pytest
import torch

from segdet.config import get_cfg
from segdet.errors import ConfigError
from segdet.modeling import SYSTEMS, build_model
from segdet.modeling.meta_arch import system_name
from segdet.structures import Boxes, PolygonMasks, Targets

TINY = {
    "MaskRCNN": [
        *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
        *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
        *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
        *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"], "MODEL.FPN.OUT_CHANNELS", 16),
        *("MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64], [128], [256]]),
        *("MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"]),
        *("MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
        *("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"]),
        *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1),
        *("MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7),
        *("MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16),
    ],
    "MaskRCNNC4": [
        *("MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32),
        *("MODEL.RESNETS.WIDTH_PER_GROUP", 8),
    ],
}
COMMON = [
    *("MODEL.DEVICE", "cpu", "MODEL.MASK_ON", True, "MODEL.ROI_HEADS.NUM_CLASSES", 3),
    *("MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0),
    *("MODEL.PIXEL_STD", [58.0, 58.0, 58.0], "TEST.DETECTIONS_PER_IMAGE", 7),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
]


def tiny_cfg(system: str):
    cfg = get_cfg()
    cfg.merge_from_list([*TINY[system], *COMMON])
    return cfg


def image(*boxes, size=(64, 80)):
    polygons = [[[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in boxes]
    targets = Targets(
        size,
        gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        gt_classes=torch.arange(len(boxes)) % 3,
        gt_masks=PolygonMasks(polygons),
    )
    pixels = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    return {"image": pixels, "instances": targets, "height": 128, "width": 100}


@pytest.fixture(params=sorted(SYSTEMS), scope="module")
def model(request):
    torch.manual_seed(0)
    return build_model(tiny_cfg(request.param))


def test_every_system_has_a_tiny_config():
    assert set(TINY) == set(SYSTEMS)


def test_losses_are_finite_and_reach_every_parameter(model):
    model.train().zero_grad()
    losses = model([image((5, 5, 40, 50), (20, 10, 60, 30)), image((0, 0, 30, 30), size=(80, 64))])
    assert set(losses) == {
        "loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask",
    }  # fmt: skip
    assert all(torch.isfinite(v) and v.ndim == 0 for v in losses.values())
    losses.total().backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without


def test_a_batch_without_objects_trains_every_parameter(model):
    model.train().zero_grad()
    losses = model([image(), image()])
    losses.total().backward()
    assert losses["loss_mask"].item() == losses["loss_box_reg"].item() == 0
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_losses_do_not_depend_on_the_training_flag(model):
    batch = [image((5, 5, 40, 50))]
    losses = model.eval().losses(model.preprocess_image(batch), model.read_targets(batch))
    assert losses.total() > 0


@torch.no_grad()
def test_detections_are_sorted_clipped_and_of_the_asked_size(model):
    results = model.eval()([image(), image(size=(50, 70))])
    for result in results:
        found = result["instances"]
        assert len(found) == 7 and found.image_size == (128, 100)
        assert (found.scores.diff() <= 0).all()
        boxes = found.pred_boxes.tensor
        assert (boxes >= 0).all() and (boxes <= torch.tensor([100, 128] * 2)).all()
        assert found.pred_masks.shape == (7, 128, 100) and found.pred_masks.dtype == torch.bool


@torch.no_grad()
def test_no_detections(model):
    heads = model.eval().roi_heads.box_predictor
    heads.score_thresh, before = 2.0, heads.score_thresh
    found = model([image()])[0]["instances"]
    heads.score_thresh = before
    assert len(found) == 0 and found.pred_masks.shape == (0, 128, 100)
    assert found.pred_classes.dtype == torch.int64


@torch.no_grad()
def test_an_image_gives_the_same_result_alone_and_in_a_batch(model):
    one, other = image(size=(64, 64)), image(size=(64, 64))
    alone = model.eval()([one])[0]["instances"]
    batched = model([other, one])[1]["instances"]
    torch.testing.assert_close(
        alone.pred_boxes.tensor, batched.pred_boxes.tensor, atol=1e-3, rtol=0
    )
    assert alone.pred_classes.tolist() == batched.pred_classes.tolist()


def test_weights_round_trip(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    missing = model.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
    assert not missing.missing_keys and not missing.unexpected_keys


def test_training_without_targets_is_named(model):
    with pytest.raises(ValueError, match=r"inputs of images \['a.jpg'\] have none"):
        model.train()([{"image": torch.zeros(3, 32, 32, dtype=torch.uint8), "image_id": "a.jpg"}])


def test_boxes_only():
    cfg = tiny_cfg("MaskRCNN")
    cfg.MODEL.MASK_ON = False
    model = build_model(cfg)
    assert "loss_mask" not in model([image((5, 5, 40, 50))])
    assert not model.eval()([image()])[0]["instances"].has("pred_masks")


def test_masks_train_on_refined_boxes_on_demand():
    cfg = tiny_cfg("MaskRCNN")
    cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES = True
    assert torch.isfinite(build_model(cfg)([image((5, 5, 40, 50))]).total())


def test_official_names_decide_the_system():
    assert system_name("GeneralizedRCNN", "StandardROIHeads") == "MaskRCNN"
    assert system_name("GeneralizedRCNN", "Res5ROIHeads") == "MaskRCNNC4"
    assert system_name("MaskRCNN", "") == "MaskRCNN"
    with pytest.raises(ConfigError, match=r"META_ARCHITECTURE 'Yolo' is unknown; known: Gen"):
        system_name("Yolo", "")
    with pytest.raises(ConfigError, match=r"ROI_HEADS.NAME 'X' is unknown"):
        system_name("GeneralizedRCNN", "X")


def test_a_feature_that_the_backbone_lacks_is_named():
    cfg = tiny_cfg("MaskRCNN")
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p9"]
    with pytest.raises(ConfigError, match=r"ROI_HEADS.IN_FEATURES: no feature 'p9'"):
        build_model(cfg)
