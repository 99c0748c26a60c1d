"""Basis module of BlendMask (arXiv:2001.00309, section 3.1): maps that all instances share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.config.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt, no_effect
from segdet.errors import ConfigError, DataError
from segdet.layers import (
    Conv2d,
    Losses,
    NormName,
    ShapeSpec,
    at_least_float32,
    c2_xavier_fill,
    get_norm,
)
from segdet.modeling.backbones.backbone import known, select_maps
from segdet.structures import Targets, polygons_to_bitmask


@dataclass(frozen=True, kw_only=True)
class BasisModuleConfig:
    """MODEL.BASIS_MODULE; keys and defaults are AdelaiDet's."""

    name: str = "ProtoNet"
    num_bases: PositiveInt = 4
    in_features: tuple[str, ...] = ("p3", "p4", "p5")  # finest first
    convs_dim: PositiveInt = 128
    # 3x3 convolutions before the map doubles in size, where one more follows.
    num_convs: NonNegativeInt = 3
    norm: NormName = "SyncBN"
    loss_on: bool = False  # train a semantic head on the finest map, for better features
    num_classes: PositiveInt = 80  # of that head, without the background
    loss_weight: NonNegativeFloat = 0.3
    common_stride: PositiveInt = 8  # of the finest map; the bases have half of it
    ann_set: str = no_effect("coco", "label maps are drawn of the objects, not read")

    def __post_init__(self) -> None:
        if self.name != "ProtoNet":
            raise ConfigError(f"NAME {self.name!r} is unknown; known: ProtoNet")
        if not self.in_features:
            raise ConfigError("IN_FEATURES must name a map")

    def build(self, shapes: Mapping[str, ShapeSpec]) -> ProtoNet:
        """The module for a backbone's maps of these shapes."""
        maps = select_maps(shapes, self.in_features, "BASIS_MODULE.IN_FEATURES")
        stride = known(maps[self.in_features[0]].stride)
        if stride != self.common_stride:
            raise ConfigError(
                f"BASIS_MODULE.COMMON_STRIDE must be the stride of {self.in_features[0]}, "
                f"{stride}; it is {self.common_stride}"
            )
        return ProtoNet(
            self.in_features,
            in_channels=[known(shape.channels) for shape in maps.values()],
            num_bases=self.num_bases,
            channels=self.convs_dim,
            num_convs=self.num_convs,
            norm=self.norm,
            num_classes=self.num_classes if self.loss_on else None,
            loss_weight=self.loss_weight,
        )


class ProtoNet(nn.Module):
    """A pyramid's maps to K bases at half the stride of the finest.

    Args:
        in_features: names of the maps, finest first.
        in_channels: of each.
        num_bases: K.
        channels: inside.
        num_convs: 3x3 convolutions before the map doubles in size.
        norm: after all convolutions but the last; a name that `get_norm` knows.
        num_classes: of the semantic head, without the background; None: there is no such head.
        loss_weight: factor of its loss.
    """

    def __init__(
        self,
        in_features: Sequence[str],
        *,
        in_channels: Sequence[int],
        num_bases: int,
        channels: int,
        num_convs: int,
        norm: str,
        num_classes: int | None,
        loss_weight: float,
    ) -> None:
        super().__init__()
        self.in_features, self.num_bases = tuple(in_features), num_bases
        self.num_classes, self.loss_weight = num_classes, loss_weight
        self.refine = nn.ModuleList(_conv_block(c, channels, norm) for c in in_channels)
        self.tower = nn.Sequential(
            *(_conv_block(channels, channels, norm) for _ in range(num_convs)),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            _conv_block(channels, channels, norm),
            Conv2d(channels, num_bases, 1),
        )
        self.seg_head = None
        if num_classes is not None:
            self.seg_head = nn.Sequential(
                *_plain_block(in_channels[0], channels),
                *_plain_block(channels, channels),
                Conv2d(channels, num_classes + 1, 1),
            )

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Bases (B, K, 2 H, 2 W) of any sign, from maps of which the finest is (B, C, H, W)."""
        maps = [features[name] for name in self.in_features]
        total = self.refine[0](maps[0])
        for refine, x in zip(self.refine[1:], maps[1:], strict=True):
            size = total.shape[-2:]
            total = total + F.interpolate(
                refine(x), size=size, mode="bilinear", align_corners=False
            )
        return self.tower(total)

    def losses(self, features: Mapping[str, Tensor], labels: Tensor | None) -> Losses:
        """`loss_basis_sem`: mean cross-entropy over all pixels, those of the background too.

        Source: BlendMask, section 4.1, "Semantics vs. position"; the weight is the official
        code's.

        Args:
            features: the backbone's maps.
            labels: (B, H, W) int64 of the padded images: 0 for the background, else class + 1.

        Returns:
            One term; none without a semantic head.
        """
        if self.seg_head is None or labels is None:
            return Losses()
        logits = at_least_float32(self.seg_head(features[self.in_features[0]]))
        step = labels.shape[-1] // logits.shape[-1]  # the nearest pixel of a cell is its first
        labels = labels[:, ::step, ::step]
        loss = F.cross_entropy(logits, labels) * self.loss_weight
        return Losses({"loss_basis_sem": loss}, {}, {"loss_basis_sem": labels.numel()})

    def check_labels(self, labels: Tensor, image_size: Sequence[int]) -> None:
        """Refuse a label map (H, W) that `losses` cannot use.

        Raises:
            ValueError: it is not of the image's size.
            DataError: it has a label of no class.
        """
        assert self.num_classes is not None, "a semantic head looks at labels"
        if tuple(labels.shape) != tuple(image_size):
            raise ValueError(
                f"`basis_sem` is of shape {tuple(labels.shape)}, the image of {tuple(image_size)}"
            )
        unknown = labels[(labels < 0) | (labels > self.num_classes)]
        if len(unknown):
            raise DataError(
                f"`basis_sem` has labels {unknown.unique().tolist()}; they must be 0 or class + 1, "
                f"of MODEL.BASIS_MODULE.NUM_CLASSES, {self.num_classes}, classes"
            )


def thing_labels(targets: Targets) -> Tensor:
    """(H, W) int64: 0, or 1 + the class of the last object that covers a pixel."""
    height, width = targets.image_size
    labels = torch.zeros(height, width, dtype=torch.int64, device=targets.gt_classes.device)
    for one, category in zip(targets.gt_masks, targets.gt_classes, strict=True):
        if isinstance(one, Tensor):
            mask = one
        else:  # polygons
            mask = torch.from_numpy(polygons_to_bitmask(one, height, width)).to(labels.device)
        labels[mask] = category + 1
    return labels


def _conv_block(in_channels: int, channels: int, norm: str) -> nn.Sequential:
    conv = Conv2d(in_channels, channels, 3, padding=1, bias=not norm)
    c2_xavier_fill(conv)
    return nn.Sequential(conv, get_norm(norm, channels) or nn.Identity(), nn.ReLU(inplace=True))


def _plain_block(in_channels: int, channels: int) -> list[nn.Module]:
    conv = Conv2d(in_channels, channels, 3, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
