"""From a config tree to a model."""

from __future__ import annotations

import logging

import torch

from segdet.config.node import CfgNode
from segdet.config.reader import read_section
from segdet.modeling.backbones import Backbone, BackboneSections
from segdet.modeling.meta_arch import SYSTEMS, system_name
from segdet.modeling.system import System

_log = logging.getLogger(__name__)


def build_model(cfg: CfgNode) -> System:
    """The system that `cfg.MODEL` describes, with random weights, on MODEL.DEVICE.

    Raises:
        ConfigError: an unknown name or an unusable value.
    """
    name = system_name(cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NAME)
    return read_section(SYSTEMS[name], cfg, at="MODEL").build().to(usable_device(cfg))


def build_backbone(cfg: CfgNode) -> Backbone:
    """The backbone that MODEL.BACKBONE.NAME names, with random weights, on the CPU."""
    return read_section(BackboneSections, cfg, at="MODEL").build_backbone()


def usable_device(cfg: CfgNode) -> torch.device:
    """MODEL.DEVICE, or the CPU where it says cuda (the default) and there is none."""
    device = torch.device(cfg.MODEL.DEVICE)
    if device.type == "cuda" and not torch.cuda.is_available():
        _log.warning("MODEL.DEVICE is %s but there is no CUDA device: using the CPU", device)
        return torch.device("cpu")
    return device
