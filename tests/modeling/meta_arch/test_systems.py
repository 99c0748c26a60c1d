"""Every system passes the same checks; a system adds its section and what is special to it."""

import re

import pytest
import torch
from torch import nn

from segdet.errors import ConfigError
from segdet.modeling import SYSTEMS, GeneralizedRCNNWithTTA, build_model, meta_arch
from segdet.modeling.fcos_head import FCOSHead
from segdet.modeling.meta_arch import system_name
from segdet.structures import BitMasks, Boxes, Detections, Instances, PolygonMasks, Proposals

RPN_LOSSES = {"loss_rpn_cls", "loss_rpn_loc"}
MASK_RCNN_LOSSES = {*RPN_LOSSES, "loss_cls", "loss_box_reg", "loss_mask"}
CASCADE_LOSSES = {
    *RPN_LOSSES,
    *(f"loss_{kind}_stage{k}" for kind in ("cls", "box_reg") for k in range(3)),
    "loss_mask",
}
FCOS_LOSSES = {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}
CENTERMASK_LOSSES = {*FCOS_LOSSES, "loss_mask", "loss_maskiou"}
BLENDMASK_LOSSES = {*FCOS_LOSSES, "loss_mask", "loss_basis_sem"}
LOSSES = {
    "BlendMask": BLENDMASK_LOSSES,
    "PanopticBlendMask": {*BLENDMASK_LOSSES, "loss_sem_seg"},
    "MaskRCNN": MASK_RCNN_LOSSES,
    "MaskRCNNC4": MASK_RCNN_LOSSES,
    "CascadeRCNN": CASCADE_LOSSES,
    "FCIS": MASK_RCNN_LOSSES,
    "CenterMask": CENTERMASK_LOSSES,
    "FCOS": FCOS_LOSSES,
    "PanopticCenterMask": {*CENTERMASK_LOSSES, "loss_sem_seg"},
    "PanopticFPN": {*MASK_RCNN_LOSSES, "loss_sem_seg"},
    "CascadePanopticFPN": {*CASCADE_LOSSES, "loss_sem_seg"},
    "PointRend": {*MASK_RCNN_LOSSES, "loss_mask_point"},
    "ImplicitPointRend": {*RPN_LOSSES, "loss_cls", "loss_box_reg", "loss_mask_point", "loss_l2"},
    "PointRendSemSeg": {"loss_sem_seg", "loss_sem_seg_point"},
    "MaskScoringRCNN": {*MASK_RCNN_LOSSES, "loss_maskiou"},
    "ProposalNetwork": RPN_LOSSES,
    "RetinaNet": {"loss_cls", "loss_box_reg"},
    "RotatedRCNN": {*RPN_LOSSES, "loss_cls", "loss_box_reg"},
    "SemanticSegmentor": {"loss_sem_seg"},
    "YOLACT": {"loss_cls", "loss_box_reg", "loss_mask", "loss_semantic"},
}
WITH_BOXES = [
    name
    for name, losses in LOSSES.items()
    if {"loss_rpn_cls", "loss_cls", "loss_fcos_cls"} & losses
]
WITH_MASKS = [name for name, losses in LOSSES.items() if "loss_mask" in losses]
GRADING = ["CenterMask", "MaskScoringRCNN"]
SEMANTIC = [name for name, losses in LOSSES.items() if "loss_sem_seg" in losses]
NEED_AN_OBJECT = re.compile("loss_(box_reg|mask|rpn_loc|l2|fcos_loc|fcos_ctr)")


@pytest.fixture(params=sorted(SYSTEMS), scope="module")
def system(request):
    return request.param


@pytest.fixture(scope="module")
def image(system, image_for):
    return image_for(system)


@pytest.fixture(scope="module")
def model(system, tiny_cfg):
    torch.manual_seed(0)
    model = build_model(tiny_cfg(system))
    for part in model.modules():
        if isinstance(part, FCOSHead):
            nn.init.ones_(part.bbox_pred.bias)  # boxes have an extent, whatever the seed
    return model


def test_every_system_is_listed():
    assert set(LOSSES) == set(SYSTEMS)


def test_losses_are_finite_and_reach_every_parameter(system, model, image):
    model.train().zero_grad()
    losses = model([image((5, 5, 40, 50), (20, 10, 60, 30)), image((0, 0, 30, 30), size=(80, 64))])
    assert set(losses) == LOSSES[system]
    assert all(torch.isfinite(v) and v.ndim == 0 for v in losses.values())
    losses.total().backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without


def test_a_batch_without_objects_trains_every_parameter(model, image):
    model.train().zero_grad()
    losses = model([image(), image()])
    losses.total().backward()
    assert not any(losses[name].item() for name in losses if NEED_AN_OBJECT.match(name))
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_losses_do_not_depend_on_the_training_flag(model, image):
    batch = [image((5, 5, 40, 50))]
    losses = model.eval().losses(model.preprocess_image(batch), model.read_targets(batch))
    assert losses.total() > 0


def boxes_and_scores(found: Instances) -> tuple[torch.Tensor, torch.Tensor]:
    if found.has("proposal_boxes"):
        return found.proposal_boxes.tensor, found.objectness_logits
    return found.pred_boxes.tensor, found.scores


def numbers(result: dict) -> list[torch.Tensor]:
    """What a result holds for an image."""
    found = [one for one in result.values() if isinstance(one, Instances)]
    maps = [result["sem_seg"]] if "sem_seg" in result else []
    return [*maps, *(one for each in found for one in boxes_and_scores(each))]


@pytest.mark.parametrize("system", WITH_BOXES, indirect=True)
@torch.no_grad()
def test_results_are_sorted_clipped_and_of_the_asked_size(model, image):
    results = model.eval()([image(), image(size=(50, 70))])
    for result in results:
        found = result[model.result]
        boxes, scores = boxes_and_scores(found)
        assert 0 < len(found) <= 7 and found.image_size == (128, 100)
        assert (scores.diff() <= 0).all()
        if boxes.shape[1] == 4:  # what is turned is not clipped
            assert (boxes >= 0).all() and (boxes <= torch.tensor([100, 128] * 2)).all()
        if found.has("pred_masks"):
            assert found.pred_masks.shape == (len(found), 128, 100)
            assert found.pred_masks.dtype == torch.bool


@torch.no_grad()
def test_half_precision_sees_nearly_the_same(system, tiny_cfg, image):
    cfg = tiny_cfg(system)

    def maps() -> dict[str, torch.Tensor]:
        seen: dict[str, torch.Tensor] = {}
        torch.manual_seed(0)
        model = build_model(cfg).eval()
        model.backbone.register_forward_hook(lambda _, __, maps: seen.update(maps))
        assert model.result in model([image()])[0]
        return seen

    whole = maps()
    cfg.TEST.AMP.ENABLED = True
    half = maps()
    assert all(half[level].dtype == torch.bfloat16 for level in whole)
    assert all((half[i] - whole[i]).abs().max() < 0.1 * whole[i].abs().max() for i in whole)


@pytest.mark.parametrize("system", WITH_BOXES, indirect=True)
@torch.no_grad()
def test_no_detections(system, tiny_cfg, image):
    cfg = tiny_cfg(system)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 2.0
    cfg.MODEL.FCOS.INFERENCE_TH_TEST = 2.0
    cfg.MODEL.YOLACT.SCORE_THRESH_TEST = 2.0
    cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE = 10_000  # no proposals, of which no system makes more
    model = build_model(cfg).eval()
    found = model([image()])[0][model.result]
    assert len(found) == 0
    assert not found.has("pred_masks") or found.pred_masks.shape == (0, 128, 100)
    assert not found.has("pred_classes") or found.pred_classes.dtype == torch.int64


@torch.no_grad()
def test_an_image_gives_the_same_result_alone_and_in_a_batch(model, image):
    one, other = image(size=(64, 64)), image(size=(64, 64))
    alone = numbers(model.eval()([one])[0])
    batched = numbers(model([other, one])[1])
    torch.testing.assert_close(alone, batched, atol=1e-3, rtol=0)


@pytest.mark.parametrize("system", WITH_MASKS, indirect=True)
@pytest.mark.parametrize("is_bitmask", [False, True])
def test_objects_of_a_pixel_and_less_train(model, image, is_bitmask):
    one = image((5, 5, 6, 6), (20.3, 10.2, 20.9, 10.7), (0, 0, 80, 64), (79, 63, 80, 64))
    masks = one["instances"].gt_masks
    if is_bitmask and isinstance(masks, PolygonMasks):
        one["instances"].gt_masks = BitMasks.from_polygon_masks(masks, 64, 80)
    model.train().zero_grad()
    losses = model([one, image()])
    losses.total().backward()
    assert losses.total().isfinite() and losses["loss_mask"] > 0
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("system", GRADING, indirect=True)
@pytest.mark.parametrize("proposals", [[], [[9.0, 9, 9, 30], [200, 200, 200, 200]]])
@pytest.mark.parametrize("objects", [(), ((5, 5, 40, 50),)])
def test_without_foreground_masks_and_their_grades_train(
    system, tiny_cfg, image, proposals, objects
):
    cfg = tiny_cfg(system)
    cfg.MODEL.ROI_HEADS.PROPOSAL_APPEND_GT = False
    model, batch = build_model(cfg), [image(*objects)]
    features = model.backbone(model.preprocess_image(batch).tensor)
    boxes = Boxes(torch.tensor(proposals).reshape(-1, 4))
    logits = torch.zeros(len(boxes))
    found = Proposals((64, 80), proposal_boxes=boxes, objectness_logits=logits)
    losses = model.roi_heads.losses(features, [found], model.read_targets(batch))
    losses.total().backward()
    assert losses["loss_maskiou"] == losses["loss_mask"] == 0 and losses.total().isfinite()
    assert all(p.grad is not None for p in model.roi_heads.parameters())
    detections = Detections((64, 80), pred_boxes=boxes, scores=logits, pred_classes=logits.long())
    (graded,) = model.roi_heads.predict_masks(features, [detections])
    assert graded.mask_scores.isfinite().all() and len(graded) == len(boxes)


@pytest.mark.parametrize("system", GRADING, indirect=True)
@torch.no_grad()
def test_grades_of_views_are_averaged(system, model, tiny_cfg, image, monkeypatch):
    cfg, views, heads = tiny_cfg(system), [], model.eval().roi_heads
    cfg.merge_from_list(["TEST.AUG.MIN_SIZES", (64,), "TEST.AUG.FLIP", True])

    def recorded(features, detections):
        found = type(heads).predict_masks(heads, features, detections)
        views.extend(one.mask_scores for one in found if one.has("mask_scores"))
        return found

    monkeypatch.setattr(heads, "predict_masks", recorded)
    found = GeneralizedRCNNWithTTA(cfg, model)([image()])[0]["instances"]
    assert len(views) == 2 and found.mask_scores.isfinite().all()
    expected = (views[0] + views[1]) / 2
    assert len(found) > 0 and all((expected - s).abs().min() < 1e-6 for s in found.mask_scores)


@pytest.mark.parametrize("system", SEMANTIC, indirect=True)
@torch.no_grad()
def test_semantic_logits_have_the_asked_size(model, image):
    for result in model.eval()([image(), image(size=(50, 70))]):
        assert result["sem_seg"].shape == (5, 128, 100)
        assert result["sem_seg"].dtype == torch.float32 and result["sem_seg"].isfinite().all()


@pytest.mark.parametrize("system", SEMANTIC, indirect=True)
def test_an_image_without_labels_trains_every_parameter(model, image):
    model.train().zero_grad()
    unlabelled = image()
    unlabelled["sem_seg"] = torch.full_like(unlabelled["sem_seg"], 255)
    losses = model([unlabelled])
    losses.total().backward()
    assert losses["loss_sem_seg"] == 0 and losses.total().isfinite()
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters)


def test_weights_round_trip(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    missing = model.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
    assert not missing.missing_keys and not missing.unexpected_keys


def test_training_without_targets_is_named(model):
    with pytest.raises(ValueError, match=r"inputs of images \['a.jpg'\] have none"):
        model.train()([{"image": torch.zeros(3, 32, 32, dtype=torch.uint8), "image_id": "a.jpg"}])


def test_official_names_decide_the_system():
    def named(architecture: str, roi_heads: str, mask_head: str = "") -> str:
        keys = {"MODEL.META_ARCHITECTURE": architecture, "MODEL.ROI_HEADS.NAME": roi_heads}
        keys["MODEL.ROI_MASK_HEAD.NAME"] = mask_head
        return system_name(keys)

    assert named("GeneralizedRCNN", "StandardROIHeads") == "MaskRCNN"
    assert named("GeneralizedRCNN", "Res5ROIHeads") == "MaskRCNNC4"
    assert named("GeneralizedRCNN", "CascadeROIHeads") == "CascadeRCNN"
    assert named("MaskRCNN", "") == "MaskRCNN"
    assert named("RetinaNet", "Res5ROIHeads") == "RetinaNet"
    assert named("GeneralizedRCNN", "PointRendROIHeads") == "PointRend"
    assert named("GeneralizedRCNN", "StandardROIHeads", "PointRendMaskHead") == "PointRend"
    assert named("SemanticSegmentor", "Res5ROIHeads") == "SemanticSegmentor"
    assert named("PanopticFPN", "StandardROIHeads") == "PanopticFPN"
    assert named("PanopticFPN", "CascadeROIHeads") == "CascadePanopticFPN"
    assert named("GeneralizedRCNN", "CenterROIHeads") == "CenterMask"
    assert named("PanopticFPN", "CenterROIHeads") == "PanopticCenterMask"
    scored = {"MODEL.META_ARCHITECTURE": "GeneralizedRCNN", "MODEL.MASKIOU_ON": True}
    assert system_name(scored | {"MODEL.ROI_HEADS.NAME": "StandardROIHeads"}) == "MaskScoringRCNN"
    with pytest.raises(ConfigError, match=r"META_ARCHITECTURE 'Yolo' is unknown; known: Gen"):
        named("Yolo", "")
    with pytest.raises(ConfigError, match=r"ROI_HEADS.NAME 'X' is unknown; known: StandardROI"):
        named("GeneralizedRCNN", "X")
    with pytest.raises(ConfigError, match=r"ROI_HEADS.NAME 'X' is unknown; known: StandardROI"):
        named("PanopticFPN", "X")


def test_a_row_of_a_plugin_may_leave_the_architecture_out(monkeypatch):
    row = ({"MODEL.ROI_HEADS.NAME": "Own"}, "MaskRCNN")
    monkeypatch.setattr(meta_arch, "OFFICIAL_NAMES", [row, *meta_arch.OFFICIAL_NAMES])
    keys = {"MODEL.META_ARCHITECTURE": "GeneralizedRCNN", "MODEL.ROI_HEADS.NAME": "X"}
    assert system_name(keys | {"MODEL.ROI_HEADS.NAME": "Own"}) == "MaskRCNN"
    with pytest.raises(ConfigError, match=r"ROI_HEADS.NAME 'X' is unknown; known: StandardROI"):
        system_name(keys)
    with pytest.raises(ConfigError, match=r"'Yolo' is unknown; known: GeneralizedRCNN, Pan"):
        system_name(keys | {"MODEL.META_ARCHITECTURE": "Yolo"})


@pytest.mark.parametrize(
    "settings, said",
    [
        (["MODEL.ROI_HEADS.NAME", "CascadeROIHeads"], "CascadeRCNN has no MaskIoU head; it stands"),
        (["MODEL.ROI_HEADS.NAME", "Res5ROIHeads"], "MASKIOU_ON is True, but MaskRCNNC4 has no"),
        (["MODEL.META_ARCHITECTURE", "PanopticFPN"], "but PanopticFPN has no"),
        (["MODEL.META_ARCHITECTURE", "CascadeRCNN"], "but CascadeRCNN has no"),
        (
            ["MODEL.ROI_MASK_HEAD.NAME", "PointRendMaskHead"],
            "NAME 'PointRendMaskHead' means PointRend, MODEL.MASKIOU_ON True means MaskScoringRCNN",
        ),
    ],
)
def test_a_maskiou_head_is_not_dropped_in_silence(settings, said, tiny_cfg):
    cfg = tiny_cfg("MaskScoringRCNN")
    cfg.merge_from_list(settings)
    with pytest.raises(ConfigError, match=said):
        build_model(cfg)


def test_under_autocast_losses_and_results_are_finite(model, image):
    model.train().zero_grad()
    batch = [image((5, 5, 40, 50), (20, 10, 60, 30))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(batch)
    losses.total().backward()
    assert all(one.isfinite() for one in losses.values())
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(one.isfinite().all() for one in gradients)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        (result,) = model.eval()(batch)
    found = numbers(result)
    assert found and all(one.isfinite().all() for one in found)
