"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381), without its classifier."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from segdet.errors import ConfigError
from segdet.layers import ShapeSpec, c2_msra_fill, get_norm
from segdet.modeling.backbones.backbone import Backbone, freeze

BLOCKS = (  # expansion, channels, repeats, stride; table 2 of the paper
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
SHAPES = {  # where CenterMask2 takes its maps: the last layer of each stride
    "res2": ShapeSpec(channels=24, stride=4),
    "res3": ShapeSpec(channels=32, stride=8),
    "res4": ShapeSpec(channels=96, stride=16),
    "res5": ShapeSpec(channels=320, stride=32),
}
LAST_LAYER = {"stem": 1, "res2": 3, "res3": 6, "res4": 13, "res5": 17}  # index in `features`


class MobileNetV2(Backbone):
    """Inverted residuals with linear bottlenecks, the layers `features.0` to `features.17`.

    Args:
        out_features: names of the maps to return, "res2" ... "res5"; nothing is built above
            the last.
        norm: a name that `get_norm` knows; not "GN", whose 32 groups do not divide 16 channels.
        freeze_at: 0 trains everything, 1 freezes what comes before res2, k >= 2 that and res2
            to res{k}.
        input_channels: of the images.
    """

    def __init__(
        self,
        *,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        norm: str = "FrozenBN",
        freeze_at: int = 0,
        input_channels: int = 3,
    ) -> None:
        super().__init__()
        if not out_features or not set(out_features) <= set(SHAPES):
            raise ConfigError(
                f"MobileNetV2's OUT_FEATURES must name some of {', '.join(SHAPES)}, "
                f"is {tuple(out_features)}"
            )
        self._names = {LAST_LAYER[name]: name for name in SHAPES if name in out_features}
        layers: list[nn.Module] = [nn.Sequential(*_conv(input_channels, 32, 3, norm, stride=2))]
        channels = 32
        for expansion, out_channels, repeats, stride in BLOCKS:
            for index in range(repeats):
                layers.append(
                    InvertedResidual(
                        channels,
                        out_channels,
                        stride=stride if index == 0 else 1,
                        expansion=expansion,
                        norm=norm,
                    )
                )
                channels = out_channels
        self.features = nn.Sequential(*layers[: max(self._names) + 1])
        frozen = list(LAST_LAYER.values())[: max(freeze_at, 0)]
        for layer in self.features[: max(frozen, default=-1) + 1]:
            freeze(layer)

    def forward(self, images: Tensor) -> dict[str, Tensor]:  # noqa: D102
        features = {}
        x = images
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self._names:
                features[self._names[index]] = x
        return features

    def output_shape(self) -> dict[str, ShapeSpec]:  # noqa: D102
        return {name: SHAPES[name] for name in self._names.values()}


class InvertedResidual(nn.Module):
    """Widen by a 1x1 convolution, filter by a depthwise 3x3 one, narrow by a 1x1 one.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        stride: of the 3x3 convolution; the input is added when it is 1 and widths are equal.
        expansion: widening factor; 1 leaves the first convolution out.
        norm: a name that `get_norm` knows.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, expansion: int, norm: str
    ) -> None:
        super().__init__()
        width = in_channels * expansion
        widen = [] if expansion == 1 else _conv(in_channels, width, 1, norm)
        self.conv = nn.Sequential(
            *widen,
            *_conv(width, width, 3, norm, stride=stride, groups=width),
            *_conv(width, out_channels, 1, norm)[:2],
        )
        self.adds_input = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        return x + self.conv(x) if self.adds_input else self.conv(x)


def _conv(
    in_channels: int, out_channels: int, size: int, norm: str, *, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """Convolution, norm, ReLU6: flat, as the official names count them."""
    conv = nn.Conv2d(
        in_channels, out_channels, size, stride, padding=size // 2, groups=groups, bias=not norm
    )
    c2_msra_fill(conv)
    return [conv, get_norm(norm, out_channels) or nn.Identity(), nn.ReLU6(inplace=True)]
