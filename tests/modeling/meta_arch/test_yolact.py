import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from segdet.checkpoint.families.yolact import official_name, yolact_name
from segdet.config import get_cfg
from segdet.errors import ConfigError
from segdet.model_zoo import get_config_file
from segdet.modeling import build_model
from segdet.modeling.backbones.resnet import DeformBottleneckBlock
from segdet.modeling.meta_arch.yolact import (
    Selector,
    YolactHeadConfig,
    resize_detections,
)
from segdet.structures import Boxes, Detections

ROOT = Path(__file__).parents[3]
OFFICIAL = {  # config -> tensors of the state dict, trained parameters
    "yolact_base": (660, 50_157_071),
    "yolact_im400": (660, 50_157_071),
    "yolact_im700": (660, 50_157_071),
    "yolact_resnet50": (354, 31_164_943),
    "yolact_darknet53": (348, 47_783_087),
    "yolact_resnet50_pascal": (354, 30_734_623),
    "yolact_plus_resnet50": (405, 33_766_460),
    "yolact_plus_base": (705, 52_571_142),
}


def an_official_model(name: str):
    cfg = get_cfg()
    cfg.merge_from_file(get_config_file(f"YOLACT/{name}.yaml"))
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_models_have_the_originals_parameters(name):
    model = an_official_model(name)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (len(model.state_dict()), trained) == OFFICIAL[name]
    for ours in model.state_dict():
        assert official_name(yolact_name(ours)) == ours


def test_names_are_the_originals():
    names = {yolact_name(name) for name in an_official_model("yolact_plus_base").state_dict()}
    assert {
        "backbone.conv1.weight",
        "backbone.bn1.running_var",
        "backbone.layers.0.0.downsample.1.num_batches_tracked",
        "backbone.layers.1.3.conv2.bias",
        "backbone.layers.2.21.conv2.conv_offset_mask.weight",
        "backbone.layers.3.2.bn3.weight",
        "fpn.lat_layers.2.bias",
        "fpn.pred_layers.0.weight",
        "fpn.downsample_layers.1.weight",
        "proto_net.10.weight",
        "prediction_layers.0.upfeature.0.weight",
        "prediction_layers.0.mask_layer.bias",
        "semantic_seg_conv.weight",
        "maskiou_net.maskiou_net.10.bias",
    } <= names
    darknet = an_official_model("yolact_darknet53").state_dict()
    assert {"backbone._preconv.0.weight", "backbone.layers.2.7.conv2.1.bias"} <= darknet.keys()


@pytest.mark.parametrize(
    "name, sites",
    [
        ("yolact_plus_resnet50", {"res3": [0, 1, 2, 3], "res4": [*range(6)], "res5": [0, 1, 2]}),
        ("yolact_plus_base", {"res3": [0, 3], "res4": [*range(0, 23, 3)], "res5": [0]}),
    ],
)
def test_blocks_are_deformable_where_the_originals_are(name, sites):
    backbone = an_official_model(name).backbone
    found = {
        stage: [
            i
            for i, block in enumerate(backbone.get_submodule(stage))
            if isinstance(block, DeformBottleneckBlock)
        ]
        for stage in ("res2", "res3", "res4", "res5")
    }
    assert found == {"res2": [], **sites}


@pytest.fixture
def plus_cfg(tiny_cfg):
    cfg = tiny_cfg("YOLACT")
    cfg.MODEL.MASKIOU_ON = True
    cfg.merge_from_list(["MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.DEFORM_MODULATED", True])
    cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False, True, True, True]
    cfg.merge_from_list(["MODEL.RESNETS.DEFORM_BIAS", True, "MODEL.RESNETS.DEFORM_INTERVAL", 3])
    cfg.merge_from_list(["MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.WIDTH_PER_GROUP", 8])
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 32
    return cfg


def test_yolact_plus_grades_its_masks(plus_cfg, image):
    torch.manual_seed(0)
    model = build_model(plus_cfg)
    losses = model.train()([image((5, 5, 40, 50), (20, 10, 60, 30))])
    assert losses["loss_maskiou"].isfinite() and "loss_mask" in losses
    losses.total().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    with torch.no_grad():
        found = model.eval()([image()])[0]["instances"]
        model.maskiou_net = None
        ungraded = model([image()])[0]["instances"]
    assert len(found.mask_scores) == len(found) > 0 and (found.mask_scores >= 0).all()
    assert not ungraded.has("mask_scores")


def test_a_mask_score_is_the_score_times_the_iou(plus_cfg, image):
    torch.manual_seed(0)
    model = build_model(plus_cfg).eval()
    last = model.maskiou_net.maskiou_net[-2]
    nn.init.zeros_(last.weight)
    last.bias.data = torch.tensor([0.25, 0.5, 0.75])
    with torch.no_grad():
        found = model([image()])[0]["instances"]
    expected = found.scores * last.bias.data[found.pred_classes]
    torch.testing.assert_close(found.mask_scores, expected)


def test_yolact_plus_gives_the_same_in_a_batch_as_alone(plus_cfg, image):
    model = build_model(plus_cfg).train()
    nn.init.normal_(model.maskiou_net.maskiou_net[-2].weight)
    images = [image((5, 5, 40, 50)) for _ in range(3)]
    with torch.no_grad():
        model(images)  # batch norm gets to know its maps
        model.eval()
        together = [one["instances"] for one in model(images)]
        alone = [model([one])[0]["instances"] for one in images]
    assert sum(len(ours) for ours in together) > 5
    for ours, theirs in zip(together, alone, strict=True):
        assert torch.equal(ours.pred_classes, theirs.pred_classes)
        assert torch.equal(ours.pred_masks, theirs.pred_masks)
        for name in ("scores", "mask_scores"):
            torch.testing.assert_close(ours.get(name), theirs.get(name), atol=1e-5, rtol=0)


def test_a_batch_of_crowds_alone_trains(tiny_cfg, image):
    model = build_model(tiny_cfg("YOLACT")).train()
    crowd = image((5, 5, 60, 60))
    crowd["instances"].gt_classes[:] = -1
    losses = model([crowd])
    losses.total().backward()
    assert losses.total().isfinite()
    assert not any(losses[name].item() for name in ("loss_cls", "loss_box_reg", "loss_mask"))


def test_batch_norm_trains_from_six_images_a_process(tiny_cfg, caplog):
    cfg = tiny_cfg("YOLACT")
    for images, trains in ((6, True), (5, False)):
        cfg.SOLVER.IMS_PER_BATCH = images
        with caplog.at_level(logging.INFO, "segdet"):
            model = build_model(cfg).train()
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms and all(m.training == trains for m in norms)
        assert all(m.weight.requires_grad == m.bias.requires_grad == trains for m in norms)
        assert ("trains" if trains else "is frozen") in caplog.messages[-1]


def test_what_it_cannot_be_is_refused(tiny_cfg):
    cases = {
        "needs MASK_ON": ("MODEL.MASK_ON", False),
        r"ANCHOR_SCALES must be for 5 levels": ("MODEL.YOLACT.ANCHOR_SCALES", [[8.0], [16.0]]),
        "neither FPN.NORM": ("MODEL.FPN.NORM", "BN"),
        "as many for each level": ("MODEL.YOLACT.ANCHOR_SCALES", [[8.0], [16.0, 20.0]]),
        "IOU_THRESHOLDS must be ascending": ("MODEL.YOLACT.IOU_THRESHOLDS", (0.5, 0.4)),
        "CROSS_CLASS_NMS needs FAST_NMS": (
            *("MODEL.YOLACT.CROSS_CLASS_NMS", True, "MODEL.YOLACT.FAST_NMS", False),
        ),
    }
    for message, change in cases.items():
        cfg = tiny_cfg("YOLACT")
        cfg.merge_from_list(list(change))
        with pytest.raises(ConfigError, match=message):
            build_model(cfg)


BOXES = torch.tensor([[0.2, 0.2, 0.4, 0.4], [0.32, 0.2, 0.4, 0.4], [0.44, 0.2, 0.4, 0.4]])


def select(scores, **changes):
    settings = {"score_thresh": 0.05, "nms_thresh": 0.5, "top_k": 200, "detections_per_image": 100}
    selector = Selector(**settings | {"fast": True, "cross_class": False} | changes)
    return selector(BOXES, torch.zeros(3, 4), torch.tensor(scores), (100, 100))


def test_suppressed_boxes_still_suppress():
    one = select([[0.9], [0.8], [0.7]])
    assert one.rows.tolist() == [0] and one.classes.tolist() == [0]
    assert one.boxes.tolist() == [pytest.approx([0.0, 0, 0.4, 0.4], abs=1e-6)]


def test_low_scores_of_other_classes_remain():
    one = select([[0.9, 0.01], [0.01, 0.02], [0.001, 0.8]])
    assert one.rows.tolist() == [0, 2, 0, 2] and one.classes.tolist() == [0, 1, 1, 0]
    assert one.scores.tolist() == pytest.approx([0.9, 0.8, 0.01, 0.001])


def test_across_classes_a_box_comes_out_once_and_there_is_no_cap():
    scores = [[0.9, 0.1], [0.3, 0.8], [0.2, 0.7]]
    one = select(scores, cross_class=True, detections_per_image=0, nms_thresh=0.6)
    assert one.rows.tolist() == [0, 1, 2] and one.classes.tolist() == [0, 1, 1]
    assert select(scores, cross_class=True).rows.tolist() == [0]


def nms_by_definition(boxes, scores, size, least, thresh):
    """(score, class, row) of what remains, best first; boxes have their last pixel, too."""
    height, width = size
    x0, y0, x1, y1 = (boxes.double() * torch.tensor([width, height, width, height])).unbind(1)
    found = []
    for of_class in range(scores.shape[1]):
        for row in scores[:, of_class].argsort(descending=True).tolist():
            others = [i for _, k, i in found if k == of_class]
            w = (torch.minimum(x1[row], x1[others]) - torch.maximum(x0[row], x0[others]) + 1).relu()
            h = (torch.minimum(y1[row], y1[others]) - torch.maximum(y0[row], y0[others]) + 1).relu()
            areas = (x1 - x0 + 1) * (y1 - y0 + 1)
            ious = w * h / (areas[row] + areas[others] - w * h)
            if scores[row, of_class] > least and not (ious >= thresh).any():
                found.append((scores[row, of_class].item(), of_class, row))
    return sorted(found, reverse=True)


def test_without_fast_nms_boxes_that_are_dropped_drop_no_others():
    priors = torch.rand(300, 4, dtype=torch.float64) * 0.3 + 0.2
    scores = torch.rand(300, 4, dtype=torch.float64) ** 2
    settings = {"score_thresh": 0.2, "nms_thresh": 0.5, "top_k": 1, "cross_class": False}
    selector = Selector(**settings, fast=False, detections_per_image=40)
    size = (60, 90)
    found = selector(priors, torch.zeros(300, 4, dtype=torch.float64), scores, size)
    boxes = torch.cat([priors[:, :2] - priors[:, 2:] / 2, priors[:, :2] + priors[:, 2:] / 2], 1)
    expected = nms_by_definition(boxes, scores, size, 0.2, 0.5)
    assert len(expected) > 40, "more than an image may have"
    assert (
        list(zip(*(x.tolist() for x in (found.scores, found.classes, found.rows)), strict=True))
        == (expected[:40])
    )
    torch.testing.assert_close(found.boxes, boxes[found.rows])


def test_without_fast_nms_boxes_go_at_the_threshold():
    # of an input of 64 x 64 pixels; with their last pixels 16 and 8 wide and 8 high: IoU 1 / 2
    pair = torch.tensor([[7.5, 3.5, 15, 7], [3.5, 3.5, 7, 7]]) / 64
    settings = {"score_thresh": 0.05, "top_k": 1, "cross_class": False, "detections_per_image": 9}
    scores, deltas = torch.tensor([[0.9], [0.8]]), torch.zeros(2, 4)
    for thresh, kept in ((0.5, [0]), (0.5 + 1e-6, [0, 1])):
        selector = Selector(**settings, fast=False, nms_thresh=thresh)
        assert selector(pair, deltas, scores, (64, 64)).rows.tolist() == kept


def test_results_end_at_whole_pixels():
    boxes = torch.tensor([[1.0, 1, 3, 3.4], [-4.0, 0, 9, 2], [2.0, 2, 2.1, 4]])
    masks = torch.zeros(3, 1, 4, 4)
    masks[:, :, 1:3, 1:3] = 1
    found = Detections(
        (4, 4),
        pred_boxes=Boxes(boxes),
        scores=torch.tensor([0.9, 0.8, 0.7]),
        pred_classes=torch.arange(3),
        pred_masks=masks,
    )
    result = resize_detections(found, 6, 8)
    assert result.pred_boxes.tensor.tolist() == [[2, 1, 6, 5], [0, 0, 8, 3]]
    assert result.pred_classes.tolist() == [0, 1], "the last has no pixel"
    assert result.pred_masks.shape == (2, 6, 8) and result.pred_masks.dtype == torch.bool
    assert result.pred_masks[0].any(0).nonzero()[:, 0].tolist() == [2, 3, 4, 5]
    assert resize_detections(found[:0], 6, 8).pred_masks.shape == (0, 6, 8)


def test_padding_does_not_move_masks(tiny_cfg, image):
    torch.manual_seed(0)
    model = build_model(tiny_cfg("YOLACT")).eval()
    small, large = image(size=(64, 64)), image(size=(96, 128))
    images = model.preprocess_image([small, large])
    with torch.no_grad():
        found = model.predict(images)
    assert found[0].pred_masks.shape[-2:] == (64, 64), "the image's part, at its own size"
    assert found[1].pred_masks.shape[-2:] == (24, 32), "two cells of the finest level's 8 pixels"


def test_prior_sizes():
    section = YolactHeadConfig(anchor_scales=((10.0,),), aspect_ratios=(1.0, 4.0))
    assert section.prior_sizes() == [[(10, 10), (20, 20)]]
    section = YolactHeadConfig(
        anchor_scales=((10.0,),), aspect_ratios=(1.0, 4.0), square_anchors=False
    )
    assert section.prior_sizes() == [[(10, 10), (20, 5)]]
