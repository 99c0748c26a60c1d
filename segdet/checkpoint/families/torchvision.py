"""torchvision's ResNets and MobileNetV2; timm's ResNets and ResNeXts have the same names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from segdet.checkpoint.families.family import TORCHVISION_IMAGES, Family


def torchvision_resnet_name(name: str) -> str:
    """`layer1.0.bn1.weight` is `res2.0.conv1.norm.weight`."""
    if name.startswith("fc."):
        return name
    stage = re.match(r"layer(\d)\.(.*)", name)
    name = f"res{int(stage[1]) + 1}.{stage[2]}" if stage else f"stem.{name}"
    name = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", name)
    return name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")


def torchvision_mobilenet_v2_name(name: str) -> str:
    """`features.2.conv.1.0.weight` is `features.2.conv.3.weight`.

    torchvision nests convolution, norm and ReLU6; official names count all layers of a block.
    """
    place = re.match(r"features\.(\d+)\.conv\.(\d)\.(?:(\d)\.)?(\w+)$", name)
    if place is None:
        return name
    block, layer, inner, rest = place.groups()
    nested = 1 if block == "1" else 2  # block 1 does not widen
    index = 3 * int(layer) + int(inner) if inner else 2 * nested + int(layer)
    return f"features.{block}.conv.{index}.{rest}"


def _resnet_settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    if "layer1.0.conv3.weight" not in weights:  # blocks of two 3x3 convolutions
        return dict(TORCHVISION_IMAGES)
    return TORCHVISION_IMAGES | {"MODEL.RESNETS.STRIDE_IN_1X1": False}


TORCHVISION_RESNET = Family(
    "torchvision ResNet",
    lambda names: "layer1.0.conv1.weight" in names,
    torchvision_resnet_name,
    settings=_resnet_settings,
    author="torchvision",
)
TORCHVISION_MOBILENET_V2 = Family(
    "torchvision MobileNetV2",
    lambda names: "features.1.conv.0.0.weight" in names,
    torchvision_mobilenet_v2_name,
    settings=lambda weights: dict(TORCHVISION_IMAGES),
    author="torchvision",
)
