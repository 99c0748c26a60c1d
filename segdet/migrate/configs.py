"""Which values of a config file have no counterpart."""

from __future__ import annotations

from pathlib import Path

import yaml

from segdet.config import CfgNode, get_cfg
from segdet.config.compat import upgrade
from segdet.errors import ConfigError, SegdetError, did_you_mean
from segdet.modeling.backbones import BACKBONES
from segdet.modeling.meta_arch import system_name

# What decides which parts a model is made of: unknown values of these are worth a line.
_NAMES = ("MODEL.META_ARCHITECTURE", "MODEL.ROI_HEADS.NAME", "MODEL.BACKBONE.NAME")


def is_config(path: Path) -> bool:
    """Whether a YAML file is a detectron2 config, as its first keys tell."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError):
        return False
    return isinstance(content, dict) and bool({"_BASE_", *get_cfg()} & content.keys())


def config_problems(path: Path) -> list[str]:
    """Every key of a config file that there is not here, and every name of a part."""
    try:
        tree = CfgNode.load_yaml_with_base(path)
        leaves = upgrade(list(tree.leaves()), str(path))
    except SegdetError as error:
        return [str(error)]
    cfg = get_cfg()
    known = [key for key, _, _ in cfg.leaves()]
    problems = []
    for key, value, _ in leaves:
        if key not in known:
            problems.append(f"no config key {key} here{did_you_mean(key, known)}")
            continue
        try:
            cfg.merge_from_list([key, value])
        except ConfigError as error:
            problems.append(str(error).removeprefix("command line: "))
    if any(key in _NAMES for key, _, _ in leaves):
        problems += _unknown_parts(cfg)
    return problems


def _unknown_parts(cfg: CfgNode) -> list[str]:
    problems = []
    try:
        system_name({path: value for path, value, _ in cfg.leaves()})
    except ConfigError as error:
        problems.append(str(error))
    backbone = cfg.MODEL.BACKBONE.NAME
    if backbone not in BACKBONES:
        problems.append(
            f"unknown MODEL.BACKBONE.NAME {backbone}{did_you_mean(backbone, list(BACKBONES))}"
        )
    return problems
