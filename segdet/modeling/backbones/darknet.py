"""DarkNet-53 (Redmon and Farhadi 2018, arXiv:1804.02767), without its classifier."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from segdet.errors import ConfigError
from segdet.layers import ShapeSpec, c2_msra_fill, get_norm
from segdet.modeling.backbones.backbone import Backbone, freeze

BLOCKS_PER_STAGE = (1, 2, 8, 8, 4)  # table 1 of the paper
STEM_CHANNELS = 32  # each stage doubles them
STAGES = {"res2": 1, "res3": 2, "res4": 3, "res5": 4}  # index k in `layers`, at stride 2 ** (k + 1)


class DarkNet(Backbone):
    """Residual blocks of 1x1 and 3x3 convolutions, the layers `layers.0` to `layers.4`.

    Names of parameters are YOLACT's. Maps have the names that ResNets' have at their strides.

    Args:
        out_features: names of the maps to return, "res2" ... "res5"; nothing is built above
            the last.
        norm: a name that `get_norm` knows.
        freeze_at: 0 trains everything, 1 freezes what comes before res2, k >= 2 that and res2
            to res{k}.
        input_channels: of the images.
    """

    def __init__(
        self,
        *,
        out_features: Sequence[str] = ("res3", "res4", "res5"),
        norm: str = "BN",
        freeze_at: int = 0,
        input_channels: int = 3,
    ) -> None:
        super().__init__()
        if not out_features or not set(out_features) <= set(STAGES):
            raise ConfigError(
                f"DarkNet's OUT_FEATURES must name some of {', '.join(STAGES)}, "
                f"is {tuple(out_features)}"
            )
        self._names = {STAGES[name]: name for name in STAGES if name in out_features}
        self._preconv = _conv(input_channels, STEM_CHANNELS, 3, norm)
        self.layers = nn.ModuleList()
        channels = STEM_CHANNELS
        for num_blocks in BLOCKS_PER_STAGE[: max(self._names) + 1]:
            down = _conv(channels, 2 * channels, 3, norm, stride=2)
            channels *= 2
            blocks = (DarkNetBlock(channels, norm=norm) for _ in range(num_blocks))
            self.layers.append(nn.Sequential(down, *blocks))
        if freeze_at > 0:
            for layer in (self._preconv, *self.layers[:freeze_at]):
                freeze(layer)

    def forward(self, images: Tensor) -> dict[str, Tensor]:  # noqa: D102
        features = {}
        x = self._preconv(images)
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in self._names:
                features[self._names[index]] = x
        return features

    def output_shape(self) -> dict[str, ShapeSpec]:  # noqa: D102
        return {
            name: ShapeSpec(channels=STEM_CHANNELS * 2 ** (index + 1), stride=2 ** (index + 1))
            for index, name in self._names.items()
        }


class DarkNetBlock(nn.Module):
    """Halve the channels by a 1x1 convolution, double them by a 3x3 one, and add the input."""

    def __init__(self, channels: int, *, norm: str) -> None:
        super().__init__()
        self.conv1 = _conv(channels, channels // 2, 1, norm)
        self.conv2 = _conv(channels // 2, channels, 3, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to the same shape."""
        return x + self.conv2(self.conv1(x))


def _conv(
    in_channels: int, out_channels: int, size: int, norm: str, stride: int = 1
) -> nn.Sequential:
    """Convolution, norm, leaky ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, size, stride, padding=size // 2, bias=not norm)
    c2_msra_fill(conv)
    norm_layer = get_norm(norm, out_channels) or nn.Identity()
    return nn.Sequential(conv, norm_layer, nn.LeakyReLU(0.1, inplace=True))
