"""MXNet's names of ResNet, R-FCN's RPN and FCIS, in its official release.

MXNet's own files are no format of ours; docs/systems/fcis.md says how they become `.npz`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from segdet.checkpoint.families.family import Family

_LAYERS = {
    "conv1": "stem.conv1",
    "rpn_conv_3x3": "proposal_generator.rpn_head.conv",
    "rpn_cls_score": "proposal_generator.rpn_head.objectness_logits",
    "rpn_bbox_pred": "proposal_generator.rpn_head.anchor_deltas",
    "conv_new_1": "head.conv_new_1",
    "fcis_cls_seg": "head.fcis_cls_seg",
    "fcis_bbox": "head.fcis_bbox",
}
_PARAMETERS = {
    "gamma": "norm.weight",
    "beta": "norm.bias",
    "moving_mean": "norm.running_mean",
    "moving_var": "norm.running_var",
}
_CONVS = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
_PARAMETER = re.compile(r"^(.*)_(weight|bias|gamma|beta|moving_mean|moving_var)$")
_BLOCK = re.compile(r"^(?:res|bn)(\d)([a-c])(\d*)_branch(1|2a|2b|2c)$")


def mxnet_fcis_name(name: str) -> str | None:
    """`arg:bn4b22_branch2a_gamma` is `res4.22.conv1.norm.weight`.

    None for `fcis_bbox_weight_test`, the same weights in other units.
    """
    name = name.removeprefix("arg:").removeprefix("aux:")
    if name.endswith("_test"):
        return None
    found = _PARAMETER.match(name)
    if found is None:
        return name
    layer, parameter = found.groups()
    block = _BLOCK.match(layer)
    if block:
        stage, letter, number, conv = block.groups()
        index = number or "abc".index(letter)
        layer = f"res{stage}.{index}.{_CONVS[conv]}"
    else:
        layer = _LAYERS.get(layer.removeprefix("bn_"), layer)
    return f"{layer}.{_PARAMETERS.get(parameter, parameter)}"


def mxnet_fcis_value(name: str, value: Tensor) -> Tensor:
    """Background last among the classes' maps, and no box of it."""
    layer = f".{name}".split(".")[-2]
    if layer == "fcis_cls_seg":
        return value.roll(-2 * 7 * 7, 0)  # inside and outside of 7 x 7 parts
    if layer == "fcis_bbox":
        return value.chunk(2)[1]
    return value


def _recognises(names: Collection[str]) -> bool:
    known = {"bn_conv1_gamma", "fcis_cls_seg_weight"}
    return any(name.removeprefix("arg:") in known for name in names)


def _settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": (123.15, 115.9, 103.06),
        "MODEL.PIXEL_STD": (1.0, 1.0, 1.0),
        "MODEL.RESNETS.STRIDE_IN_1X1": True,
        "MODEL.RESNETS.STEM_POOL_PADDING": 0,
    }


MXNET_FCIS = Family("MXNet's FCIS", _recognises, mxnet_fcis_name, mxnet_fcis_value, _settings)
