"""VoVNet-V2 (Lee and Park 2020, arXiv:1911.06667, section 3.3), without its classifier."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.config.ranges import PositiveInt, no_effect
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


@dataclass(frozen=True)
class Body:
    """Widths and depths of one network."""

    stem: tuple[int, int, int]  # channels of its three convolutions
    widths: tuple[int, int, int, int]  # of the convolutions in stage2 to stage5
    channels: tuple[int, int, int, int]  # of what those stages give
    blocks: tuple[int, int, int, int]  # in those stages
    layers: int  # convolutions of a block before they are joined
    depthwise: bool = False


_STEM, _NARROW_STEM = (64, 64, 128), (64, 64, 64)
_WIDE = (128, 160, 192, 224), (256, 512, 768, 1024)
_SLIM = (64, 80, 96, 112), (112, 256, 384, 512)
BODIES = {  # MODEL.VOVNET.CONV_BODY
    "V-19-slim-dw-eSE": Body(_NARROW_STEM, *_SLIM, (1, 1, 1, 1), layers=3, depthwise=True),
    "V-19-dw-eSE": Body(_NARROW_STEM, *_WIDE, (1, 1, 1, 1), layers=3, depthwise=True),
    "V-19-slim-eSE": Body(_STEM, *_SLIM, (1, 1, 1, 1), layers=3),
    "V-19-eSE": Body(_STEM, *_WIDE, (1, 1, 1, 1), layers=3),
    "V-39-eSE": Body(_STEM, *_WIDE, (1, 1, 2, 2), layers=5),
    "V-57-eSE": Body(_STEM, *_WIDE, (1, 1, 4, 3), layers=5),
    "V-99-eSE": Body(_STEM, *_WIDE, (1, 3, 9, 3), layers=5),
}
FEATURES = ("stem", "stage2", "stage3", "stage4", "stage5")


@dataclass(frozen=True, kw_only=True)
class VoVNetConfig:
    """MODEL.VOVNET; defaults are CenterMask2's."""

    conv_body: str = "V-39-eSE"  # a key of BODIES
    out_features: tuple[str, ...] = ("stage2", "stage3", "stage4", "stage5")
    norm: NormName = "FrozenBN"
    stage_with_dcn: tuple[bool, ...] = (False, False, False, False)  # stage2 to stage5
    with_modulated_dcn: bool = False  # version 2, with a mask
    deformable_groups: PositiveInt = 1  # groups of channels with offsets of their own
    out_channels: int = no_effect(256, "the pyramid's width is MODEL.FPN.OUT_CHANNELS")
    backbone_out_channels: int = no_effect(256, "the pyramid's width is MODEL.FPN.OUT_CHANNELS")

    def __post_init__(self) -> None:
        if self.conv_body not in BODIES:
            raise ConfigError(
                f"CONV_BODY {self.conv_body!r} is unknown; known: {', '.join(BODIES)}"
            )
        if not self.out_features or not set(self.out_features) <= set(FEATURES):
            raise ConfigError(
                f"OUT_FEATURES must name some of {', '.join(FEATURES)}, is {self.out_features}"
            )
        if len(self.stage_with_dcn) != 4:
            raise ConfigError(
                f"STAGE_WITH_DCN must have a value for each of stage2 to stage5, is "
                f"{self.stage_with_dcn}"
            )
        if any(self.stage_with_dcn) and BODIES[self.conv_body].depthwise:
            raise ConfigError(
                f"STAGE_WITH_DCN must be all False for {self.conv_body}, whose convolutions are "
                f"depthwise; it is {self.stage_with_dcn}"
            )

    def build(self, *, freeze_at: int, input_channels: int = 3) -> VoVNet:
        """The network with random weights.

        Args:
            freeze_at: 0 trains everything, 1 freezes the stem, k >= 2 the stem and up to stage{k}.
            input_channels: of the images.
        """
        body, last = BODIES[self.conv_body], max(map(FEATURES.index, self.out_features))
        layer = depthwise_layer if body.depthwise else conv_layer
        channels, stages = body.stem[-1], []
        for index in range(last):
            stages.append(
                make_stage(
                    index + 2,
                    channels,
                    body.channels[index],
                    width=body.widths[index],
                    num_blocks=body.blocks[index],
                    num_layers=body.layers,
                    layer=self._deform_layer() if self.stage_with_dcn[index] else layer,
                    norm=self.norm,
                )
            )
            channels = body.channels[index]
        return VoVNet(
            make_stem(input_channels, body.stem, layer=layer, norm=self.norm),
            stages,
            channels=(body.stem[-1], *body.channels)[: last + 1],
            out_features=self.out_features,
            freeze_at=freeze_at,
        )

    def _deform_layer(self) -> Layer:
        return functools.partial(
            DeformLayer, modulated=self.with_modulated_dcn, num_groups=self.deformable_groups
        )


class VoVNet(StagedBackbone):
    """A stem and up to four stages, the attributes `stem` and `stage2` to `stage5`.

    Args:
        stem: images to a map at stride 4.
        stages: stage2, which keeps that stride, and onwards, each at twice the stride.
        channels: of the stem's map and of each stage's.
        out_features: names of the maps to return: "stem", "stage2" ... "stage5".
        freeze_at: 0 trains everything, 1 freezes the stem, k >= 2 the stem and up to stage{k}.
    """

    def __init__(
        self,
        stem: nn.Sequential,
        stages: Sequence[nn.Sequential],
        *,
        channels: Sequence[int],
        out_features: Sequence[str],
        freeze_at: int = 0,
    ) -> None:
        shapes = {
            name: ShapeSpec(channels=width, stride=4 * 2 ** max(index - 1, 0))
            for index, (name, width) in enumerate(zip(FEATURES, channels, strict=False))
        }
        parts = dict(zip(shapes, (stem, *stages), strict=True))
        super().__init__(parts, shapes, out_features=out_features, freeze_at=freeze_at)


class OSABlock(nn.Module):
    """One-shot aggregation: convolutions in a chain, whose outputs are joined once at its end.

    Source: VoVNet (arXiv:1904.09730), section 4.1; the sum with the input and the weighting of
    channels are version 2's.

    Args:
        name: starts the names of its parts, as in the official weights.
        in_channels: of the input.
        out_channels: of the output.
        width: channels of the convolutions in the chain.
        num_layers: of the chain.
        layer: builds one of them.
        norm: a name that `get_norm` knows.
        adds_input: the input is added to the result; its width must be the output's.
    """

    def __init__(
        self,
        name: str,
        in_channels: int,
        out_channels: int,
        *,
        width: int,
        num_layers: int,
        layer: Layer,
        norm: str,
        adds_input: bool,
    ) -> None:
        super().__init__()
        # Depthwise convolutions cannot change the width, so the chain begins with one that does.
        reduces = layer is depthwise_layer and in_channels != width
        inputs = [width if reduces else in_channels, *[width] * (num_layers - 1)]
        self.layers = nn.ModuleList(
            layer(f"{name}_{i}", channels, width, norm=norm) for i, channels in enumerate(inputs)
        )
        self.conv_reduction = (
            conv_layer(f"{name}_reduction_0", in_channels, width, norm=norm, size=1)
            if reduces
            else None
        )
        joined = in_channels + num_layers * width
        self.concat = conv_layer(f"{name}_concat", joined, out_channels, norm=norm, size=1)
        self.ese = EffectiveSqueezeExcitation(out_channels)
        self.adds_input = adds_input

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H, W)."""
        x = inputs if self.conv_reduction is None else self.conv_reduction(inputs)
        outputs = [inputs]
        for layer in self.layers:
            x = layer(x)
            outputs.append(x)
        x = self.ese(self.concat(torch.cat(outputs, dim=1)))
        return x + inputs if self.adds_input else x


class EffectiveSqueezeExcitation(nn.Module):
    """Weighs channels by what their means say of each other (CenterMask, equation 3).

    Args:
        channels: of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = Conv2d(channels, channels, kernel_size=1)
        c2_msra_fill(self.fc)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to the same shape."""
        return x * F.hardsigmoid(self.fc(x.mean(dim=(2, 3), keepdim=True)))


class DeformLayer(nn.Module):
    """A deformable 3x3 convolution, norm and ReLU, under the plain layer's names.

    Args:
        name: starts the names of its parts.
        in_channels: of the input.
        out_channels: of the output.
        norm: a name that `get_norm` knows.
        modulated: a mask weighs the samples (version 2).
        num_groups: of channels with offsets of their own.
    """

    def __init__(
        self,
        name: str,
        in_channels: int,
        out_channels: int,
        *,
        norm: str,
        modulated: bool,
        num_groups: int,
    ) -> None:
        super().__init__()
        self.name, self.num_offsets = name, 2 * num_groups * 9  # y and x of each kernel cell
        num_masks = num_groups * 9 if modulated else 0
        offset = Conv2d(in_channels, self.num_offsets + num_masks, 3, padding=1)
        for parameter in offset.parameters():
            nn.init.zeros_(parameter)
        kind = ModulatedDeformConv if modulated else DeformConv
        conv = kind(
            in_channels, out_channels, 3, padding=1, deformable_groups=num_groups, bias=False
        )
        c2_msra_fill(conv)
        self.add_module(f"{name}/conv_offset", offset)
        self.add_module(f"{name}/conv", conv)
        self.add_module(f"{name}/norm", get_norm(norm, out_channels) or nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H, W)."""
        looks = self.get_submodule(f"{self.name}/conv_offset")(x)
        offset, mask = looks[:, : self.num_offsets], looks[:, self.num_offsets :]
        conv = self.get_submodule(f"{self.name}/conv")
        x = conv(x, offset, mask.sigmoid()) if mask.shape[1] else conv(x, offset)
        return F.relu(self.get_submodule(f"{self.name}/norm")(x))


Layer = Callable[..., nn.Module]  # of name, channels of the input and of the output; norm=


def conv_layer(
    name: str, in_channels: int, out_channels: int, *, norm: str, size: int = 3, stride: int = 1
) -> nn.Sequential:
    """Convolution, norm, ReLU.

    Args:
        name: starts the names of its parts, as in the official weights.
        in_channels: of the input.
        out_channels: of the output.
        norm: a name that `get_norm` knows.
        size: of the kernel, in pixels.
        stride: 1 keeps the size.
    """
    conv = Conv2d(in_channels, out_channels, size, stride, padding=size // 2, bias=not norm)
    c2_msra_fill(conv)
    return _sequence({f"{name}/conv": conv, f"{name}/norm": get_norm(norm, out_channels)})


def depthwise_layer(
    name: str, in_channels: int, out_channels: int, *, norm: str, stride: int = 1
) -> nn.Sequential:
    """A 3x3 convolution of every channel by itself, a 1x1 one of all, norm, ReLU.

    Args:
        name: starts the names of its parts, as in the official weights.
        in_channels: of the input.
        out_channels: of the output.
        norm: a name that `get_norm` knows.
        stride: of the first; 1 keeps the size.
    """
    each = Conv2d(in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=not norm)
    across = Conv2d(in_channels, out_channels, kernel_size=1, bias=not norm)
    for conv in (each, across):
        c2_msra_fill(conv)
    return _sequence(
        {
            f"{name}/dw_conv3x3": each,
            f"{name}/pw_conv1x1": across,
            f"{name}/pw_norm": get_norm(norm, out_channels),
        }
    )


def _sequence(parts: dict[str, nn.Module | None]) -> nn.Sequential:
    """The parts that are there, then ReLU."""
    sequence = nn.Sequential()
    for name, part in parts.items():
        if part is not None:
            sequence.add_module(name, part)
    sequence.add_module("relu", nn.ReLU(inplace=True))
    return sequence


def make_stem(
    in_channels: int, channels: tuple[int, int, int], *, layer: Layer, norm: str
) -> nn.Sequential:
    """Three 3x3 convolutions, the first and the last with stride 2.

    Args:
        in_channels: of the images.
        channels: of each one's output.
        layer: builds the second and the third; `stride=` too.
        norm: a name that `get_norm` knows.
    """
    first, second, third = channels
    layers = [
        conv_layer("stem_1", in_channels, first, norm=norm, stride=2),
        layer("stem_2", first, second, norm=norm),
        layer("stem_3", second, third, norm=norm, stride=2),
    ]
    stem = nn.Sequential()
    for k, one in enumerate(layers, start=1):  # official names are flat: stem.stem_1/conv
        for name, part in one.named_children():
            stem.add_module(f"stem_{k}/relu" if name == "relu" else name, part)
    return stem


def make_stage(
    level: int,
    in_channels: int,
    out_channels: int,
    *,
    width: int,
    num_blocks: int,
    num_layers: int,
    layer: Layer,
    norm: str,
) -> nn.Sequential:
    """Blocks one after the other, all but the first with the sum; before them, pooling to half.

    Args:
        level: 2 to 5; 2 keeps the size of its input.
        in_channels: of the input.
        out_channels: of every block's output.
        width: channels inside the blocks.
        num_blocks: how many.
        num_layers: convolutions in each before they are joined.
        layer: builds one of them.
        norm: a name that `get_norm` knows.
    """
    stage = nn.Sequential()
    if level > 2:
        # Unpadded, and a part of a window at the far border counts: 99 cells give 49, 100 give 50.
        stage.add_module("Pooling", nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True))
    for number in range(1, num_blocks + 1):
        name = f"OSA{level}_{number}"
        block = OSABlock(
            name,
            in_channels,
            out_channels,
            width=width,
            num_layers=num_layers,
            layer=layer,
            norm=norm,
            adds_input=number > 1,
        )
        stage.add_module(name, block)
        in_channels = out_channels
    return stage
