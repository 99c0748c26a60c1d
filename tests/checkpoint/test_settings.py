import logging

import pytest
import torch
from torch import nn

from segdet.checkpoint import DetectionCheckpointer
from segdet.checkpoint.families import FAMILIES
from segdet.checkpoint.loading import LoadReport
from segdet.checkpoint.settings import (
    FREE_ON_RESUME,
    differing_settings,
    refuse_changes,
    settings_of,
)
from segdet.config import get_cfg
from segdet.errors import ConfigError

RGB = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": (123.675, 116.28, 103.53),
    "MODEL.PIXEL_STD": (58.395, 57.12, 57.375),
}
BGR = {
    "INPUT.FORMAT": "BGR",
    "MODEL.PIXEL_MEAN": (103.53, 116.28, 123.675),
    "MODEL.PIXEL_STD": (1.0, 1.0, 1.0),
}
IN_1X1, IN_3X3 = ({"MODEL.RESNETS.STRIDE_IN_1X1": value} for value in (True, False))
ROI_ALIGN = {"MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign"}


def conv(name, out, into):
    return {name: torch.zeros(out, into, 3, 3)}


@pytest.mark.parametrize(
    "weights, expected",
    [
        (conv("res2_0_branch2b_w", 64, 64), BGR | IN_1X1),  # MSRA
        (conv("res2_0_branch2b_w", 64, 64) | {"res2_0_branch2b_gn_s": 0}, BGR | IN_3X3),
        (conv("res2_0_branch2b_w", 256, 4) | {"res4_22_branch2a_w": 0}, BGR | IN_3X3),
        (
            conv("res2_0_branch2b_w", 256, 8) | {"res4_22_branch2a_w": 0},
            BGR | IN_3X3 | {"MODEL.PIXEL_STD": (57.375, 57.12, 58.395)},
        ),
        (
            conv("res2_0_branch2b_w", 256, 8) | dict.fromkeys(
                ["res4_22_branch2a_w", "res4_23_branch2a_w"]
            ),
            BGR | IN_3X3,
        ),
        (
            {"arg:bn_conv1_gamma": 0, "arg:fcis_cls_seg_weight": 0},
            {
                "INPUT.FORMAT": "RGB",
                "MODEL.PIXEL_MEAN": (123.15, 115.9, 103.06),
                "MODEL.PIXEL_STD": (1.0, 1.0, 1.0),
                "MODEL.RESNETS.STEM_POOL_PADDING": 0,
                **IN_1X1,
            },
        ),
        ({"fc6_w": 0}, {}),
        ({"layer1.0.conv1.weight": 0, "layer1.0.conv3.weight": 0}, RGB | IN_3X3),
        ({"layer1.0.conv1.weight": 0}, RGB),  # ResNet-18
        ({"features.1.conv.0.0.weight": 0}, RGB),
        (
            conv("backbone.body.layer1.0.conv2.weight", 64, 64)
            | {"backbone.body.stem.conv1.weight": 0},
            BGR | IN_1X1 | ROI_ALIGN,
        ),
        (
            conv("backbone.body.layer1.0.conv2.weight", 256, 8)
            | {"backbone.body.stem.conv1.weight": 0, "roi_heads.mask.predictor.x": 0},
            BGR | IN_3X3 | ROI_ALIGN | {"MODEL.ROI_MASK_HEAD.POOLER_TYPE": "ROIAlign"},
        ),
        (
            {"backbone.body.stem.conv1.weight": 0, "backbone.fpn.fpn_inner1.weight": 0},
            BGR | ROI_ALIGN | {"MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 2},
        ),
    ],
)  # fmt: skip
def test_what_each_family_was_trained_with(weights, expected):
    family = next(one for one in FAMILIES if one.recognises(weights))
    assert family.settings(weights) == expected


def test_every_key_exists_and_differs_somewhere():
    cfg = get_cfg()
    report = LoadReport("a.pth", [], trained_with=RGB | IN_3X3 | ROI_ALIGN)
    assert differing_settings(cfg, report) == [
        "a.pth: these weights were trained with INPUT.FORMAT RGB, the config has BGR (set by "
        "default); results will be worse",
        "a.pth: these weights were trained with MODEL.PIXEL_MEAN [123.675, 116.28, 103.53], the "
        "config has [103.53, 116.28, 123.675] (set by default); results will be worse",
        "a.pth: these weights were trained with MODEL.PIXEL_STD [58.395, 57.12, 57.375], the "
        "config has [1.0, 1.0, 1.0] (set by default); results will be worse",
        "a.pth: these weights were trained with MODEL.RESNETS.STRIDE_IN_1X1 False, the config has "
        "True (set by default); results will be worse",
        "a.pth: these weights were trained with MODEL.ROI_BOX_HEAD.POOLER_TYPE ROIAlign, the "
        "config has ROIAlignV2 (set by default); results will be worse",
    ]
    assert differing_settings(cfg, LoadReport("a.pkl", [], trained_with=BGR | IN_1X1)) == []


def test_means_may_be_rounded_in_another_way():
    cfg = get_cfg()
    cfg.MODEL.PIXEL_MEAN = [102.9801, 115.9465, 122.7717]
    assert differing_settings(cfg, LoadReport("a.pkl", [], trained_with=BGR)) == []


def test_a_converted_file_tells_by_its_author():
    report = LoadReport("a.pkl", [])
    assert len(differing_settings(get_cfg(), report, "torchvision")) == 4
    assert differing_settings(get_cfg(), report, "Detectron2 Model Zoo") == []
    assert differing_settings(get_cfg(), report, {"not": "text"}) == []


def test_loading_warns_where_a_config_is_given(tmp_path, caplog):
    model = nn.ModuleDict({"stem": nn.ModuleDict({"conv1": nn.Conv2d(3, 4, 1)})})
    names = {"conv1.weight": model.stem.conv1.weight, "layer1.0.conv1.weight": torch.zeros(1)}
    torch.save(names, tmp_path / "resnet18.pth")
    with caplog.at_level(logging.WARNING, logger="segdet.checkpoint"):
        DetectionCheckpointer(model).load(tmp_path / "resnet18.pth")
        assert "trained with" not in caplog.text
        DetectionCheckpointer(model, cfg=get_cfg()).load(tmp_path / "resnet18.pth")
    assert "resnet18.pth: these weights were trained with INPUT.FORMAT RGB" in caplog.text


def test_a_run_is_resumed_with_its_settings_or_by_permission(tmp_path):
    cfg = get_cfg()
    before = {**settings_of(cfg), "GONE.KEY": "1"}
    refuse_changes(cfg, before, tmp_path)
    cfg.SOLVER.BASE_LR = 0.5
    cfg.SOLVER.STEPS = (1, 2)
    cfg.DATALOADER.NUM_WORKERS = 9
    changed = (
        r"other settings: .*BASE_LR is 0.5, was 0.001; SOLVER.STEPS is \(1, 2\), was \(30000,\)"
    )
    with pytest.raises(ConfigError, match=changed) as error:
        refuse_changes(cfg, before, tmp_path)
    assert "NUM_WORKERS" not in str(error.value)
    cfg.SOLVER.RESUME_CHANGED = True
    refuse_changes(cfg, before, tmp_path)


def test_every_free_key_exists():
    keys = list(settings_of(get_cfg()))
    assert [one for one in FREE_ON_RESUME if not any(key.startswith(one) for key in keys)] == []
