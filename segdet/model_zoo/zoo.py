"""The official configs by name, and the addresses of the models released for them."""

from __future__ import annotations

from pathlib import Path

import torch

from segdet.checkpoint import DetectionCheckpointer
from segdet.checkpoint.catalog import locate
from segdet.config import CfgNode, get_cfg
from segdet.errors import ConfigError, did_you_mean
from segdet.model_zoo.released import RELEASED, RELEASES
from segdet.modeling import build_model
from segdet.modeling.system import System

CONFIGS = Path(__file__).parent / "configs"  # in a checkout a link to the configs/ at its top


def get_config_file(config_path: str) -> str:
    """Where an official config lies.

    Args:
        config_path: as "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml".

    Raises:
        ConfigError: there is no such config.
    """
    file = CONFIGS / config_path
    if not file.is_file():
        known = [str(one.relative_to(CONFIGS)) for one in CONFIGS.rglob("*.yaml")]
        raise ConfigError(f"no official config {config_path}{did_you_mean(config_path, known)}")
    return str(file)


def get_config(config_path: str, trained: bool = False) -> CfgNode:
    """An official config.

    Args:
        config_path: as for `get_config_file`.
        trained: start from the model released for it, not from the weights that it trains from.
    """
    cfg = get_cfg()
    cfg.merge_from_file(get_config_file(config_path))
    if trained:
        cfg.MODEL.WEIGHTS = get_checkpoint_url(config_path)
    return cfg


def get_checkpoint_url(config_path: str) -> str:
    """The address of the model released for an official config.

    Raises:
        ConfigError: none was released.
    """
    name = config_path.removesuffix(".yaml")
    if name not in RELEASED:
        raise ConfigError(
            f"no model was released for {config_path}{did_you_mean(name, [*RELEASED])}"
        )
    return f"{RELEASES}/{name}/{RELEASED[name]}"


def get(config_path: str, trained: bool = False, device: str | None = None) -> System:
    """The model of an official config, in training mode, with the config's weights.

    Args:
        config_path: as for `get_config_file`.
        trained: load the model released for it; it is downloaded unless it is on this machine
            (see `segdet.checkpoint.catalog.locate`).
        device: by default the config's, or the CPU where there is no CUDA.
    """
    cfg = get_config(config_path, trained)
    if device is None and not torch.cuda.is_available():
        device = "cpu"
    if device is not None:
        cfg.MODEL.DEVICE = device
    weights = cfg.MODEL.WEIGHTS
    if trained:
        weights = str(locate(weights, may_download=True)[0])
    model = build_model(cfg)
    DetectionCheckpointer(model, cfg=cfg).load(weights)
    return model
