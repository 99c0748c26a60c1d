"""Blender of BlendMask (arXiv:2001.00309, section 3.1): shared bases to a mask for each object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from segdet.config.ranges import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    no_effect,
)
from segdet.errors import ConfigError
from segdet.layers import at_least_float32
from segdet.modeling.roi_pooler import ROIPooler

INTERPOLATIONS = ("bilinear", "nearest")


@dataclass(frozen=True, kw_only=True)
class BlenderConfig:
    """MODEL.BLENDMASK; keys and defaults are AdelaiDet's."""

    attn_size: PositiveInt = 14  # cells of an attention map per side
    top_interp: str = "bilinear"  # how it is brought to the size of the mask
    bottom_resolution: PositiveInt = 56  # cells of a mask per side
    pooler_type: str = "ROIAlignV2"
    pooler_sampling_ratio: NonNegativeInt = 1
    pooler_scales: tuple[PositiveFloat, ...] = (0.25,)  # of the bases
    instance_loss_weight: NonNegativeFloat = 1.0
    visualize: bool = no_effect(False, "there it draws the bases")

    def __post_init__(self) -> None:
        if self.top_interp not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise ConfigError(f"TOP_INTERP must be one of {known}, is {self.top_interp!r}")

    def build(self, num_bases: int, stride: int) -> Blender:
        """The blender for bases of this stride."""
        if self.pooler_scales != (1 / stride,):
            raise ConfigError(
                f"BLENDMASK.POOLER_SCALES must be ({1 / stride},), half the stride of the basis "
                f"module's finest map; it is {self.pooler_scales}"
            )
        pooler = ROIPooler(
            self.bottom_resolution,
            strides=[stride],
            sampling_ratio=self.pooler_sampling_ratio,
            pooler_type=self.pooler_type,
        )
        return Blender(
            pooler, num_bases=num_bases, attn_size=self.attn_size, interpolation=self.top_interp
        )


class Blender(nn.Module):
    """Crops of the bases, each weighted by the object's attention; it has no parameters.

    Args:
        pooler: crops the bases to R x R cells.
        num_bases: K.
        attn_size: A, cells of an attention map per side.
        interpolation: "bilinear" or "nearest", from A to R cells.
    """

    def __init__(
        self, pooler: ROIPooler, *, num_bases: int, attn_size: int, interpolation: str = "bilinear"
    ) -> None:
        super().__init__()
        self.pooler = pooler
        self.num_bases, self.attn_size = num_bases, attn_size
        self.interpolation = interpolation

    @property
    def attention_channels(self) -> int:
        """Length of an object's attention vector, K * A * A."""
        return self.num_bases * self.attn_size**2

    @property
    def mask_side(self) -> int:
        """R, cells of a mask per side."""
        return self.pooler.output_size

    def pool(self, bases: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """(sum N_i, K, R, R): the part of the bases (B, K, H, W) in each image's boxes (N_i, 4)."""
        return self.pooler([bases], boxes)

    def forward(self, pooled: Tensor, attention: Tensor) -> Tensor:
        """Mask logits (N, R, R), in float32 at least.

        Args:
            pooled: (N, K, R, R), as `pool` gives.
            attention: (N, K * A * A), the basis slowest.
        """
        shape = (len(attention), self.num_bases, self.attn_size, self.attn_size)
        corners = False if self.interpolation == "bilinear" else None
        maps = F.interpolate(
            at_least_float32(attention).reshape(shape),
            size=self.mask_side,
            mode=self.interpolation,
            align_corners=corners,
        )
        return (maps.softmax(dim=1) * at_least_float32(pooled)).sum(dim=1)


def blended_mask_loss(
    logits: Tensor, gt_masks: Tensor, weights: Tensor, normalizer: Tensor | float
) -> Tensor:
    """Binary cross-entropy of each mask, averaged over its cells, weighted and summed.

    Source: the official code of BlendMask; the paper gives neither weights nor normaliser.

    Args:
        logits: (N, R, R).
        gt_masks: (N, R, R) bool.
        weights: (N,), the centerness targets of the locations.
        normalizer: divides the sum; that of the box loss.

    Returns:
        Scalar; zero and still connected to `logits` when N == 0.
    """
    losses = F.binary_cross_entropy_with_logits(logits, gt_masks.to(logits.dtype), reduction="none")
    return (losses.mean(dim=(1, 2)) * weights).sum() / normalizer
