"""ResNet (He et al. 2015, arXiv:1512.03385) and ResNeXt (Xie et al. 2016, arXiv:1611.05431)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.config.ranges import PositiveInt, Range
from segdet.errors import ConfigError
from segdet.layers import (
    Conv2d,
    DeformConv,
    ModulatedDeformConv,
    NormName,
    ShapeSpec,
    c2_msra_fill,
    get_norm,
)
from segdet.modeling.backbones.backbone import StagedBackbone

BASIC_DEPTHS = (18, 34)  # of two 3x3 convolutions a block; the others have bottlenecks
BLOCKS_PER_STAGE = {  # res2 to res5; table 1 of arXiv:1512.03385, which has no 26
    18: (2, 2, 2, 2),
    26: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
FEATURES = ("stem", "res2", "res3", "res4", "res5")


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """MODEL.RESNETS; defaults are detectron2's."""

    depth: int = 50
    out_features: tuple[str, ...] = ("res4",)  # the last one is where the network ends
    num_groups: PositiveInt = 1  # 32 for ResNeXt 32x8d
    norm: NormName = "FrozenBN"
    width_per_group: PositiveInt = 64
    stride_in_1x1: bool = True  # True: the MSRA weights; False: torchvision, FAIR's GN and ResNeXt
    res5_dilation: PositiveInt = 1  # 2 keeps res5 at stride 16
    res2_out_channels: PositiveInt = 256  # 64 for depths 18 and 34
    stem_out_channels: PositiveInt = 64
    # 0: MXNet's and Caffe's pooling, which rounds its size up instead.
    stem_pool_padding: Annotated[int, Range(0, 1)] = 1
    deform_on_per_stage: tuple[bool, ...] = (False, False, False, False)  # res2 to res5
    deform_modulated: bool = False  # version 2, with a mask
    deform_num_groups: PositiveInt = 1  # groups of channels with offsets of their own
    deform_interval: PositiveInt = 1  # the first of so many blocks of those stages is deformable
    deform_bias: bool = False  # of modulated ones, beside their norm's, as YOLACT++ has it

    def __post_init__(self) -> None:
        if self.depth not in BLOCKS_PER_STAGE:
            known = ", ".join(map(str, BLOCKS_PER_STAGE))
            raise ConfigError(f"DEPTH must be one of {known}, is {self.depth}")
        if not self.out_features or not set(self.out_features) <= set(FEATURES):
            raise ConfigError(
                f"OUT_FEATURES must name some of {', '.join(FEATURES)}, is {self.out_features}"
            )
        if len(self.deform_on_per_stage) != 4:
            raise ConfigError(
                "DEFORM_ON_PER_STAGE must have a value for each of res2 to res5, is "
                f"{self.deform_on_per_stage}"
            )
        if self.deform_bias and not self.deform_modulated:
            raise ConfigError("DEFORM_BIAS needs DEFORM_MODULATED: version 1 has no bias")
        if self.depth in BASIC_DEPTHS:
            self._check_basic()

    def _check_dilation(self) -> None:
        if self.res5_dilation not in (1, 2):
            raise ConfigError(
                f"MODEL.RESNETS.RES5_DILATION must be 1 or 2, is {self.res5_dilation}"
            )

    def _check_basic(self) -> None:
        if self.res2_out_channels > 64:  # narrower than the published 64 is a user's choice
            raise ConfigError(
                f"DEPTH {self.depth} needs RES2_OUT_CHANNELS = 64, it is {self.res2_out_channels}"
            )
        wanted = {
            "RES5_DILATION": (self.res5_dilation, 1),
            "NUM_GROUPS": (self.num_groups, 1),
            "DEFORM_ON_PER_STAGE": (any(self.deform_on_per_stage), False),
        }
        for key, (value, needed) in wanted.items():
            if value != needed:
                raise ConfigError(f"DEPTH {self.depth} needs {key} = {needed}, it is {value}")

    def build(self, *, freeze_at: int, input_channels: int = 3) -> ResNet:
        """The network with random weights.

        Args:
            freeze_at: 0 trains everything, 1 freezes the stem, k >= 2 the stem and res2 to res{k}.
            input_channels: of the images.

        Raises:
            ConfigError: a dilation that this trunk does not have; those of plug-ins have others.
        """
        self._check_dilation()
        last = max(FEATURES.index(name) for name in self.out_features) + 1
        stem = self.build_stem(input_channels)
        channels = stem.out_channels
        stages = []
        for level in range(2, last + 1):
            stride = 1 if level == 2 or self.dilation(level) > 1 else 2
            dilations = self.block_dilations(level)
            stages.append(self._build_stage(level, channels, stride=stride, dilations=dilations))
            channels = cast(Block, stages[-1][-1]).out_channels
        return ResNet(stem, stages, out_features=self.out_features, freeze_at=freeze_at)

    def build_stem(self, input_channels: int) -> Stem:
        """What stands before res2."""
        return BasicStem(
            input_channels,
            self.stem_out_channels,
            norm=self.norm,
            pool_padding=self.stem_pool_padding,
        )

    def dilation(self, level: int) -> int:
        """Of res{level}; where it is above 1, the stage keeps the stride of its input."""
        return self.res5_dilation if level == 5 else 1

    def block_dilations(self, level: int) -> list[int]:
        """Of the 3x3 convolution of each block in res{level}."""
        return [self.dilation(level)] * BLOCKS_PER_STAGE[self.depth][level - 2]

    def build_res5(self, in_channels: int) -> nn.Sequential:
        """The last stage alone, stride 2 and trained, as C4 heads apply it to pooled regions."""
        if self.deform_on_per_stage[-1]:
            raise ConfigError(
                "DEFORM_ON_PER_STAGE must not name res5 where heads apply it to regions"
            )
        dilations = [1] * BLOCKS_PER_STAGE[self.depth][-1]
        return self._build_stage(5, in_channels, stride=2, dilations=dilations)

    def _build_stage(
        self, level: int, in_channels: int, *, stride: int, dilations: list[int]
    ) -> nn.Sequential:
        scale = 2 ** (level - 2)
        block: Callable[..., Block] = BasicBlock
        settings: dict[str, Any] = {"norm": self.norm}
        if self.depth not in BASIC_DEPTHS:
            block = BottleneckBlock
            settings |= {
                "bottleneck_channels": self.num_groups * self.width_per_group * scale,
                "num_groups": self.num_groups,
                "stride_in_1x1": self.stride_in_1x1,
                "dilation_per_block": dilations,
            }
        if self.deform_on_per_stage[level - 2]:
            block = _perhaps_deformable
            settings |= {
                "deformable_per_block": [
                    index % self.deform_interval == 0 for index in range(len(dilations))
                ],
                "deform_modulated": self.deform_modulated,
                "deform_num_groups": self.deform_num_groups,
                "deform_bias": self.deform_bias,
            }
        return make_stage(
            block,
            len(dilations),
            in_channels=in_channels,
            out_channels=self.res2_out_channels * scale,
            stride=stride,
            **settings,
        )


class ResNet(StagedBackbone):
    """A stem and up to four stages, the attributes `stem` and `res2` to `res5`.

    Args:
        stem: comes first, and says its `out_channels` and `stride`.
        stages: res2 onwards, as `make_stage` builds them.
        out_features: names of the maps to return: "stem", "res2" ... "res5".
        freeze_at: 0 trains everything, 1 freezes the stem, k >= 2 the stem and res2 to res{k}.
    """

    def __init__(
        self,
        stem: Stem,
        stages: Sequence[nn.Sequential],
        *,
        out_features: Sequence[str],
        freeze_at: int = 0,
    ) -> None:
        parts = {"stem": stem, **{f"res{k}": stage for k, stage in enumerate(stages, start=2)}}
        shapes = {"stem": ShapeSpec(channels=stem.out_channels, stride=stem.stride)}
        stride = stem.stride
        for name, stage in zip(list(parts)[1:], stages, strict=True):
            first, last = cast(Block, stage[0]), cast(Block, stage[-1])
            stride *= first.stride
            shapes[name] = ShapeSpec(channels=last.out_channels, stride=stride)
        super().__init__(parts, shapes, out_features=out_features, freeze_at=freeze_at)


class Stem(nn.Module):
    """What brings images to stride 4, with any layers."""

    stride = 4

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels


class BasicStem(Stem):
    """7x7 convolution and 3x3 max pooling, stride 2 each.

    Args:
        in_channels: of the images.
        out_channels: of the result.
        norm: a name that `get_norm` knows.
        pool_padding: of the pooling, 1; or 0, where the last window may reach over the border.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, norm: str, pool_padding: int = 1
    ) -> None:
        super().__init__(out_channels)
        self.pool_padding = pool_padding
        self.conv1 = conv_with_norm(
            in_channels, out_channels, 7, norm, F.relu_, stride=2, padding=3
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, out_channels, ceil(H / 4), ceil(W / 4)).

        Without padding, an odd half of H or W gives a row or column less.
        """
        return F.max_pool2d(
            self.conv1(x), 3, 2, padding=self.pool_padding, ceil_mode=self.pool_padding == 0
        )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, norm: str) -> None:
        super().__init__()
        self.out_channels, self.stride = out_channels, stride
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm)
        self.conv1 = conv_with_norm(
            in_channels, out_channels, 3, norm, F.relu_, stride=stride, padding=1
        )
        self.conv2 = conv_with_norm(out_channels, out_channels, 3, norm, F.relu_, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        return self.conv2(self.conv1(x), x if self.shortcut is None else self.shortcut(x))


class BottleneckBlock(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        bottleneck_channels: of the 3x3 convolution, all groups together.
        stride: of the block.
        norm: a name that `get_norm` knows.
        num_groups: of the 3x3 convolution.
        stride_in_1x1: the first convolution has the stride, otherwise the 3x3 one.
        dilation: of the 3x3 convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int,
        norm: str,
        num_groups: int = 1,
        stride_in_1x1: bool = False,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.out_channels, self.stride = out_channels, stride
        width = bottleneck_channels
        stride1, stride2 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm)
        self.conv1 = conv_with_norm(in_channels, width, 1, norm, F.relu_, stride=stride1)
        self.conv2 = conv_with_norm(
            width,
            width,
            3,
            norm,
            F.relu_,
            stride=stride2,
            padding=dilation,
            dilation=dilation,
            groups=num_groups,
        )
        self.conv3 = conv_with_norm(width, out_channels, 1, norm, F.relu_)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        out = self.conv2(self.conv1(x))
        return self.conv3(out, x if self.shortcut is None else self.shortcut(x))


class DeformBottleneckBlock(nn.Module):
    """BottleneckBlock whose 3x3 convolution is deformable; `conv2_offset` says where it looks.

    Source: Deformable Convolutional Networks (arXiv:1703.06211), section 3; version 2
    (arXiv:1811.11168), section 3.2.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        bottleneck_channels: of the 3x3 convolution, all groups together.
        stride: of the block.
        norm: a name that `get_norm` knows.
        num_groups: of the 3x3 convolution.
        stride_in_1x1: the first convolution has the stride, otherwise the 3x3 one.
        dilation: of the 3x3 convolution.
        deform_modulated: version 2, whose samples are weighed by a mask.
        deform_num_groups: groups of channels that have offsets of their own.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int,
        norm: str,
        num_groups: int = 1,
        stride_in_1x1: bool = False,
        dilation: int = 1,
        deform_modulated: bool = False,
        deform_num_groups: int = 1,
    ) -> None:
        super().__init__()
        self.out_channels, self.stride = out_channels, stride
        width = bottleneck_channels
        stride1, stride2 = (stride, 1) if stride_in_1x1 else (1, stride)
        place: dict[str, Any] = {"stride": stride2, "padding": dilation, "dilation": dilation}
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm)
        self.conv1 = conv_with_norm(in_channels, width, 1, norm, F.relu_, stride=stride1)
        per_tap = 3 if deform_modulated else 2
        self.conv2_offset = Conv2d(width, 9 * per_tap * deform_num_groups, 3, **place)
        nn.init.zeros_(self.conv2_offset.weight)
        nn.init.zeros_(cast(Tensor, self.conv2_offset.bias))
        self.conv2 = (ModulatedDeformConv if deform_modulated else DeformConv)(
            width,
            width,
            3,
            **place,
            groups=num_groups,
            deformable_groups=deform_num_groups,
            bias=False,
            norm=get_norm(norm, width),
            activation=F.relu_,
        )
        c2_msra_fill(self.conv2)
        self.conv3 = conv_with_norm(width, out_channels, 1, norm, F.relu_)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        out = self.conv1(x)
        offset = self.conv2_offset(out)
        if isinstance(self.conv2, ModulatedDeformConv):
            first, second, mask = offset.chunk(3, dim=1)
            out = self.conv2(out, torch.cat([first, second], dim=1), mask.sigmoid())
        else:
            out = self.conv2(out, offset)
        return self.conv3(out, x if self.shortcut is None else self.shortcut(x))


class BiasedDeformBottleneckBlock(DeformBottleneckBlock):
    """With a bias before the norm of the 3x3 convolution, as YOLACT++'s weights have it.

    Arguments are those of `DeformBottleneckBlock`; `deform_modulated` must be true.
    """

    def __init__(self, in_channels: int, out_channels: int, **settings: Any) -> None:
        super().__init__(in_channels, out_channels, **settings)
        assert isinstance(self.conv2, ModulatedDeformConv), "version 1 has no bias"
        self.conv2.bias = nn.Parameter(torch.zeros(self.conv2.out_channels))


Block: TypeAlias = BasicBlock | BottleneckBlock | DeformBottleneckBlock


def _perhaps_deformable(
    in_channels: int,
    out_channels: int,
    *,
    deformable: bool,
    deform_modulated: bool,
    deform_num_groups: int,
    deform_bias: bool,
    **settings: Any,
) -> BottleneckBlock | DeformBottleneckBlock:
    if not deformable:
        return BottleneckBlock(in_channels, out_channels, **settings)
    deform = {"deform_modulated": deform_modulated, "deform_num_groups": deform_num_groups}
    kind = BiasedDeformBottleneckBlock if deform_bias else DeformBottleneckBlock
    return kind(in_channels, out_channels, **deform, **settings)


def make_stage(
    block: Callable[..., Block],
    num_blocks: int,
    *,
    in_channels: int,
    out_channels: int,
    stride: int,
    **settings: Any,
) -> nn.Sequential:
    """Blocks one after the other; the first has the stride and the change of width.

    Args:
        block: BasicBlock, BottleneckBlock, DeformBottleneckBlock, or what makes one of them.
        num_blocks: how many.
        in_channels: of the stage's input.
        out_channels: of every block's output.
        stride: of the stage.
        settings: further arguments of every block; NAME_per_block is a list with NAME of each.
    """
    blocks = []
    for index in range(num_blocks):
        own = {
            name.removesuffix("_per_block"): value[index] if name.endswith("_per_block") else value
            for name, value in settings.items()
        }
        blocks.append(block(in_channels, out_channels, stride=stride if index == 0 else 1, **own))
        in_channels = out_channels
    return nn.Sequential(*blocks)


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: str) -> Conv2d | None:
    if in_channels == out_channels:
        return None
    return conv_with_norm(in_channels, out_channels, 1, norm, stride=stride)


def conv_with_norm(
    in_channels: int, out_channels: int, size: int, norm: str, activation: Any = None, **kwargs: int
) -> Conv2d:
    """A convolution, its norm and its activation, with ResNet's random weights.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        size: of the kernel, in pixels.
        norm: a name that `get_norm` knows; "" is none, and a bias instead.
        activation: a function of a tensor.
        kwargs: of torch's Conv2d.
    """
    conv = Conv2d(
        in_channels,
        out_channels,
        size,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=activation,
        **kwargs,
    )
    c2_msra_fill(conv)
    return conv
