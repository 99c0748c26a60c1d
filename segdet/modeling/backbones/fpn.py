"""Feature pyramid network (Lin et al. 2016, arXiv:1612.03144)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from segdet.config.ranges import PositiveInt
from segdet.errors import ConfigError
from segdet.layers import Conv2d, NormName, ShapeSpec, c2_xavier_fill, get_norm
from segdet.modeling.backbones.backbone import Backbone, known


@dataclass(frozen=True, kw_only=True)
class FPNConfig:
    """MODEL.FPN; defaults are detectron2's."""

    in_features: tuple[str, ...] = ()
    out_channels: PositiveInt = 256
    norm: NormName = ""
    fuse_type: str = "sum"

    def __post_init__(self) -> None:
        if self.fuse_type not in ("sum", "avg"):
            raise ConfigError(f"FUSE_TYPE must be sum or avg, is {self.fuse_type!r}")

    def build(self, bottom_up: Backbone, top_block: TopBlock | None = None) -> FPN:
        """The pyramid over `bottom_up`, with random weights."""
        shapes = bottom_up.output_shape()
        if not self.in_features or not set(self.in_features) <= set(shapes):
            raise ConfigError(
                f"MODEL.FPN.IN_FEATURES must name some of the backbone's maps, "
                f"{', '.join(shapes)} (MODEL.RESNETS.OUT_FEATURES), is {self.in_features}"
            )
        strides = [known(shapes[name].stride) for name in self.in_features]
        if any(b != 2 * a for a, b in pairwise(strides)):
            raise ConfigError(
                f"MODEL.FPN.IN_FEATURES must double in stride from map to map; "
                f"{', '.join(self.in_features)} have strides {strides}"
            )
        return FPN(
            bottom_up,
            self.in_features,
            self.out_channels,
            norm=self.norm,
            top_block=top_block,
            fuse_type=self.fuse_type,
        )


class FPN(Backbone):
    """Maps of equal width at every scale of a backbone; "p2" is the one at stride 2 ** 2.

    Args:
        bottom_up: the backbone.
        in_features: its maps to use, finest first, each at twice the stride of the one before.
        out_channels: of every map of the pyramid.
        norm: a name that `get_norm` knows; "" for none.
        top_block: makes coarser maps from the pyramid's or the backbone's; None for none.
        fuse_type: "sum", or "avg" which halves each sum of a map and the coarser one.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_channels: int,
        *,
        norm: str = "",
        top_block: TopBlock | None = None,
        fuse_type: str = "sum",
    ) -> None:
        super().__init__()
        shapes = bottom_up.output_shape()
        self.in_features = tuple(in_features)
        self._levels = [known(shapes[name].stride).bit_length() - 1 for name in in_features]
        for name, level in zip(in_features, self._levels, strict=True):
            lateral = _conv(known(shapes[name].channels), out_channels, 1, norm)
            self.add_module(f"fpn_lateral{level}", lateral)
            self.add_module(f"fpn_output{level}", _conv(out_channels, out_channels, 3, norm))
        sources = {*shapes, *(f"p{level}" for level in self._levels)}
        if top_block is not None and top_block.in_feature not in sources:
            raise ConfigError(
                f"FPN: p{self._levels[-1] + 1} is made from {top_block.in_feature}, which is not "
                f"among {', '.join(sorted(sources))}; IN_FEATURES is {', '.join(in_features)}"
            )
        self.top_block = top_block
        self.bottom_up = bottom_up
        self.out_channels = out_channels
        self.fuse_type = fuse_type

    def forward(self, images: Tensor) -> dict[str, Tensor]:  # noqa: D102
        bottom_up = self.bottom_up(images)
        pyramid = {}
        merged = None
        for name, level in zip(self.in_features[::-1], self._levels[::-1], strict=True):
            lateral = self.get_submodule(f"fpn_lateral{level}")(bottom_up[name])
            merged = lateral if merged is None else self._fuse(lateral, merged)
            pyramid[f"p{level}"] = self.get_submodule(f"fpn_output{level}")(merged)
        features = dict(reversed(pyramid.items()))
        if self.top_block is not None:
            source = {**features, **bottom_up}[self.top_block.in_feature]
            for i, coarser in enumerate(self.top_block(source), start=self._levels[-1] + 1):
                features[f"p{i}"] = coarser
        return features

    def _fuse(self, lateral: Tensor, coarser: Tensor) -> Tensor:
        upsampled = F.interpolate(coarser, scale_factor=2.0, mode="nearest")
        if upsampled.shape != lateral.shape:
            raise ValueError(
                f"FPN needs images whose sides are multiples of {self.size_divisibility}: a map "
                f"of {tuple(lateral.shape[-2:])} meets {tuple(upsampled.shape[-2:])}; "
                f"pad them with ImageList.from_tensors(images, backbone.size_divisibility)"
            )
        total = lateral + upsampled
        return total / 2 if self.fuse_type == "avg" else total

    def output_shape(self) -> dict[str, ShapeSpec]:  # noqa: D102
        extra = 0 if self.top_block is None else self.top_block.num_levels
        levels = range(self._levels[0], self._levels[-1] + extra + 1)
        return {f"p{k}": ShapeSpec(channels=self.out_channels, stride=2**k) for k in levels}

    @property
    def size_divisibility(self) -> int:
        """The stride of the coarsest map that is upsampled."""
        return 2 ** self._levels[-1]

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Those of the backbone below."""
        return self.bottom_up.padding_constraints


class LastLevelMaxPool(nn.Module):
    """p6 of the R-CNN family: every second cell of p5 (max pooling with a 1x1 kernel)."""

    num_levels = 1
    in_feature = "p5"

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) to one (B, C, ceil(H / 2), ceil(W / 2))."""
        return [F.max_pool2d(x, kernel_size=1, stride=2)]


class LastLevelP6P7(nn.Module):
    """p6 and p7 of one-stage detectors (RetinaNet, arXiv:1708.02002, section 4).

    Args:
        in_channels: of the map that p6 is made from.
        out_channels: of p6 and p7.
        in_feature: name of that map, "res5" or "p5".
    """

    num_levels = 2

    def __init__(self, in_channels: int, out_channels: int, in_feature: str = "res5") -> None:
        super().__init__()
        self.in_feature = in_feature
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)
        for conv in (self.p6, self.p7):
            c2_xavier_fill(conv)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W) to p6 and p7 at a half and a quarter of its size."""
        p6 = self.p6(x)
        return [p6, self.p7(F.relu(p6))]


class LastLevelP6(nn.Module):
    """p6 alone, as p6 of `LastLevelP6P7`.

    Args:
        in_channels: of the map that it is made from.
        out_channels: of p6.
        in_feature: name of that map.
    """

    num_levels = 1

    def __init__(self, in_channels: int, out_channels: int, in_feature: str = "p5") -> None:
        super().__init__()
        self.in_feature = in_feature
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        c2_xavier_fill(self.p6)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W) to p6 at a half of its size."""
        return [self.p6(x)]


TopBlock = LastLevelMaxPool | LastLevelP6 | LastLevelP6P7


def _conv(in_channels: int, out_channels: int, size: int, norm: str) -> Conv2d:
    conv = Conv2d(
        in_channels,
        out_channels,
        size,
        padding=size // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
    )
    c2_xavier_fill(conv)
    return conv
