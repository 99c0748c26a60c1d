"""What YOLACT puts upon a backbone: its pyramid, prototypes, head and mask-IoU net.

Source: YOLACT (Bolya et al. 2019, arXiv:1904.02689), figure 4 and section 3; YOLACT++ (Bolya et al.
2020, arXiv:1912.06218), section 4.1. Names of parameters are the original's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.layers import Conv2d


def xavier_fill(module: nn.Module) -> None:
    """Fill every convolution in `module`: Glorot's uniform weights, bias 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class BilinearFPN(nn.Module):
    """A feature pyramid for maps of any size, each level through a ReLU.

    Coarser maps are resized bilinearly to exactly the finer one's size; two further levels are made
    of the coarsest output by strided convolutions. The lists of layers begin with the coarsest.

    Args:
        in_channels: of the backbone's maps, by name, finest first.
        out_channels: of every level.
    """

    EXTRA_LEVELS = 2

    def __init__(self, in_channels: Mapping[str, int], out_channels: int) -> None:
        super().__init__()
        self.in_features = tuple(in_channels)
        self.out_channels = out_channels
        coarsest_first = list(in_channels.values())[::-1]
        self.lat_layers = nn.ModuleList(Conv2d(c, out_channels, 1) for c in coarsest_first)
        self.pred_layers = nn.ModuleList(
            Conv2d(out_channels, out_channels, 3, padding=1) for _ in coarsest_first
        )
        self.downsample_layers = nn.ModuleList(
            Conv2d(out_channels, out_channels, 3, stride=2, padding=1)
            for _ in range(self.EXTRA_LEVELS)
        )
        xavier_fill(self)

    def forward(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        """(B, C, H, W) of the backbone, by name, to levels (B, out_channels, h, w), finest first.

        Each level has the size of its map; the further two are half and a quarter of the last.
        """
        maps = [features[name] for name in self.in_features]
        levels: list[Tensor] = []
        merged = None
        for lateral, output, x in zip(self.lat_layers, self.pred_layers, maps[::-1], strict=True):
            own = lateral(x)
            if merged is not None:
                own = own + F.interpolate(merged, own.shape[-2:], mode="bilinear")
            merged = own
            levels.insert(0, F.relu(output(merged)))
        for layer in self.downsample_layers:
            levels.append(layer(levels[-1]))  # no ReLU, also between the two
        return levels


class ProtoNet(nn.Sequential):
    """Prototypes that all masks of an image are combined from.

    Args:
        channels: of its input and of its 3x3 convolutions.
        num_prototypes: that it makes.
    """

    def __init__(self, channels: int, num_prototypes: int) -> None:
        def block() -> list[nn.Module]:
            return [Conv2d(channels, channels, 3, padding=1), nn.ReLU()]

        upsample = nn.Upsample(scale_factor=2, mode="bilinear")
        super().__init__(
            *(layer for _ in range(3) for layer in block()),
            upsample,
            nn.ReLU(),  # changes nothing; it counts in the names
            *block(),
            Conv2d(channels, num_prototypes, 1),
        )
        xavier_fill(self)

    def forward(self, input: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, num_prototypes, 2 H, 2 W), at least 0."""
        return F.relu(super().forward(input))


class Predictions(NamedTuple):
    """What the head says of each prior box, levels from fine to coarse, then rows, columns, A."""

    deltas: Tensor  # (B, P, 4)
    logits: Tensor  # (B, P, K + 1); class 0 is the background
    coefficients: Tensor  # (B, P, prototypes), in [-1, 1]


class PredictionHead(nn.Module):
    """A box, a class and mask coefficients for every prior box; one head for all levels.

    Args:
        in_channels: of every level.
        prior_sizes: per level (width, height) of each of a cell's A prior boxes, in pixels.
        num_classes: K.
        num_prototypes: coefficients of a mask.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        prior_sizes: Sequence[Sequence[tuple[float, float]]],
        num_classes: int,
        num_prototypes: int,
    ) -> None:
        super().__init__()
        self.prior_sizes = prior_sizes
        self.num_classes = num_classes
        self.num_anchors = num_anchors = len(prior_sizes[0])
        self.upfeature = nn.Sequential(Conv2d(in_channels, in_channels, 3, padding=1), nn.ReLU())
        self.bbox_layer = Conv2d(in_channels, num_anchors * 4, 3, padding=1)
        self.conf_layer = Conv2d(in_channels, num_anchors * (num_classes + 1), 3, padding=1)
        self.mask_layer = Conv2d(in_channels, num_anchors * num_prototypes, 3, padding=1)
        xavier_fill(self)

    def forward(self, levels: Sequence[Tensor]) -> Predictions:
        """(B, in_channels, H, W) a level to what all levels' prior boxes get."""
        towers = [self.upfeature(x) for x in levels]
        return Predictions(
            self._flatten([self.bbox_layer(x) for x in towers]),
            self._flatten([self.conf_layer(x) for x in towers]),
            self._flatten([self.mask_layer(x) for x in towers]).tanh(),
        )

    def _flatten(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, A * k, H, W) a level to (B, P, k)."""
        width = maps[0].shape[1] // self.num_anchors
        flat = [x.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, width)) for x in maps]
        return torch.cat(flat, dim=1)


class FastMaskIoUNet(nn.Module):
    """The IoU of each mask with its object, for every class (YOLACT++, figure 8).

    It does not begin as the original, with Glorot's weights and biases of 0: nothing that goes into
    the last layer is negative, so a class with unlucky weights would be below 0 for every mask,
    and behind the last ReLU no gradient changes that. Here all classes begin at `FIRST_IOU`.

    Args:
        num_classes: K.
    """

    CHANNELS = (1, 8, 16, 32, 64, 128)
    FIRST_IOU = 0.2  # about that of random masks
    SMALLEST = 63  # pixels of a mask's side, of which the five strided convolutions leave one

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip(self.CHANNELS, self.CHANNELS[1:], strict=False):
            layers += [Conv2d(before, after, 3, stride=2), nn.ReLU()]
        layers += [Conv2d(self.CHANNELS[-1], num_classes, 1), nn.ReLU()]
        self.maskiou_net = nn.Sequential(*layers)
        for layer in self.maskiou_net[::2]:
            nn.init.kaiming_uniform_(cast(Tensor, layer.weight), nonlinearity="relu")
            nn.init.zeros_(cast(Tensor, layer.bias))
        nn.init.zeros_(cast(Tensor, self.maskiou_net[-2].weight))
        nn.init.constant_(cast(Tensor, self.maskiou_net[-2].bias), self.FIRST_IOU)

    def forward(self, masks: Tensor) -> Tensor:
        """Predict IoUs.

        Args:
            masks: (N, M, M) probabilities, 0 outside of the boxes.

        Returns:
            (N, K), at least 0, perhaps above 1.
        """
        height, width = masks.shape[-2:]
        missing = [max(self.SMALLEST - side, 0) for side in (width, height)]
        padded = F.pad(masks[:, None], (0, missing[0], 0, missing[1]))
        return self.maskiou_net(padded).amax((2, 3))
