"""YOLACT's releases load whole by their names, and the copies of the first one are passed over."""

import pytest
import torch

from segdet.checkpoint import DetectionCheckpointer
from segdet.checkpoint.families.yolact import official_name, yolact_name
from segdet.config import get_cfg
from segdet.model_zoo import get_config_file
from segdet.modeling import build_model

PAIRS = {
    "backbone.conv1.weight": "backbone.stem.conv1.weight",
    "backbone.bn1.running_mean": "backbone.stem.conv1.norm.running_mean",
    "backbone.layers.0.0.bn1.weight": "backbone.res2.0.conv1.norm.weight",
    "backbone.layers.0.0.conv3.weight": "backbone.res2.0.conv3.weight",
    "backbone.layers.1.0.downsample.0.weight": "backbone.res3.0.shortcut.weight",
    "backbone.layers.1.0.downsample.1.bias": "backbone.res3.0.shortcut.norm.bias",
    "backbone.layers.2.22.conv2.bias": "backbone.res4.22.conv2.bias",
    "backbone.layers.3.2.conv2.conv_offset_mask.bias": "backbone.res5.2.conv2_offset.bias",
    # of DarkNet
    "backbone._preconv.0.weight": "backbone._preconv.0.weight",
    "backbone.layers.0.0.1.weight": "backbone.layers.0.0.1.weight",
    "backbone.layers.4.3.conv2.1.running_var": "backbone.layers.4.3.conv2.1.running_var",
    "fpn.lat_layers.0.weight": "fpn.lat_layers.0.weight",
    "fpn.downsample_layers.1.bias": "fpn.downsample_layers.1.bias",
    "prediction_layers.0.conf_layer.weight": "prediction_layers.0.conf_layer.weight",
}


@pytest.mark.parametrize("theirs", PAIRS)
def test_names_both_ways(theirs):
    assert official_name(theirs) == PAIRS[theirs]
    assert yolact_name(PAIRS[theirs]) == theirs


@pytest.mark.parametrize("copy", ["backbone.layer1.0.bn1.weight", "fpn.downsample_layers.4.bias"])
def test_copies_have_no_name(copy):
    assert official_name(copy) is None


THIN = [
    *("MODEL.DEVICE", "cpu", "MODEL.FPN.OUT_CHANNELS", 8, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 16, "MODEL.RESNETS.WIDTH_PER_GROUP", 4),
]


@pytest.mark.parametrize("name", ["yolact_resnet50", "yolact_plus_resnet50"])
def test_a_release_loads_whole(tmp_path, name):
    torch.manual_seed(0)
    cfg = get_cfg()
    cfg.merge_from_file(get_config_file(f"YOLACT/{name}.yaml"))
    cfg.merge_from_list(THIN)
    saved, model = build_model(cfg), build_model(cfg)
    release = {yolact_name(key): value for key, value in saved.state_dict().items()}
    assert "backbone.layers.3.2.bn3.weight" in release
    release |= {key: torch.ones(1) for key in ("backbone.layer1.0.x", "fpn.downsample_layers.2.w")}
    torch.save(release, tmp_path / "yolact_54_800000.pth")
    checkpointer = DetectionCheckpointer(model)
    checkpointer.load(tmp_path / "yolact_54_800000.pth", strict=True)
    for key, value in saved.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, atol=0, rtol=0)
    assert not checkpointer.report.missing and not checkpointer.report.unexpected
    assert checkpointer.report.trained_with["INPUT.FORMAT"] == "RGB"


def test_darknets_copies_are_passed_over(tmp_path):
    torch.manual_seed(0)
    cfg = get_cfg()
    cfg.merge_from_file(get_config_file("YOLACT/yolact_darknet53.yaml"))
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        names = build_model(cfg).state_dict()
    assert all(official_name(name) == name for name in names)
    assert all(yolact_name(name) == name for name in names)
