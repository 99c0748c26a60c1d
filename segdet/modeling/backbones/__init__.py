"""Backbones, and the table of the names that MODEL.BACKBONE.NAME knows."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field

from segdet.errors import ConfigError
from segdet.modeling.backbones.backbone import Backbone
from segdet.modeling.backbones.fpn import FPN, FPNConfig, LastLevelMaxPool, LastLevelP6P7
from segdet.modeling.backbones.mobilenet import MobileNetV2
from segdet.modeling.backbones.resnet import (
    BasicBlock,
    BasicStem,
    BottleneckBlock,
    ResNet,
    ResNetConfig,
    make_stage,
)

__all__ = [
    "BACKBONES",
    "FPN",
    "Backbone",
    "BackboneConfig",
    "BackboneSections",
    "BasicBlock",
    "BasicStem",
    "BottleneckBlock",
    "FPNConfig",
    "LastLevelMaxPool",
    "LastLevelP6P7",
    "MobileNetV2",
    "ResNet",
    "ResNetConfig",
    "make_stage",
]


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """MODEL.BACKBONE; defaults are detectron2's."""

    name: str = "build_resnet_backbone"  # a key of BACKBONES
    freeze_at: int = 2  # 0 trains everything, 1 freezes the stem, k >= 2 the stem and up to res{k}


@dataclass(frozen=True, kw_only=True)
class BackboneSections:
    """The MODEL keys that backbones read; a system's section subclasses it."""

    pixel_mean: tuple[float, ...] = (103.53, 116.28, 123.675)  # in the order of INPUT.FORMAT
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    resnets: ResNetConfig = field(default_factory=ResNetConfig)
    fpn: FPNConfig = field(default_factory=FPNConfig)

    def build_backbone(self) -> Backbone:
        """The backbone that `backbone.name` names, with random weights."""
        name = self.backbone.name
        if name not in BACKBONES:
            close = difflib.get_close_matches(name, BACKBONES, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(BACKBONES)}"
            raise ConfigError(f"unknown MODEL.BACKBONE.NAME {name}; {hint}")
        return BACKBONES[name](self)


def _resnet(sections: BackboneSections) -> ResNet:
    return sections.resnets.build(
        freeze_at=sections.backbone.freeze_at, input_channels=len(sections.pixel_mean)
    )


def _resnet_fpn(sections: BackboneSections) -> FPN:
    return sections.fpn.build(_resnet(sections), LastLevelMaxPool())


def _mobilenetv2(sections: BackboneSections) -> MobileNetV2:
    return MobileNetV2(  # reads RESNETS' keys, as AdelaiDet's and CenterMask2's files expect
        out_features=sections.resnets.out_features,
        norm=sections.resnets.norm,
        freeze_at=sections.backbone.freeze_at,
        input_channels=len(sections.pixel_mean),
    )


def _mobilenetv2_fpn(sections: BackboneSections) -> FPN:
    return sections.fpn.build(_mobilenetv2(sections), LastLevelMaxPool())


BACKBONES: dict[str, Callable[[BackboneSections], Backbone]] = {
    "build_resnet_backbone": _resnet,
    "build_resnet_fpn_backbone": _resnet_fpn,
    "build_mobilenetv2_backbone": _mobilenetv2,
    "build_mobilenetv2_fpn_backbone": _mobilenetv2_fpn,
}
