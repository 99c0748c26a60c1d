"""From a config tree to a model."""

from __future__ import annotations

import functools
import logging

import torch

from segdet.config.node import CfgNode
from segdet.config.reader import read_section
from segdet.data.annotations import get_fed_loss_cls_weights
from segdet.errors import ConfigError
from segdet.layers import ShapeSpec
from segdet.modeling.backbones import Backbone, BackboneSections
from segdet.modeling.box_head import FastRCNNOutputLayers
from segdet.modeling.compiling import CompileConfig, compile_model
from segdet.modeling.meta_arch import SYSTEMS, system_name
from segdet.modeling.system import System
from segdet.utils.mixed_precision import AMPConfig

_log = logging.getLogger(__name__)


def build_model(cfg: CfgNode) -> System:
    """The system that `cfg.MODEL` describes, with random weights, on MODEL.DEVICE.

    It predicts in the precision of TEST.AMP. With MODEL.COMPILE.ENABLED its dense parts are
    compiled, each when it is first called.

    Raises:
        ConfigError: an unknown name or an unusable value.
    """
    name = system_name({path: value for path, value, _ in cfg.leaves()})
    device = usable_device(cfg)
    model = read_section(SYSTEMS[name], cfg, at="MODEL").build()
    _give_class_weights(model, cfg)
    model.amp = read_section(AMPConfig, cfg, at="TEST.AMP")
    compiling = read_section(CompileConfig, cfg, at="MODEL.COMPILE")
    if compiling.enabled:
        compile_model(model, mode=compiling.mode)
    return model.to(device)


def _give_class_weights(model: System, cfg: CfgNode) -> None:
    """Tell federated losses whom to ask for the frequencies of DATASETS.TRAIN's classes."""
    power = cfg.MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER
    for part in model.modules():
        if isinstance(part, FastRCNNOutputLayers) and part.federated is not None:
            part.federated.weights = functools.partial(
                get_fed_loss_cls_weights, cfg.DATASETS.TRAIN, power
            )


def build_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> Backbone:
    """The backbone that MODEL.BACKBONE.NAME names, with random weights, on the CPU.

    Args:
        cfg: the whole config.
        input_shape: its `channels` are the images'; None takes one per value of MODEL.PIXEL_MEAN.
    """
    sections = read_section(BackboneSections, cfg, at="MODEL")
    return sections.build_backbone(input_shape.channels if input_shape else None)


def usable_device(cfg: CfgNode) -> torch.device:
    """MODEL.DEVICE, or the CPU where it says cuda (the default) and there is none.

    Raises:
        ConfigError: no such device here.
    """
    name = cfg.MODEL.DEVICE
    if name == "cuda" and not torch.cuda.is_available():
        _log.warning("MODEL.DEVICE is cuda but there is no CUDA device: using the CPU")
        return torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (AssertionError, RuntimeError, TypeError) as error:  # AssertionError: built without CUDA
        there = ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"MODEL.DEVICE {name!r} cannot be used; there is {there} ({reason})"
        ) from None
