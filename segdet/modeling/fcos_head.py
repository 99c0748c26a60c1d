"""FCOS's head: class scores, boxes and their quality for every location (arXiv:2006.09214)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.layers import Conv2d, ModulatedDeformConv, get_norm, normal_fill
from segdet.layers.patches import patches_at

# Norms with running statistics, which differ from level to level: every level has one of its own.
BATCH_NORMS = ("BN", "SyncBN", "FrozenBN", "naiveSyncBN", "naiveSyncBN_N")


class Predictions(NamedTuple):
    """What the head says of every location: one tensor a level in each."""

    logits: list[Tensor]  # (B, K, H, W)
    ltrb: list[Tensor]  # (B, 4, H, W) distances to the sides, in strides of the level, >= 0
    quality: list[Tensor]  # (B, 1, H, W) logits
    tower: list[Tensor]  # (B, C, H, W) of the box tower, what a top layer sees


class FCOSHead(nn.Module):
    """Towers for classes and boxes, after one for both; one head for all levels.

    Args:
        in_channels: of every feature map.
        num_classes: K.
        num_levels: feature maps of an image.
        num_convs: 3x3 convolutions of the tower for both, the class tower and the box tower.
        norm: after each of them; those of `BATCH_NORMS` once a level.
        use_scale: multiply the box outputs of each level by a number of its own.
        prior_prob: the score of everything before training.
        deformable: per tower, as in `num_convs`, how many of its last convolutions are modulated
            deformable ones.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        num_classes: int,
        num_levels: int,
        num_convs: tuple[int, int, int] = (0, 4, 4),
        norm: str = "GN",
        use_scale: bool = True,
        prior_prob: float = 0.01,
        deformable: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        super().__init__()
        share, cls, box = (
            Tower(in_channels, num_levels, convs, norm=norm, deformable=last)
            for convs, last in zip(num_convs, deformable, strict=True)
        )
        self.cls_tower, self.bbox_tower, self.share_tower = cls, box, share
        self.cls_logits = Conv2d(in_channels, num_classes, 3, padding=1)
        self.bbox_pred = Conv2d(in_channels, 4, 3, padding=1)
        self.ctrness = Conv2d(in_channels, 1, 3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in range(num_levels)) if use_scale else None
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                normal_fill(layer, std=0.01)
        assert self.cls_logits.bias is not None, "made with a bias"
        nn.init.constant_(self.cls_logits.bias, -math.log((1 - prior_prob) / prior_prob))

    def forward(self, features: Sequence[Tensor]) -> Predictions:
        """Predictions for every cell of every level.

        Args:
            features: per level (B, C, H, W).
        """
        found = Predictions([], [], [], [])
        for level, x in enumerate(features):
            shared = self.share_tower(x, level)
            box = self.bbox_tower(shared, level)
            found.logits.append(self.cls_logits(self.cls_tower(shared, level)))
            ltrb = self.bbox_pred(box)
            found.ltrb.append(F.relu(ltrb if self.scales is None else self.scales[level](ltrb)))
            found.quality.append(self.ctrness(box))
            found.tower.append(box)
        return found


class Tower(nn.ModuleList):
    """Convolutions that keep the number of channels, each with a norm and a ReLU.

    Args:
        channels: of its input and output.
        num_levels: feature maps of an image.
        num_convs: 3x3 convolutions; 0 gives back the input.
        norm: as in `FCOSHead`.
        deformable: how many of the last convolutions are deformable.
    """

    def __init__(
        self, channels: int, num_levels: int, num_convs: int, *, norm: str, deformable: int = 0
    ) -> None:
        layers: list[nn.Module] = []
        for i in range(num_convs):
            if i < num_convs - deformable:
                layers.append(Conv2d(channels, channels, 3, padding=1))
            else:
                layers.append(OffsetDeformConv(channels))
            if norm in BATCH_NORMS:
                layers.append(NormOfEachLevel(norm, num_levels, channels))
            elif norm:
                layers.append(get_norm(norm, channels) or nn.Identity())
            layers.append(nn.ReLU())
        super().__init__(layers)

    def forward(self, x: Tensor, level: int) -> Tensor:
        """(B, C, H, W) of the level with that index, to the same shape."""
        for layer in self:
            x = layer(x, level) if isinstance(layer, NormOfEachLevel) else layer(x)
        return x


class NormOfEachLevel(nn.ModuleList):
    """A batch norm for each level, chosen by its index.

    Args:
        norm: one of `BATCH_NORMS`.
        num_levels: of them.
        channels: C.
    """

    def __init__(self, norm: str, num_levels: int, channels: int) -> None:
        super().__init__()
        for _ in range(num_levels):
            self.append(get_norm(norm, channels) or nn.Identity())

    def forward(self, x: Tensor, level: int) -> Tensor:
        """(B, C, H, W) of the level with that index, to the same shape."""
        return self[level](x)


class OffsetDeformConv(nn.Module):
    """A modulated deformable 3x3 convolution and the plain one that says where it looks.

    Args:
        channels: of its input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.offset = Conv2d(channels, 27, 3, padding=1)  # 18 offsets, 9 weights before sigmoid
        self.conv = ModulatedDeformConv(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        offset, mask = self.offset(x).split((18, 9), dim=1)
        return self.conv(x, offset, mask.sigmoid())


class TopLayer(nn.Conv2d):
    """A 3x3 convolution of the box tower that is computed only where its output is wanted.

    With many output channels it would cost more than a tower if it were computed everywhere.

    Args:
        in_channels: of the tower.
        out_channels: of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)
        normal_fill(self, std=0.01)

    def at(self, x: Tensor, image: Tensor, cell: Tensor) -> Tensor:
        """(P, out_channels): the output at some cells of one level.

        Args:
            x: (B, in_channels, H, W).
            image: (P,) int64 index in the batch.
            cell: (P,) int64, row * W + column.
        """
        width = x.shape[-1]
        cells = torch.stack((image, cell // width, cell % width), 1)
        patches, on_map = patches_at(x, cells, reach=1)
        patches = patches * on_map
        return F.linear(patches.flatten(1), self.weight.permute(0, 2, 3, 1).flatten(1), self.bias)


class Scale(nn.Module):
    """Multiplies by a number that is learnt, 1 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same."""
        return x * self.scale
