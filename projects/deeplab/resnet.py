"""DeepLab's trunk: ResNet with a stem of three convolutions, dilated last stages, a multi-grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from segdet.config.ranges import PositiveInt
from segdet.config.reader import read_as
from segdet.errors import ConfigError
from segdet.modeling.backbones import BackboneSections, ResNet, ResNetConfig
from segdet.modeling.backbones.resnet import BLOCKS_PER_STAGE, Stem, conv_with_norm


@dataclass(frozen=True, kw_only=True)
class DeepLabResNetKeys(ResNetConfig):
    """MODEL.RESNETS with DeepLab's keys, which other trunks leave unread.

    Defaults are those of detectron2's project.
    """

    res4_dilation: PositiveInt = 1  # 2 keeps res4 at stride 8
    res5_multi_grid: tuple[PositiveInt, ...] = (
        1,
        2,
        4,
    )  # times RES5_DILATION, one a block
    stem_type: str = "deeplab"  # or "basic"


@dataclass(frozen=True, kw_only=True)
class DeepLabResNetConfig(DeepLabResNetKeys):
    """The same keys as DeepLab's own trunk reads them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stem_type not in ("basic", "deeplab"):
            raise ConfigError(f'STEM_TYPE must be "basic" or "deeplab", is "{self.stem_type}"')
        if len(self.res5_multi_grid) != BLOCKS_PER_STAGE[self.depth][-1]:
            raise ConfigError(
                f"RES5_MULTI_GRID must have a factor for each block of res5, "
                f"{BLOCKS_PER_STAGE[self.depth][-1]} at DEPTH {self.depth}; "
                f"is {self.res5_multi_grid}"
            )

    def _check_dilation(self) -> None:
        allowed = {1: (1, 2, 4), 2: (4,)}
        if self.res5_dilation not in allowed.get(self.res4_dilation, ()):
            raise ConfigError(
                "MODEL.RESNETS: RES4_DILATION and RES5_DILATION must be 1 and 1 (stride 32), 1 and "
                "2 or 4 (stride 16), or 2 and 4 (stride 8), are "
                f"{self.res4_dilation} and {self.res5_dilation}"
            )

    def build_stem(self, input_channels: int) -> Stem:
        """What stands before res2."""
        if self.stem_type == "basic":
            return super().build_stem(input_channels)
        return DeepLabStem(input_channels, self.stem_out_channels, norm=self.norm)

    def dilation(self, level: int) -> int:
        """Of res{level}; where it is above 1, the stage keeps the stride of its input."""
        return self.res4_dilation if level == 4 else super().dilation(level)

    def block_dilations(self, level: int) -> list[int]:
        """Of the 3x3 convolution of each block in res{level}."""
        dilations = super().block_dilations(level)
        if level < 5:
            return dilations
        return [one * factor for one, factor in zip(dilations, self.res5_multi_grid, strict=True)]


class DeepLabStem(Stem):
    """Three 3x3 convolutions instead of one 7x7, and max pooling; with it ResNet-101 is R-103."""

    def __init__(self, in_channels: int, out_channels: int, *, norm: str) -> None:
        super().__init__(out_channels)
        width = out_channels // 2
        self.conv1 = conv_with_norm(in_channels, width, 3, norm, F.relu_, stride=2, padding=1)
        self.conv2 = conv_with_norm(width, width, 3, norm, F.relu_, padding=1)
        self.conv3 = conv_with_norm(width, out_channels, 3, norm, F.relu_, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, out_channels, ceil(H / 4), ceil(W / 4))."""
        x = self.conv3(self.conv2(self.conv1(x)))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


def build_resnet_deeplab_backbone(sections: BackboneSections, input_channels: int) -> ResNet:
    """The trunk that MODEL.RESNETS describes."""
    resnets = read_as(DeepLabResNetConfig, sections.resnets, at="MODEL.RESNETS")
    return resnets.build(freeze_at=sections.backbone.freeze_at, input_channels=input_channels)
