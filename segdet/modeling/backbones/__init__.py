"""Backbones, and the table of the names that MODEL.BACKBONE.NAME knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from segdet.config.ranges import Finite, NonNegativeInt, Range
from segdet.errors import ConfigError, did_you_mean
from segdet.modeling.backbones.backbone import Backbone, checkpoint_activations, known
from segdet.modeling.backbones.darknet import DarkNet
from segdet.modeling.backbones.dla import DLA, DLAConfig
from segdet.modeling.backbones.fpn import (
    FPN,
    FPNConfig,
    LastLevelMaxPool,
    LastLevelP6,
    LastLevelP6P7,
)
from segdet.modeling.backbones.mobilenet import MobileNetV2
from segdet.modeling.backbones.resnet import (
    BasicBlock,
    BasicStem,
    BottleneckBlock,
    DeformBottleneckBlock,
    ResNet,
    ResNetConfig,
    make_stage,
)
from segdet.modeling.backbones.vovnet import VoVNet, VoVNetConfig

__all__ = [
    "BACKBONES",
    "DLA",
    "FPN",
    "Backbone",
    "BackboneConfig",
    "BackboneSections",
    "BasicBlock",
    "BasicStem",
    "BottleneckBlock",
    "DLAConfig",
    "DarkNet",
    "DeformBottleneckBlock",
    "FCOSLevelsConfig",
    "FPNConfig",
    "LastLevelMaxPool",
    "LastLevelP6",
    "LastLevelP6P7",
    "MobileNetV2",
    "ResNet",
    "ResNetConfig",
    "VoVNet",
    "VoVNetConfig",
    "make_stage",
]


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """MODEL.BACKBONE; defaults are detectron2's."""

    name: str = "build_resnet_backbone"  # a key of BACKBONES
    # 0 or less trains everything, 1 freezes the stem, k >= 2 the stem and up to res{k}.
    freeze_at: Annotated[int, Range()] = 2
    use_act_checkpoint: bool = False  # the backward pass computes maps inside of blocks once more


@dataclass(frozen=True, kw_only=True)
class FCOSLevelsConfig:
    """MODEL.FCOS, as the backbones of its files read it."""

    top_levels: NonNegativeInt = 2  # of the pyramid above p5, each made from the one before


@dataclass(frozen=True, kw_only=True)
class BackboneSections:
    """The MODEL keys that backbones read; a system's section subclasses it."""

    pixel_mean: tuple[Finite, ...] = (103.53, 116.28, 123.675)  # in the order of INPUT.FORMAT
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    resnets: ResNetConfig = field(default_factory=ResNetConfig)
    vovnet: VoVNetConfig = field(default_factory=VoVNetConfig)
    dla: DLAConfig = field(default_factory=DLAConfig)
    fpn: FPNConfig = field(default_factory=FPNConfig)
    fcos: FCOSLevelsConfig = field(default_factory=FCOSLevelsConfig)
    mobilenet: bool = False  # AdelaiDet's: build_fcos_resnet_fpn_backbone has a MobileNetV2 body

    def build_backbone(self, input_channels: int | None = None) -> Backbone:
        """The backbone that `backbone.name` names, with random weights.

        Args:
            input_channels: of the images; None means one per value of `pixel_mean`.
        """
        name = self.backbone.name
        if name not in BACKBONES:
            raise ConfigError(
                f"unknown MODEL.BACKBONE.NAME {name}{did_you_mean(name, list(BACKBONES))}"
            )
        if input_channels is None:
            input_channels = len(self.pixel_mean)
        backbone = BACKBONES[name](self, input_channels)
        if self.backbone.use_act_checkpoint:
            checkpoint_activations(backbone)
        return backbone


def _resnet(sections: BackboneSections, input_channels: int) -> ResNet:
    return sections.resnets.build(
        freeze_at=sections.backbone.freeze_at, input_channels=input_channels
    )


def _resnet_fpn(sections: BackboneSections, input_channels: int) -> FPN:
    return sections.fpn.build(_resnet(sections, input_channels), LastLevelMaxPool())


def _retinanet_resnet_fpn(sections: BackboneSections, input_channels: int) -> FPN:
    bottom_up = _resnet(sections, input_channels)
    shapes = bottom_up.output_shape()
    if "res5" not in shapes:
        raise ConfigError(
            "build_retinanet_resnet_fpn_backbone makes p6 of res5; MODEL.RESNETS.OUT_FEATURES has "
            f"only {', '.join(shapes)}"
        )
    channels = known(shapes["res5"].channels)
    return sections.fpn.build(bottom_up, LastLevelP6P7(channels, sections.fpn.out_channels))


def _mobilenetv2(sections: BackboneSections, input_channels: int) -> MobileNetV2:
    return MobileNetV2(  # reads RESNETS' keys, as AdelaiDet's and CenterMask2's files expect
        out_features=sections.resnets.out_features,
        norm=sections.resnets.norm,
        freeze_at=sections.backbone.freeze_at,
        input_channels=input_channels,
    )


def _darknet(sections: BackboneSections, input_channels: int) -> DarkNet:
    return DarkNet(
        out_features=sections.resnets.out_features,
        norm=sections.resnets.norm,
        freeze_at=sections.backbone.freeze_at,
        input_channels=input_channels,
    )


def _mobilenetv2_fpn(sections: BackboneSections, input_channels: int) -> FPN:
    return sections.fpn.build(_mobilenetv2(sections, input_channels), LastLevelMaxPool())


def _vovnet(sections: BackboneSections, input_channels: int) -> VoVNet:
    return sections.vovnet.build(
        freeze_at=sections.backbone.freeze_at, input_channels=input_channels
    )


def _vovnet_fpn(sections: BackboneSections, input_channels: int) -> FPN:
    return sections.fpn.build(_vovnet(sections, input_channels), LastLevelMaxPool())


def fcos_fpn(sections: BackboneSections, bottom_up: Backbone) -> FPN:
    """A pyramid over p3 to p5 of AdelaiDet's and CenterMask2's files, with FCOS.TOP_LEVELS more."""
    channels, levels = sections.fpn.out_channels, sections.fcos.top_levels
    tops = {0: None, 1: LastLevelP6, 2: LastLevelP6P7}
    if levels not in tops:
        raise ConfigError(f"MODEL.FCOS.TOP_LEVELS must be 0, 1 or 2, is {levels}")
    top = tops[levels]
    return sections.fpn.build(bottom_up, top and top(channels, channels, in_feature="p5"))


def _fcos_resnet_fpn(sections: BackboneSections, input_channels: int) -> FPN:
    body = _mobilenetv2 if sections.mobilenet else _resnet
    return fcos_fpn(sections, body(sections, input_channels))


def _fcos_mobilenetv2_fpn(sections: BackboneSections, input_channels: int) -> FPN:
    return fcos_fpn(sections, _mobilenetv2(sections, input_channels))


def _fcos_vovnet_fpn(sections: BackboneSections, input_channels: int) -> FPN:
    return fcos_fpn(sections, _vovnet(sections, input_channels))


def _fcos_dla_fpn(sections: BackboneSections, input_channels: int) -> FPN:
    body = sections.dla.build(
        sections.fpn.in_features,
        freeze_at=sections.backbone.freeze_at,
        input_channels=input_channels,
    )
    return fcos_fpn(sections, body)


BACKBONES: dict[str, Callable[[BackboneSections, int], Backbone]] = {  # (_, input channels)
    "build_resnet_backbone": _resnet,
    "build_resnet_fpn_backbone": _resnet_fpn,
    "build_retinanet_resnet_fpn_backbone": _retinanet_resnet_fpn,
    "build_mobilenetv2_backbone": _mobilenetv2,
    "build_mobilenetv2_fpn_backbone": _mobilenetv2_fpn,
    "build_vovnet_backbone": _vovnet,
    "build_vovnet_fpn_backbone": _vovnet_fpn,
    "build_fcos_resnet_fpn_backbone": _fcos_resnet_fpn,
    "build_fcos_mobilenetv2_fpn_backbone": _fcos_mobilenetv2_fpn,
    "build_fcos_vovnet_fpn_backbone": _fcos_vovnet_fpn,
    "build_fcos_dla_fpn_backbone": _fcos_dla_fpn,
    "build_darknet_backbone": _darknet,
}
