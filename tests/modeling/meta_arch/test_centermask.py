from pathlib import Path

import pytest
import torch

from segdet.data.demo import make_demo_dataset
from segdet.engine import DefaultTrainer
from segdet.errors import ConfigError
from segdet.layers import ModulatedDeformConv
from segdet.modeling import build_model, maskiou_head
from segdet.modeling.maskiou_head import outline_shares
from segdet.structures import Boxes, Detections, Keypoints

ROOT = Path(__file__).resolve().parents[3]
NAME = "CenterMask"


@pytest.fixture
def cfg(tiny_cfg):
    return tiny_cfg(NAME)


def a_model(cfg):
    """A model that finds boxes with an extent."""
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.nn.init.constant_(model.proposal_generator.fcos_head.bbox_pred.bias, 2.0)
    return model


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("PROPOSAL_GENERATOR.NAME", "RPN", "PROPOSAL_GENERATOR.NAME must be FCOS, is 'RPN'"),
        ("FCOS.NUM_CLASSES", 4, "FCOS.NUM_CLASSES and ROI_HEADS.NUM_CLASSES must be .* 4 and 3"),
        ("MASK_ON", False, "MASKIOU_ON grades masks: set MASK_ON to True"),
        ("ROI_MASK_HEAD.ASSIGN_CRITERION", "size", "ASSIGN_CRITERION must be area or ratio"),
    ],
)
def test_settings_that_do_not_fit_are_refused(cfg, key, value, message):
    cfg.merge_from_list([f"MODEL.{key}", value])
    with pytest.raises(ConfigError, match=message):
        build_model(cfg)


@torch.no_grad()
def test_boxes_are_fcoss(cfg, image):
    """Masks and their scores are all that the heads add; boxes keep their scores."""
    model = a_model(cfg).eval()
    images = model.preprocess_image([image(), image(size=(50, 70))])
    alone = model.proposal_generator.predict(images, model.backbone(images.tensor))
    for found, of_fcos in zip(model.predict(images), alone, strict=True):
        assert len(found) > 0 and found.pred_masks.shape == (len(found), 1, 28, 28)
        assert found.mask_scores.isfinite().all() and len(found.mask_scores) == len(found)
        assert torch.equal(found.pred_boxes.tensor, of_fcos.pred_boxes.tensor)
        assert torch.equal(found.scores, of_fcos.scores)


@torch.no_grad()
def test_mask_scores_follow_the_head(cfg, image):
    model = a_model(cfg).eval()
    last = model.roi_heads.maskiou_head.maskiou
    last.weight.zero_()
    last.bias.copy_(torch.tensor([0.5, -1.0, 2.0]))
    found = model([image()])[0]["instances"]
    torch.testing.assert_close(found.mask_scores, found.scores * last.bias[found.pred_classes])


def test_without_the_maskiou_head(cfg, image):
    cfg.MODEL.MASKIOU_ON = False
    model = a_model(cfg)
    assert not [name for name in model.state_dict() if "maskiou" in name]
    losses = model([image((5, 5, 40, 50))])
    assert "loss_maskiou" not in losses and losses["loss_mask"] > 0
    found = model.eval()([image()])[0]["instances"]
    assert found.has("pred_masks") and not found.has("mask_scores")


def test_without_masks_it_is_fcos(cfg, image):
    cfg.MODEL.MASK_ON = cfg.MODEL.MASKIOU_ON = False
    model = a_model(cfg)
    assert set(model([image((5, 5, 40, 50))])) == {
        "loss_fcos_cls",
        "loss_fcos_loc",
        "loss_fcos_ctr",
    }
    assert not model.eval()([image()])[0]["instances"].has("pred_masks")


@torch.no_grad()
def test_nothing_found_has_empty_fields(cfg, image):
    cfg.MODEL.FCOS.INFERENCE_TH_TEST = 2.0
    for result in a_model(cfg).eval()([image(), image()]):
        found = result["instances"]
        assert found.mask_scores.shape == (0,) and found.pred_masks.shape == (0, 128, 100)


@torch.no_grad()
def test_a_box_is_pooled_whole_and_from_the_level_of_its_share_of_the_image(cfg, image):
    """Of the image without its padding; and boxes are not clipped before."""
    model = a_model(cfg).eval()
    heads, seen = model.roi_heads, []
    levels = [torch.full((2, 16, 64 // s, 96 // s), float(s)) for s in (8, 16, 32)]
    heads.mask_head.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    found = [
        Detections(size, pred_boxes=Boxes(torch.tensor([box])), **one_object())
        for size, box in [((64, 96), [0.0, 0, 40, 40]), ((40, 60), [0.0, 0, 40, 40])]
    ]
    features = dict(zip(("p3", "p4", "p5"), levels, strict=True))
    heads.predict_masks(features, found)
    strides = [one.round().unique().tolist() for one in seen[0]]
    assert strides == [[16], [32]]  # they take 0.26 and 0.67 of their images
    wide = Detections(
        (64, 96), pred_boxes=Boxes(torch.tensor([[-60.0, 0, 40, 40]])), **one_object()
    )
    heads.predict_masks(features, [wide])
    assert seen[1].shape[-1] == 14 and (seen[1][..., :6] == 0).all()  # off the map
    assert (seen[1][..., 8:].round() == 32).all()  # with what is off, 0.65 of the image


def one_object() -> dict[str, torch.Tensor]:
    return {"scores": torch.ones(1), "pred_classes": torch.zeros(1, dtype=torch.int64)}


def test_the_loss_reaches_masks_and_backbone_through_the_maskiou_head(cfg, image):
    """As in the official code, masks are not detached; proposals are."""
    model = a_model(cfg)
    torch.nn.init.normal_(model.roi_heads.maskiou_head.maskiou.weight)
    model([image((5, 5, 40, 50))])["loss_maskiou"].backward()
    for part in (model.roi_heads.mask_head, model.backbone):
        grads = [p.grad for p in part.parameters() if p.grad is not None]
        assert grads and any(grad.any() for grad in grads)
    assert all(p.grad is None for p in model.proposal_generator.parameters())


def test_polygons_are_counted_by_their_outlines(cfg, image, monkeypatch):
    given = []

    def spy(proposals, targets, polygon_shares):
        given.append(polygon_shares)
        return torch.ones(sum(len(p) for p in proposals))

    monkeypatch.setattr(maskiou_head, "shares_inside", spy)
    a_model(cfg)([image((5, 5, 40, 50))])
    assert given == [outline_shares]


def test_a_deformable_head_is_deformable_in_its_whole_box_tower(cfg):
    """CenterMask2's rule; AdelaiDet's is the last of both towers."""
    cfg.merge_from_list(["MODEL.FCOS.USE_DEFORMABLE", True, "MODEL.FCOS.NUM_BOX_CONVS", 3])
    head = a_model(cfg).proposal_generator.fcos_head
    kinds = {
        name: sum(
            isinstance(one, ModulatedDeformConv) for one in head.get_submodule(name).modules()
        )
        for name in ("cls_tower", "bbox_tower")
    }
    assert kinds == {"cls_tower": 0, "bbox_tower": 3}


def test_keypoints_are_pooled_from_their_own_levels(cfg, image):
    cfg.merge_from_list(
        [
            *("MODEL.KEYPOINT_ON", True, "MODEL.ROI_KEYPOINT_HEAD.IN_FEATURES", ("p3", "p4")),
            *("MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 2),
            *("MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", (8,)),
        ]
    )
    one = image((5, 5, 40, 50))
    one["instances"].gt_keypoints = Keypoints(torch.tensor([[[10.0, 10, 2], [30, 40, 2]]]))
    model = a_model(cfg)
    losses = model([one])
    assert losses["loss_keypoint"] > 0 and losses["loss_mask"] > 0
    found = model.eval()([one])[0]["instances"]
    assert found.pred_keypoints.shape == (len(found), 2, 3) and len(found) > 0
    assert model.roi_heads.keypoint_pooler.assign_criterion == "ratio"


@torch.no_grad()
def test_the_panoptic_map_is_made_of_scores_not_of_mask_scores(tiny_cfg, image):
    cfg = tiny_cfg("PanopticCenterMask")
    cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = 0.0
    model = a_model(cfg).eval()
    result = model([image()])[0]
    found, (_, segments) = result["instances"], result["panoptic_seg"]
    things = [one for one in segments if one["isthing"]]
    assert found.has("mask_scores") and things
    for one in things:
        assert one["score"] == found.scores[one["instance_id"]]


@pytest.mark.slow
def test_a_panoptic_model_trains_and_has_a_pq(tmp_path, tiny_cfg, monkeypatch):
    make_demo_dataset(tmp_path / "demo", num_train=4, num_val=2)
    monkeypatch.setenv("SEGDET_DATASETS", str(tmp_path))
    cfg = tiny_cfg("PanopticCenterMask")
    cfg.merge_from_list(
        [
            *("DATASETS.TRAIN", ("demo_panoptic_train",), "DATASETS.TEST", ("demo_panoptic_val",)),
            *("MODEL.ROI_HEADS.NUM_CLASSES", 5, "MODEL.FCOS.NUM_CLASSES", 5),
            *("SOLVER.MAX_ITER", 1, "SOLVER.STEPS", (), "SOLVER.IMS_PER_BATCH", 2),
            *("INPUT.MIN_SIZE_TRAIN", (96,), "INPUT.MIN_SIZE_TEST", 96),
            *("OUTPUT_DIR", str(tmp_path / "run"), "DATALOADER.NUM_WORKERS", 0, "SEED", 1),
        ]
    )
    results = DefaultTrainer(cfg).train()
    assert 0 <= results["panoptic_seg"]["PQ"] <= 100 and "segm" in results
