"""YOLACT's and YOLACT++'s releases; of DarkNet-53 their names are ours."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from segdet.checkpoint.families.family import Family

_RESNET = "backbone.layers.0.0.conv1.weight"
_DARKNET = "backbone.layers.0.0.0.weight"
# The first release saved some parameters again under further names.
_COPIES = re.compile(r"backbone\.layer\d|fpn\.downsample_layers\.(?:[2-9]|\d\d)")

_BLOCK = re.compile(r"backbone\.layers\.(\d)\.(\d+)\.(?=conv\d\.[a-z]|bn\d|downsample)")
_OFFICIAL = (  # in ResNets' blocks and stem
    (re.compile(r"conv2\.conv_offset_mask\."), "conv2_offset."),
    (re.compile(r"bn(\d)\."), r"conv\1.norm."),
    (re.compile(r"downsample\.0\."), "shortcut."),
    (re.compile(r"downsample\.1\."), "shortcut.norm."),
)
_OUR_BLOCK = re.compile(r"backbone\.res(\d)\.(\d+)\.")
_YOLACTS = (
    (re.compile(r"conv2_offset\."), "conv2.conv_offset_mask."),
    (re.compile(r"conv(\d)\.norm\."), r"bn\1."),
    (re.compile(r"shortcut\.norm\."), "downsample.1."),
    (re.compile(r"shortcut\."), "downsample.0."),
)


def official_name(name: str) -> str | None:
    """`backbone.layers.0.0.bn1.weight` is `backbone.res2.0.conv1.norm.weight`."""
    if _COPIES.match(name):
        return None
    if block := _BLOCK.match(name):
        rest = _replaced(name[block.end() :], _OFFICIAL)
        return f"backbone.res{int(block[1]) + 2}.{block[2]}.{rest}"
    if name.startswith(("backbone.conv1.", "backbone.bn1.")):
        return f"backbone.stem.{_replaced(name.removeprefix('backbone.'), _OFFICIAL)}"
    return name


def yolact_name(name: str) -> str:
    """The release's name of a parameter of ours; the inverse of `official_name`."""
    if block := _OUR_BLOCK.match(name):
        rest = _replaced(name[block.end() :], _YOLACTS)
        return f"backbone.layers.{int(block[1]) - 2}.{block[2]}.{rest}"
    if name.startswith("backbone.stem."):
        return f"backbone.{_replaced(name.removeprefix('backbone.stem.'), _YOLACTS)}"
    return name


def _replaced(name: str, rules: tuple[tuple[re.Pattern[str], str], ...]) -> str:
    for pattern, replacement in rules:
        name, count = pattern.subn(replacement, name)
        if count:
            break
    return name


def _recognises(names: Collection[str]) -> bool:
    return _RESNET in names or any(_COPIES.match(name) for name in names)


def _settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    if _DARKNET in weights:
        mean, std = (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)
    else:
        mean, std = (123.68, 116.78, 103.94), (58.4, 57.12, 57.38)
    return {
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": mean,
        "MODEL.PIXEL_STD": std,
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
    }


YOLACT = Family("YOLACT", _recognises, official_name, settings=_settings)
