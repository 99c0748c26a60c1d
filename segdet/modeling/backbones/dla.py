"""DLA-34 (Yu et al. 2017, arXiv:1707.06484), deep layer aggregation, without its classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.errors import ConfigError
from segdet.layers import NormName, ShapeSpec, c2_msra_fill, get_norm
from segdet.modeling.backbones.backbone import Backbone, freeze

CHANNELS = (16, 32, 64, 128, 256, 512)  # of level0 to level5; table 1 of the paper
DEPTHS = {2: 1, 3: 2, 4: 2, 5: 1}  # level -> how deep its tree is
PARTS = ("base_layer", "level0", "level1", "level2", "level3", "level4", "level5")
SHAPES = {f"level{k}": ShapeSpec(channels=c, stride=2**k) for k, c in enumerate(CHANNELS)}


@dataclass(frozen=True, kw_only=True)
class DLAConfig:
    """MODEL.DLA; keys and defaults are AdelaiDet's."""

    conv_body: str = "DLA34"
    norm: NormName = "FrozenBN"

    def __post_init__(self) -> None:
        if self.conv_body != "DLA34":
            raise ConfigError(f"CONV_BODY must be DLA34, is {self.conv_body!r}")

    def build(self, out_features: Sequence[str], *, freeze_at: int, input_channels: int) -> DLA:
        """The network with random weights."""
        return DLA(
            out_features=out_features,
            norm=self.norm,
            freeze_at=freeze_at,
            input_channels=input_channels,
        )


class DLA(Backbone):
    """Three convolutions and four trees of residual blocks, named as in the official weights.

    Args:
        out_features: names of the maps to return, "level0" ... "level5".
        norm: a name that `get_norm` knows; not "GN", whose 32 groups do not divide 16 channels.
        freeze_at: the first this many of `PARTS` are not trained.
        input_channels: of the images.
    """

    def __init__(
        self,
        *,
        out_features: Sequence[str] = ("level3", "level4", "level5"),
        norm: str = "FrozenBN",
        freeze_at: int = 0,
        input_channels: int = 3,
    ) -> None:
        super().__init__()
        if not out_features or not set(out_features) <= set(SHAPES):
            raise ConfigError(
                f"DLA's maps are {', '.join(SHAPES)}; MODEL.FPN.IN_FEATURES names "
                f"{tuple(out_features)}"
            )
        self.out_features = tuple(out_features)
        self.base_layer = _conv_norm_relu(input_channels, CHANNELS[0], 7, norm)
        self.level0 = _conv_norm_relu(CHANNELS[0], CHANNELS[0], 3, norm)
        self.level1 = _conv_norm_relu(CHANNELS[0], CHANNELS[1], 3, norm, stride=2)
        for level, depth in DEPTHS.items():
            in_channels, channels = CHANNELS[level - 1 : level + 1]
            tree = Tree(depth, in_channels, channels, stride=2, input_at_root=level > 2, norm=norm)
            self.add_module(f"level{level}", tree)
        for part in PARTS[: max(freeze_at, 0)]:
            freeze(self.get_submodule(part))

    def forward(self, images: Tensor) -> dict[str, Tensor]:  # noqa: D102
        features = {}
        x = images
        for part in PARTS:
            x = self.get_submodule(part)(x)
            if part in self.out_features:
                features[part] = x
        return features

    def output_shape(self) -> dict[str, ShapeSpec]:  # noqa: D102
        return {name: SHAPES[name] for name in SHAPES if name in self.out_features}


class Tree(nn.Module):
    """Two subtrees one after the other, whose outputs meet in a root.

    Source: section 3.2 of the paper, "hierarchical deep aggregation", as in figure 2 (f): what
    the first subtree gives also goes to the root of the second.

    Args:
        depth: of the tree; at 1 the subtrees are residual blocks and the root is here.
        in_channels: of the input.
        channels: of the output.
        stride: of the first subtree.
        input_at_root: the input, downsampled, goes to the root too.
        root_channels: what comes to the root from outside, all together.
        norm: a name that `get_norm` knows.
    """

    def __init__(
        self,
        depth: int,
        in_channels: int,
        channels: int,
        *,
        stride: int = 1,
        input_at_root: bool = False,
        root_channels: int = 0,
        norm: str,
    ) -> None:
        super().__init__()
        self.stride, self.input_at_root = stride, input_at_root
        root_channels += in_channels if input_at_root else 0
        self.root = None
        if depth == 1:
            self.tree1: Tree | Block = Block(in_channels, channels, stride=stride, norm=norm)
            self.tree2: Tree | Block = Block(channels, channels, stride=1, norm=norm)
            self.root = Root(2 * channels + root_channels, channels, norm=norm)
        else:
            root_channels += channels
            self.tree1 = Tree(depth - 1, in_channels, channels, stride=stride, norm=norm)
            self.tree2 = Tree(depth - 1, channels, channels, root_channels=root_channels, norm=norm)
        self.project = None
        if in_channels != channels:
            self.project = nn.Sequential(*_conv_norm_relu(in_channels, channels, 1, norm)[:2])

    def forward(self, x: Tensor, to_root: Sequence[Tensor] = ()) -> Tensor:
        """(B, in_channels, H, W) to (B, channels, H / stride, W / stride).

        Args:
            x: the input.
            to_root: maps of the output's size that go to the root.
        """
        small = F.max_pool2d(x, self.stride) if self.stride > 1 else x
        if self.input_at_root:
            to_root = (*to_root, small)
        if self.root is None:
            first = self.tree1(x)
            if self.project is not None:  # official files have it though nothing uses it; but
                # training in several processes waits for a gradient of every parameter
                first = first + 0 * sum(p.sum() for p in self.project.parameters())
            return self.tree2(first, (*to_root, first))
        first = self.tree1(x, small if self.project is None else self.project(small))
        return self.root((self.tree2(first, first), first, *to_root))


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is given."""

    def __init__(self, in_channels: int, channels: int, *, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, channels, 3, norm, stride=stride)
        self.bn1 = _norm(norm, channels)
        self.conv2 = _conv(channels, channels, 3, norm)
        self.bn2 = _norm(norm, channels)

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """(B, in_channels, H, W) and the shortcut to (B, channels, H / stride, W / stride)."""
        out = F.relu_(self.bn1(self.conv1(x)))
        return F.relu_(self.bn2(self.conv2(out)) + shortcut)


class Root(nn.Module):
    """Maps of one size to one map, by a 1x1 convolution of all of them."""

    def __init__(self, in_channels: int, channels: int, *, norm: str) -> None:
        super().__init__()
        self.conv = _conv(in_channels, channels, 1, norm)
        self.bn = _norm(norm, channels)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, H, W) to (B, channels, H, W)."""
        return F.relu_(self.bn(self.conv(torch.cat(tuple(maps), dim=1))))


def _conv_norm_relu(
    in_channels: int, channels: int, size: int, norm: str, *, stride: int = 1
) -> nn.Sequential:
    conv = _conv(in_channels, channels, size, norm, stride=stride)
    return nn.Sequential(conv, _norm(norm, channels), nn.ReLU(inplace=True))


def _conv(in_channels: int, channels: int, size: int, norm: str, *, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, channels, size, stride, padding=size // 2, bias=not norm)
    c2_msra_fill(conv)
    return conv


def _norm(norm: str, channels: int) -> nn.Module:
    return get_norm(norm, channels) or nn.Identity()
