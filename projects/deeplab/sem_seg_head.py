"""DeepLab's semantic heads: ASPP alone (v3), and ASPP with a decoder (v3+)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.config.ranges import Fraction, PositiveFloat, PositiveInt
from segdet.config.reader import read_as
from segdet.errors import ConfigError
from segdet.layers import ShapeSpec, normal_fill
from segdet.modeling.backbones.backbone import known, select_maps
from segdet.modeling.sem_seg_head import SemSegHead, SemSegHeadConfig, sem_seg_loss

from .aspp import ASPP, SeparableConv2d, conv_relu


@dataclass(frozen=True, kw_only=True)
class DeepLabHeadConfig(SemSegHeadConfig):
    """MODEL.SEM_SEG_HEAD with DeepLab's keys; defaults are those of detectron2's project."""

    loss_type: str = "hard_pixel_mining"  # or "cross_entropy"
    project_features: tuple[str, ...] = ("res2",)  # v3+: the maps that its decoder adds
    project_channels: tuple[PositiveInt, ...] = (48,)  # of each of them, after a 1x1 convolution
    aspp_channels: PositiveInt = 256
    aspp_dilations: tuple[PositiveInt, ...] = (6, 12, 18)
    aspp_dropout: Fraction = 0.1
    use_depthwise_separable_conv: bool = False
    crop_enabled: bool = field(default=False, metadata={"key": "INPUT.CROP.ENABLED"})
    crop_type: str = field(default="absolute", metadata={"key": "INPUT.CROP.TYPE"})
    crop_size: tuple[PositiveFloat, PositiveFloat] = field(
        default=(0.9, 0.9), metadata={"key": "INPUT.CROP.SIZE"}
    )

    def __post_init__(self) -> None:
        if self.loss_type not in LOSSES:
            raise ConfigError(
                f'LOSS_TYPE must be one of {", ".join(LOSSES)}, is "{self.loss_type}"'
            )
        if self.crop_enabled and self.crop_type != "absolute":
            raise ConfigError(
                'ASPP pools over the crops of training: INPUT.CROP.TYPE must be "absolute", is '
                f'"{self.crop_type}"'
            )

    def settings(self) -> dict[str, Any]:
        """What both heads are made with."""
        return {
            "num_classes": self.num_classes,
            "common_stride": self.common_stride,
            "loss_type": self.loss_type,
            "loss_weight": self.loss_weight,
            "ignore_value": self.ignore_value,
        }

    def shapes_of_maps(self, shapes: Mapping[str, ShapeSpec]) -> dict[str, ShapeSpec]:
        """The maps that the head uses, finest first; the common stride must be the finest's."""
        maps = select_maps(shapes, self.in_features, "SEM_SEG_HEAD.IN_FEATURES")
        maps = dict(sorted(maps.items(), key=lambda item: known(item[1].stride)))
        finest = known(next(iter(maps.values())).stride)
        if self.common_stride != finest:
            raise ConfigError(
                f"SEM_SEG_HEAD.COMMON_STRIDE must be {finest}, the stride of the finest of "
                f"IN_FEATURES {self.in_features}; is {self.common_stride}"
            )
        return maps

    def build_aspp(self, shape: ShapeSpec) -> ASPP:
        """ASPP on the coarsest map."""
        pool_size, stride = None, known(shape.stride)
        if self.crop_enabled:
            height, width = (int(side) for side in self.crop_size)
            if height % stride or width % stride:
                raise ConfigError(
                    f"INPUT.CROP.SIZE must be multiples of the map's stride {stride}, is "
                    f"{self.crop_size}"
                )
            pool_size = height // stride, width // stride
        return ASPP(
            known(shape.channels),
            self.aspp_channels,
            dilations=self.aspp_dilations,
            norm=self.norm,
            dropout=self.aspp_dropout,
            pool_size=pool_size,
            separable=self.use_depthwise_separable_conv,
        )


class DeepLabHead(SemSegHead):
    """What both heads share.

    Args:
        num_classes: K.
        loss_type: a key of LOSSES.
        settings: of every SemSegHead.
    """

    def __init__(self, num_classes: int, *, loss_type: str, **settings: Any) -> None:
        super().__init__(num_classes, **settings)
        self.loss_type = loss_type

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """As LOSS_TYPE says; logits (B, K, H, W), labels (B, H, W)."""
        return LOSSES[self.loss_type](logits, labels, self.ignore_value)


class DeepLabV3Head(DeepLabHead):
    """ASPP and a classifier of each cell (arXiv:1706.05587, section 3.3).

    Args:
        in_feature: the name of the map.
        aspp: for the map.
        settings: of DeepLabHead.
    """

    def __init__(self, in_feature: str, aspp: ASPP, **settings: Any) -> None:
        super().__init__(**settings)
        self.in_feature = in_feature
        self.aspp = aspp
        self.predictor = _classifier(aspp.out_channels, self.num_classes)

    def layers(self, features: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, K, H / common_stride, W / common_stride)."""
        return self.predictor(self.aspp(features[self.in_feature]))


class DeepLabV3PlusHead(DeepLabHead):
    """ASPP, and finer maps added to what it gives (arXiv:1802.02611, section 3.1, figure 2).

    Args:
        decoder: by the names of the maps, finest first: stages that add a map to what comes from
            the next coarser one, and last {"project_conv": ASPP} for the coarsest.
        channels: of what the finest gives.
        settings: of DeepLabHead.
    """

    def __init__(self, decoder: Mapping[str, nn.Module], *, channels: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.decoder = nn.ModuleDict(decoder)
        self.predictor = _classifier(channels, self.num_classes)

    def layers(self, features: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, K, H / common_stride, W / common_stride)."""
        *finer, coarsest = self.decoder
        x = self.decoder.get_submodule(f"{coarsest}.project_conv")(features[coarsest])
        for name in reversed(finer):
            x = self.decoder[name](features[name], x)
        return self.predictor(x)


class DecoderStage(nn.Module):
    """Adds a map to what the decoder has made of the coarser ones.

    Args:
        in_channels: of the map.
        project_channels: of the map after a 1x1 convolution.
        coarser_channels: of what comes from the coarser maps.
        out_channels: of the result.
        norm: a name that `get_norm` knows.
        separable: one depthwise separable 5x5 convolution in place of two 3x3 ones.
    """

    def __init__(
        self,
        in_channels: int,
        project_channels: int,
        coarser_channels: int,
        out_channels: int,
        *,
        norm: str,
        separable: bool,
    ) -> None:
        super().__init__()
        joined = project_channels + coarser_channels
        self.project_conv = conv_relu(in_channels, project_channels, 1, norm=norm)
        self.fuse_conv = (
            SeparableConv2d(joined, out_channels, 5, norm=norm)
            if separable
            else nn.Sequential(
                conv_relu(joined, out_channels, 3, norm=norm),
                conv_relu(out_channels, out_channels, 3, norm=norm),
            )
        )

    def forward(self, x: Tensor, coarser: Tensor) -> Tensor:
        """Maps (B, C, H, W) and (B, C', H', W') to (B, out_channels, H, W)."""
        x = self.project_conv(x)
        coarser = F.interpolate(coarser, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return self.fuse_conv(torch.cat([x, coarser], dim=1))


def hard_pixel_loss(
    logits: Tensor, labels: Tensor, ignore_value: int, share: float = 0.2
) -> Tensor:
    """Mean cross-entropy over the pixels where it is largest.

    Source: DeeperLab (arXiv:1902.05093), section 3.3, "bootstrapped cross-entropy"; the official
    configs of DeepLab take a fifth of all pixels.

    Args:
        logits: (B, K, H, W).
        labels: (B, H, W) int64 in [0, K) or `ignore_value`.
        ignore_value: label of pixels whose loss is 0; they count among all pixels.
        share: of the pixels of the batch, rounded down to a number that is at least 1.

    Returns:
        Scalar.
    """
    loss = F.cross_entropy(logits, labels, ignore_index=ignore_value, reduction="none")
    return loss.flatten().topk(max(int(share * loss.numel()), 1)).values.mean()


LOSSES = {"cross_entropy": sem_seg_loss, "hard_pixel_mining": hard_pixel_loss}


def build_v3_head(section: SemSegHeadConfig, shapes: Mapping[str, ShapeSpec]) -> DeepLabV3Head:
    """DeepLabV3Head, as MODEL.SEM_SEG_HEAD describes it."""
    section = read_as(DeepLabHeadConfig, section, at="MODEL.SEM_SEG_HEAD")
    maps = section.shapes_of_maps(shapes)
    if len(maps) != 1:
        raise ConfigError(
            f"SEM_SEG_HEAD.IN_FEATURES of DeepLabV3Head must be one map, are {section.in_features}"
        )
    ((name, shape),) = maps.items()
    return DeepLabV3Head(name, section.build_aspp(shape), **section.settings())


def build_v3_plus_head(
    section: SemSegHeadConfig, shapes: Mapping[str, ShapeSpec]
) -> DeepLabV3PlusHead:
    """DeepLabV3PlusHead, as MODEL.SEM_SEG_HEAD describes it."""
    section = read_as(DeepLabHeadConfig, section, at="MODEL.SEM_SEG_HEAD")
    maps = section.shapes_of_maps(shapes)
    *finer, coarsest = maps
    if set(section.project_features) != set(finer) or len(section.project_channels) != len(finer):
        raise ConfigError(
            "SEM_SEG_HEAD.PROJECT_FEATURES must be IN_FEATURES but for the coarsest, "
            f"{tuple(finer)}, with PROJECT_CHANNELS for each; are {section.project_features} and "
            f"{section.project_channels}"
        )
    project_channels = dict(zip(section.project_features, section.project_channels, strict=True))
    aspp = section.build_aspp(maps[coarsest])
    decoder: dict[str, nn.Module] = {coarsest: nn.ModuleDict({"project_conv": aspp})}
    channels = aspp.out_channels
    for name in reversed(finer):
        stage = DecoderStage(
            known(maps[name].channels),
            project_channels[name],
            channels,
            section.convs_dim,
            norm=section.norm,
            separable=section.use_depthwise_separable_conv,
        )
        decoder = {name: stage, **decoder}
        channels = section.convs_dim
    return DeepLabV3PlusHead(decoder, channels=channels, **section.settings())


def _classifier(in_channels: int, num_classes: int) -> nn.Conv2d:
    predictor = nn.Conv2d(in_channels, num_classes, kernel_size=1)
    normal_fill(predictor, std=0.001)
    return predictor
