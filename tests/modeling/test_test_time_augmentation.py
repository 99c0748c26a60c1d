import pytest
import torch
from PIL import Image
from torch import nn

from segdet.config import get_cfg
from segdet.errors import ConfigError
from segdet.modeling import DatasetMapperTTA, GeneralizedRCNNWithTTA, build_model
from segdet.structures import Boxes, Detections

TINY = [
    *("MODEL.DEVICE", "cpu", "MODEL.MASK_ON", True, "MODEL.ROI_HEADS.NUM_CLASSES", 3),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", 8, "MODEL.RESNETS.NORM", "BN"),
    *("MODEL.PIXEL_STD", [58.0, 58.0, 58.0], "TEST.DETECTIONS_PER_IMAGE", 5),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.AUG.MIN_SIZES", (64,)),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", 20, "TEST.AUG.FLIP", False),
]


@pytest.fixture
def cfg():
    cfg = get_cfg()
    cfg.merge_from_list(TINY)
    return cfg


@pytest.fixture
def model(cfg):
    return build_model(cfg).eval()


def record(height=64, width=80):
    pixels = torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8)
    return {"image": pixels, "height": height, "width": width}


def test_one_view_gives_the_models_own_results(cfg, model):
    x = record(96, 120)
    (own,), (tta,) = model([x]), GeneralizedRCNNWithTTA(cfg, model)([x])
    own, tta = own["instances"], tta["instances"]
    torch.testing.assert_close(tta.scores, own.scores)
    torch.testing.assert_close(tta.pred_boxes.tensor, own.pred_boxes.tensor, atol=1e-3, rtol=1e-4)
    assert tta.pred_classes.tolist() == own.pred_classes.tolist()
    assert tta.pred_masks.shape == own.pred_masks.shape == (len(own), 96, 120)
    assert (tta.pred_masks != own.pred_masks).float().mean() < 1e-3
    assert model.roi_heads.mask_head is not None


def test_views_agree_on_box_and_mask(cfg, model, monkeypatch):
    """A model that finds the white rectangle, and says that its left half is the object."""
    scores = iter([0.5, 0.6, 0.9, 0.7])

    def predict(images):
        found = []
        for image, size in zip(images.tensor, images.image_sizes, strict=True):
            ys, xs = torch.nonzero(image[0] > 1, as_tuple=True)
            box = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()
            one = Detections(size, pred_boxes=Boxes(box[None]))
            one.scores = torch.tensor([next(scores)])
            one.pred_classes = torch.tensor([2])
            found.append(one)
        return found

    def predict_masks(features, detections):
        for k, one in enumerate(detections):
            # In the mirrored view, the second of each size, the left half is the right one.
            left = torch.zeros(1, 1, 8, 8)
            left[..., :4] = 1
            one.pred_masks = left.flip(3) if is_mirrored[k + len(seen)] else left
        seen.extend(detections)
        return detections

    seen, is_mirrored = [], [False, True, False, True]
    monkeypatch.setattr(model, "predict", predict)
    monkeypatch.setattr(model.roi_heads, "predict_masks", predict_masks)
    cfg.merge_from_list(["TEST.AUG.MIN_SIZES", (64, 128), "TEST.AUG.FLIP", True])
    image = torch.zeros(3, 64, 80, dtype=torch.uint8)
    image[:, 8:24, 40:72] = 255
    (found,) = GeneralizedRCNNWithTTA(cfg, model, batch_size=3)(
        [{"image": image, "height": 128, "width": 160}]
    )
    found = found["instances"]
    assert found.scores.tolist() == pytest.approx([0.9]) and found.pred_classes.tolist() == [2]
    torch.testing.assert_close(
        found.pred_boxes.tensor, torch.tensor([[80.0, 16, 144, 48]]), atol=1.5, rtol=0
    )
    assert len(seen) == 4 and found.image_size == (128, 160)
    mask = found.pred_masks[0]
    assert mask[20:44, 84:108].all() and not mask[20:44, 116:].any() and not mask[:, :76].any()


def test_images_may_be_read_and_masks_may_be_off(cfg, tmp_path):
    Image.new("RGB", (80, 64), "red").save(tmp_path / "a.png")
    cfg.MODEL.MASK_ON = False
    tta = GeneralizedRCNNWithTTA(cfg, build_model(cfg).eval())
    seen = []
    tta.tta_mapper = lambda x: seen.append(x) or DatasetMapperTTA(cfg)(x)
    found = tta([{"file_name": str(tmp_path / "a.png")}])[0]["instances"]
    assert found.image_size == (64, 80) and not found.has("pred_masks")
    assert seen[0]["image"][:, 0, 0].tolist() == [0, 0, 255]  # INPUT.FORMAT is BGR


def test_an_error_leaves_the_mask_head_in_its_place(cfg, model, monkeypatch):
    head = model.roi_heads.mask_head
    monkeypatch.setattr(model, "predict", lambda images: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        GeneralizedRCNNWithTTA(cfg, model)([record()])
    assert model.roi_heads.mask_head is head


def test_what_it_does_not_work_with_is_refused(cfg, model):
    with pytest.raises(ConfigError, match="is for R-CNNs, the model is a Linear"):
        GeneralizedRCNNWithTTA(cfg, nn.Linear(1, 1))
    cfg.MODEL.KEYPOINT_ON = True
    with pytest.raises(ConfigError, match=r"does not work with MODEL\.KEYPOINT_ON"):
        GeneralizedRCNNWithTTA(cfg, model)


def test_rotated_boxes_are_refused(cfg):
    cfg.merge_from_list(
        [
            *("MODEL.ROI_HEADS.NAME", "RROIHeads", "MODEL.PROPOSAL_GENERATOR.NAME", "RRPN"),
            *("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignRotated", "MODEL.MASK_ON", False),
            *("MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator"),
            *("MODEL.RPN.BBOX_REG_WEIGHTS", (1, 1, 1, 1, 1)),
            *("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", (10, 10, 5, 5, 1)),
            *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1),
        ]
    )
    with pytest.raises(ConfigError, match="does not move rotated boxes"):
        GeneralizedRCNNWithTTA(cfg, build_model(cfg))


def test_heads_with_detectron2s_call_alone_are_refused(cfg, model):
    class TheirHeads(nn.Module):
        """Registered ones."""

    model.roi_heads = TheirHeads()
    with pytest.raises(ConfigError, match="masks of given boxes, which TheirHeads cannot say"):
        GeneralizedRCNNWithTTA(cfg, model)
