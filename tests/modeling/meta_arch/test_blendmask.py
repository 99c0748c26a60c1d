from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from segdet.errors import ConfigError, DataError
from segdet.modeling import build_model
from segdet.structures import BitMasks
from tests.modeling.test_fcos import SIZE, an_fcos, golden_targets, predictions

ROOT = Path(__file__).resolve().parents[3]
NAME = "BlendMask"


@pytest.fixture
def cfg(tiny_cfg):
    return tiny_cfg(NAME)


@pytest.mark.parametrize(
    "settings, said",
    [
        (["MODEL.MASK_ON", False], "needs PROPOSAL_GENERATOR.NAME FCOS and MASK_ON: True"),
        (["MODEL.PROPOSAL_GENERATOR.NAME", "RPN"], "needs PROPOSAL_GENERATOR.NAME FCOS and"),
        (["MODEL.FCOS.BOX_QUALITY", "iou"], "BOX_QUALITY must be ctrness, is 'iou'"),
        (["MODEL.FCOS.NUM_CLASSES", 4], "BASIS_MODULE.NUM_CLASSES is 3, FCOS.NUM_CLASSES is 4"),
    ],
)
def test_refuses_unusable_settings(cfg, settings, said):
    cfg.merge_from_list(settings)
    with pytest.raises(ConfigError, match=said):
        build_model(cfg)


def left_halves(boxes: torch.Tensor) -> BitMasks:
    masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.long().tolist(), strict=True):
        mask[y0:y1, x0 : (x0 + x1) // 2] = True
    return BitMasks(masks)


def masked_targets():
    targets = golden_targets()
    for one in targets:
        one.gt_masks = left_halves(one.gt_boxes.tensor)
    return targets


def test_golden_mask_loss(cfg):
    """Numbers of the official code: every location has the same attention, to the first basis."""
    cfg.merge_from_list(["MODEL.BLENDMASK.ATTN_SIZE", 2, "MODEL.BLENDMASK.BOTTOM_RESOLUTION", 8])
    model, targets = build_model(cfg), masked_targets()
    with torch.no_grad():
        model.top_layer.bias.copy_(torch.tensor([1.0] * 4 + [0.0] * 12))
    tower = [torch.zeros(2, 16, *x.shape[-2:]) for x in predictions().logits]
    _, objects = an_fcos().compare(predictions(2, tower=tower), targets, model.top_layer)
    bases = torch.zeros(2, 4, 64, 80)
    bases[:, 0], bases[:, 1], bases[:, 2] = torch.linspace(-2, 2, 80), 1, -1
    assert len(objects.features) == 38
    assert objects.centerness.sum().item() == pytest.approx(25.582674, abs=1e-5)
    losses = model.mask_loss(bases, objects, targets)
    assert losses["loss_mask"].item() == pytest.approx(0.835920, abs=1e-5)


def test_mask_loss_is_what_one_location_after_the_other_gives(cfg):
    cfg.MODEL.BLENDMASK.INSTANCE_LOSS_WEIGHT = 2.0
    model, targets = build_model(cfg), [masked_targets()[0][:0], *masked_targets()]
    tower = [torch.randn(3, 16, *x.shape[-2:]) for x in predictions().logits]
    _, objects = an_fcos().compare(predictions(3, tower=tower), targets, model.top_layer)
    bases = torch.randn(3, 4, 64, 80)
    owners = [(image, row) for image, t in enumerate(targets) for row in range(len(t))]
    total = 0.0
    for attention, gt, weight in zip(*objects, strict=True):
        image, row = owners[gt]
        box = targets[image].gt_boxes.tensor[row : row + 1]
        pooled = model.blender.pool(bases[image : image + 1], [box])
        maps = F.interpolate(attention.reshape(1, 4, 4, 4), size=8, mode="bilinear")
        logits = (maps.softmax(dim=1) * pooled).sum(dim=1)
        mask = targets[image].gt_masks[row].crop_and_resize(box, 8)
        total += weight * F.binary_cross_entropy_with_logits(logits, mask.float())
    losses = model.mask_loss(bases, objects, targets)
    expected = 2 * total / objects.centerness.sum()
    torch.testing.assert_close(losses["loss_mask"], expected)


def test_the_semantic_loss_can_be_off(cfg, image):
    cfg.MODEL.BASIS_MODULE.LOSS_ON = False
    model = build_model(cfg)
    assert not any("seg_head" in name for name, _ in model.named_parameters())
    assert "loss_basis_sem" not in model([image((5, 5, 40, 50))])


def test_label_maps_come_with_the_inputs_or_from_the_objects(cfg, image):
    model, one = build_model(cfg), image((8, 8, 40, 40), (24, 24, 56, 48))
    drawn = model.read_targets([one]).basis_sem
    assert drawn.shape == (1, 64, 96), "padded as the images are"
    assert drawn[0, [0, 16, 30, 44], [0, 16, 30, 44]].tolist() == [0, 1, 2, 2]
    assert not drawn[..., 80:].any(), "padding is background"
    one["basis_sem"] = torch.full((64, 80), 3)
    assert (model.read_targets([one]).basis_sem[..., :80] == 3).all()
    one["basis_sem"][0, 0], one["file_name"] = 4, "a.jpg"
    with pytest.raises(DataError, match=r"image a.jpg: `basis_sem` has labels \[4\]"):
        model.read_targets([one])


@torch.no_grad()
def test_nothing_found_has_masks_of_no_object(cfg, image):
    cfg.MODEL.FCOS.INFERENCE_TH_TEST = 2.0
    model = build_model(cfg).eval()
    for found in model.predict(model.preprocess_image([image(), image()])):
        assert found.pred_masks.shape == (0, 1, 8, 8)


@torch.no_grad()
def test_masks_are_blends_at_the_unclipped_boxes(cfg, image):
    model = build_model(cfg).eval()
    torch.nn.init.constant_(model.proposal_generator.fcos_head.bbox_pred.bias, 3.0)
    images = model.preprocess_image([image(), image()])
    features = model.backbone(images.tensor)
    bases = model.basis_module(features)
    boxes = model.proposal_generator.predict(images, features, model.top_layer)
    for i, (found, box) in enumerate(zip(model.predict(images), boxes, strict=True)):
        assert (found.pred_boxes.tensor < 0).any() and not found.has("top_feats")
        pooled = model.blender.pool(bases[i : i + 1], [found.pred_boxes.tensor])
        expected = model.blender(pooled, box.top_feats).sigmoid()
        torch.testing.assert_close(found.pred_masks[:, 0], expected)


@torch.no_grad()
def test_a_panoptic_one_has_instances_and_stuff_in_one_map(tiny_cfg, image):
    model = build_model(tiny_cfg("PanopticBlendMask")).eval()
    torch.nn.init.ones_(model.proposal_generator.fcos_head.bbox_pred.bias)
    assert any(name.startswith("panoptic_module.") for name in model.state_dict())
    (result,) = model([image()])
    segments, rows = result["panoptic_seg"]
    assert segments.shape == (128, 100) and result["sem_seg"].shape == (5, 128, 100)
    assert segments.unique().tolist() == [0] * bool((segments == 0).any()) + [
        row["id"] for row in rows
    ]
