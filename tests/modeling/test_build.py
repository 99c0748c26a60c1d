"""From a config to a model or a backbone."""

import logging

import pytest
import torch

from segdet.config import get_cfg
from segdet.errors import ConfigError
from segdet.layers import ShapeSpec
from segdet.modeling import build_backbone, build_model


@pytest.fixture
def cfg():
    cfg = get_cfg()
    cfg.merge_from_list(
        [
            *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.STEM_OUT_CHANNELS", 8),
            *("MODEL.RESNETS.RES2_OUT_CHANNELS", 8, "MODEL.RESNETS.WIDTH_PER_GROUP", 2),
        ]
    )
    return cfg


@pytest.mark.parametrize("device", ["foo", "cuda:99", "cpu,cuda", ""])
def test_a_device_that_is_not_there_is_refused(cfg, device):
    cfg.MODEL.DEVICE = device
    with pytest.raises(ConfigError, match=f"^MODEL.DEVICE '{device}' cannot be used; there is cpu"):
        build_model(cfg)


def test_the_default_device_falls_back_to_the_cpu(cfg, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg.MODEL.DEVICE = "cuda"
    with caplog.at_level(logging.WARNING, logger="segdet"):
        assert build_model(cfg).device.type == "cpu"
    assert "using the CPU" in caplog.text


def test_the_input_shape_has_the_last_word_on_channels(cfg):
    assert build_backbone(cfg).stem.conv1.in_channels == 3
    assert build_backbone(cfg, ShapeSpec(channels=5)).stem.conv1.in_channels == 5
    assert build_backbone(cfg, ShapeSpec()).stem.conv1.in_channels == 3
