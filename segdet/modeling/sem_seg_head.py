"""Semantic heads: feature maps to a class for every pixel."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from segdet.config.ranges import NonNegativeFloat, PositiveInt
from segdet.errors import ConfigError, DataError
from segdet.layers import Losses, NormName, ShapeSpec, at_least_float32, c2_msra_fill, conv3x3_relu
from segdet.modeling.backbones.backbone import known, select_maps


@dataclass(frozen=True, kw_only=True)
class SemSegHeadConfig:
    """MODEL.SEM_SEG_HEAD; defaults are detectron2's."""

    name: str = "SemSegFPNHead"
    in_features: tuple[str, ...] = ("p2", "p3", "p4", "p5")
    ignore_value: int = 255  # label of pixels that are in no loss
    num_classes: PositiveInt = 54  # of COCO: all things as class 0, and 53 kinds of stuff
    convs_dim: PositiveInt = 128
    common_stride: PositiveInt = 4  # of the logits, before they are brought to the image's size
    norm: NormName = "GN"
    loss_weight: NonNegativeFloat = 1.0

    @property
    def build(self) -> Callable[[Mapping[str, ShapeSpec]], SemSegHead]:
        """Builds the head on maps of these shapes."""
        if self.name not in SEM_SEG_HEADS:
            known_names = ", ".join(SEM_SEG_HEADS)
            raise ConfigError(f"SEM_SEG_HEAD.NAME {self.name!r} is unknown; known: {known_names}")
        return functools.partial(SEM_SEG_HEADS[self.name], self)


class SemSegHead(nn.Module, ABC):
    """Feature maps to a score for each class at each pixel.

    Args:
        num_classes: K.
        common_stride: of the logits that `layers` gives.
        loss_weight: factor of the loss.
        ignore_value: label of pixels that are in no loss.
    """

    def __init__(
        self, num_classes: int, *, common_stride: int, loss_weight: float, ignore_value: int
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.common_stride = common_stride
        self.loss_weight = loss_weight
        self.ignore_value = ignore_value

    @abstractmethod
    def layers(self, features: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, K, H / common_stride, W / common_stride)."""

    def forward(self, features: Mapping[str, Tensor], labels: Tensor) -> Losses:
        """The training losses of the backbone's maps; labels (B, H, W) as `losses` takes them."""
        return self.losses(self.layers(features), labels)

    def losses(self, logits: Tensor, labels: Tensor) -> Losses:
        """`loss_sem_seg`, weighted.

        Args:
            logits: as `layers` gives them.
            labels: (B, H, W) int64 of the padded images, in [0, K) or `ignore_value`.
        """
        height, width = labels.shape[-2:]
        logits = self.upsample(logits)[..., :height, :width]
        loss = self.loss(logits, labels) * self.loss_weight
        return Losses({"loss_sem_seg": loss}, {}, {"loss_sem_seg": self.count(labels)})

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of logits (B, K, H, W) and labels (B, H, W); unweighted."""
        return sem_seg_loss(logits, labels, self.ignore_value)

    def count(self, labels: Tensor) -> Tensor:
        """How many labels `loss` is the mean over."""
        return (labels != self.ignore_value).sum()

    def predict(self, features: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, K, H, W) of the padded images."""
        return self.upsample(self.layers(features))

    def check_labels(self, labels: Tensor, image_size: Sequence[int]) -> None:
        """Refuse a label map (H, W) that `losses` cannot use.

        Raises:
            ValueError: it is not of the image's size.
            DataError: it has a label of no class.
        """
        if tuple(labels.shape) != tuple(image_size):
            raise ValueError(
                f"`sem_seg` is of shape {tuple(labels.shape)}, the image of {tuple(image_size)}"
            )
        is_unknown = (labels < 0) | (labels >= self.num_classes)
        unknown = labels[is_unknown & (labels != self.ignore_value)]
        if len(unknown):
            raise DataError(
                f"`sem_seg` has labels {unknown.unique().tolist()}; they must be below "
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES, {self.num_classes}, or IGNORE_VALUE, "
                f"{self.ignore_value}"
            )

    def upsample(self, logits: Tensor) -> Tensor:
        """From the common stride to the images' size, in float32 at least."""
        logits = at_least_float32(logits)
        return F.interpolate(
            logits, scale_factor=self.common_stride, mode="bilinear", align_corners=False
        )


def sem_seg_loss(logits: Tensor, labels: Tensor, ignore_value: int) -> Tensor:
    """Mean cross-entropy over the labelled pixels of all images.

    Source: Panoptic FPN (arXiv:1901.02446), section 3.1, "per-pixel cross entropy loss".

    Args:
        logits: (B, K, H, W).
        labels: (B, H, W) int64 in [0, K) or `ignore_value`.
        ignore_value: label of pixels that do not count.

    Returns:
        Scalar. Without labelled pixels it is zero and still connected to `logits`.
    """
    total = F.cross_entropy(logits, labels, ignore_index=ignore_value, reduction="sum")
    return total / (labels != ignore_value).sum().clamp(min=1)


class SemSegFPNHead(SemSegHead):
    """Panoptic FPN's semantic head (arXiv:1901.02446, section 3.1, figure 3).

    Each level is convolved and doubled in size until all have the common stride; their sum is
    classified by a 1x1 convolution.

    Args:
        input_shape: channels and stride of the maps to use, by name, in any order.
        num_classes: K.
        conv_dims: channels inside.
        common_stride: of the logits.
        loss_weight: factor of the loss.
        norm: of the 3x3 convolutions.
        ignore_value: label of pixels that are in no loss.
    """

    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        num_classes: int,
        conv_dims: int,
        common_stride: int,
        loss_weight: float = 1.0,
        norm: str = "",
        ignore_value: int = -1,
    ) -> None:
        super().__init__(
            num_classes,
            common_stride=common_stride,
            loss_weight=loss_weight,
            ignore_value=ignore_value,
        )
        self.in_features = sorted(input_shape, key=lambda name: known(input_shape[name].stride))
        for name in self.in_features:
            channels = known(input_shape[name].channels)
            doublings = _doublings(name, known(input_shape[name].stride), common_stride)
            self.add_module(name, _scale_head(channels, conv_dims, doublings, norm))
        self.predictor = nn.Conv2d(conv_dims, num_classes, kernel_size=1)
        c2_msra_fill(self.predictor)

    def layers(self, features: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, K, H / common_stride, W / common_stride)."""
        scaled = [self.get_submodule(name)(features[name]) for name in self.in_features]
        return self.predictor(cast(Tensor, sum(scaled)))


def _doublings(name: str, stride: int, common_stride: int) -> int:
    """How often a map is doubled in size to get from its stride to the common one."""
    doublings = (stride // common_stride).bit_length() - 1
    if stride != common_stride * 2 ** max(doublings, 0):
        raise ConfigError(
            f"SEM_SEG_HEAD.COMMON_STRIDE {common_stride} cannot be reached from feature {name!r} "
            f"of stride {stride} by doubling its size"
        )
    return doublings


def _scale_head(in_channels: int, channels: int, doublings: int, norm: str) -> nn.Sequential:
    """A convolution before each doubling; one where there is none."""
    layers: list[nn.Module] = []
    for k in range(max(doublings, 1)):
        layers.append(conv3x3_relu(channels if k else in_channels, channels, norm))
        if doublings:
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
    return nn.Sequential(*layers)


def _fpn_head(section: SemSegHeadConfig, shapes: Mapping[str, ShapeSpec]) -> SemSegFPNHead:
    return SemSegFPNHead(
        select_maps(shapes, section.in_features, "SEM_SEG_HEAD.IN_FEATURES"),
        num_classes=section.num_classes,
        conv_dims=section.convs_dim,
        common_stride=section.common_stride,
        loss_weight=section.loss_weight,
        norm=section.norm,
        ignore_value=section.ignore_value,
    )


# MODEL.SEM_SEG_HEAD.NAME -> what builds it, on maps of these shapes
SEM_SEG_HEADS: dict[str, Callable[[SemSegHeadConfig, Mapping[str, ShapeSpec]], SemSegHead]] = {
    "SemSegFPNHead": _fpn_head
}
