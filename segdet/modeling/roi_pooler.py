"""Fixed-size features of boxes, each from the pyramid level that fits its size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from segdet.config.ranges import NonNegativeInt, PositiveInt
from segdet.errors import ConfigError
from segdet.layers import ROIAlign, ROIAlignRotated

# POOLER_TYPE -> layer of (output size, scale, sampling ratio)
POOLERS: dict[str, Callable[[int, float, int], nn.Module]] = {
    "ROIAlignV2": lambda *settings: ROIAlign(*settings, aligned=True),
    "ROIAlign": lambda *settings: ROIAlign(*settings, aligned=False),
    "ROIAlignRotated": ROIAlignRotated,
}


@dataclass(frozen=True, kw_only=True)
class PoolerConfig:
    """What a head's section says of its pooler; defaults are detectron2's."""

    pooler_resolution: PositiveInt = 14  # cells per side
    pooler_sampling_ratio: NonNegativeInt = 0
    pooler_type: str = "ROIAlignV2"

    def build_pooler(self, strides: Sequence[int], assign_criterion: str = "area") -> ROIPooler:
        """The pooler for levels of these strides, among which `assign_criterion` chooses."""
        return ROIPooler(
            self.pooler_resolution,
            strides=strides,
            sampling_ratio=self.pooler_sampling_ratio,
            pooler_type=self.pooler_type,
            assign_criterion=assign_criterion,
        )


class ROIPooler(nn.Module):
    """ROIAlign over the levels of a feature pyramid.

    Args:
        output_size: cells per side.
        strides: of the levels, ascending powers of two.
        sampling_ratio: samples per cell and axis; 0 adapts them to the box.
        pooler_type: ROIAlignV2 (aligned), ROIAlign (legacy half-pixel offset), or ROIAlignRotated,
            for rotated boxes.
        assign_criterion: what chooses a box's level: its "area" (`assign_levels`), or the "ratio"
            of that to the image's (`assign_levels_by_ratio`).
    """

    def __init__(
        self,
        output_size: int,
        *,
        strides: Sequence[int],
        sampling_ratio: int = 0,
        pooler_type: str = "ROIAlignV2",
        assign_criterion: str = "area",
    ) -> None:
        super().__init__()
        if assign_criterion not in ("area", "ratio"):
            raise ConfigError(f"ASSIGN_CRITERION must be area or ratio, is {assign_criterion!r}")
        if pooler_type not in POOLERS:
            known = ", ".join(POOLERS)
            raise ConfigError(f"POOLER_TYPE {pooler_type!r} is unknown; known: {known}")
        self.output_size = output_size
        self.assign_criterion = assign_criterion
        self.min_level = int(strides[0]).bit_length() - 1
        self.max_level = self.min_level + len(strides) - 1
        expected = [2**level for level in range(self.min_level, self.max_level + 1)]
        if list(strides) != expected:
            raise ConfigError(f"pooled levels must have strides {expected}, have {list(strides)}")
        self.level_poolers = nn.ModuleList(
            POOLERS[pooler_type](output_size, 1 / s, sampling_ratio) for s in strides
        )

    def forward(
        self,
        features: Sequence[Tensor],
        boxes: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]] = (),
    ) -> Tensor:
        """Pools the boxes of every image.

        Args:
            features: one (B, C, H, W) map per level.
            boxes: per image, (N_i, 4) XYXY in pixels of the network input; rotated ones (N_i, 5).
            image_sizes: per image, (height, width) without padding; needed for "ratio" only.

        Returns:
            (sum N_i, C, output_size, output_size), rows in the order of `boxes`.
        """
        rois = to_rois(boxes)
        if len(self.level_poolers) == 1:
            return self.level_poolers[0](features[0], rois)
        levels = self._levels(rois, image_sizes) - self.min_level
        rows = [torch.nonzero(levels == level).squeeze(1) for level in range(len(features))]
        pooled = [
            pooler(feature, rois[own])
            for feature, pooler, own in zip(features, self.level_poolers, rows, strict=True)
        ]
        return _InOrder.apply(rows, *pooled)

    def _levels(self, rois: Tensor, image_sizes: Sequence[tuple[int, int]]) -> Tensor:
        if self.assign_criterion == "area":
            return assign_levels(rois[:, 1:], self.min_level, self.max_level)
        areas = rois.new_tensor([height * width for height, width in image_sizes])
        of_image = areas[rois[:, 0].to(torch.int64)]
        return assign_levels_by_ratio(rois[:, 1:], of_image, self.min_level, self.max_level)


class _InOrder(torch.autograd.Function):
    """Parts as the rows of one tensor; copies each row once, where `index_put` copies all rows.

    Args:
        rows: per part, (N_i,) int64, its places in the result.
        parts: (N_i, C, H, W).
    """

    @staticmethod
    def forward(ctx: Any, rows: Sequence[Tensor], *parts: Tensor) -> Tensor:
        ctx.rows = rows
        whole = parts[0].new_empty(sum(map(len, parts)), *parts[0].shape[1:])
        if not all(part.is_contiguous() for part in parts):
            whole = whole.to(memory_format=torch.channels_last)
        order = _of_memory(whole)
        for own, part in zip(rows, parts, strict=True):
            whole.permute(order).index_copy_(0, own, part.permute(order))
        return whole

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        whole = grad_outputs[0]
        order = _of_memory(whole)
        back = [order.index(dim) for dim in range(4)]
        parts = (whole.permute(order).index_select(0, own) for own in ctx.rows)
        return None, *(part.permute(back) for part in parts)


def _of_memory(x: Tensor) -> tuple[int, ...]:
    """The order of dimensions in which a row of (N, C, H, W) is one piece of memory."""
    return (0, 1, 2, 3) if x.is_contiguous() else (0, 2, 3, 1)


def assign_levels(boxes: Tensor, min_level: int, max_level: int) -> Tensor:
    """(N,) int64 pyramid level of (N, 4) XYXY or (N, 5) rotated boxes: log2 of its stride.

    Source: FPN (arXiv:1612.03144), equation 1: a box of side 224 belongs to level 4.
    """
    # 1e-8 keeps log2 finite on empty boxes and is detectron2's, so level borders agree.
    level = torch.floor(4 + torch.log2(_areas(boxes).sqrt() / 224 + 1e-8))
    return level.clamp(min_level, max_level).to(torch.int64)


def assign_levels_by_ratio(
    boxes: Tensor, image_areas: Tensor, min_level: int, max_level: int
) -> Tensor:
    """(N,) int64 pyramid level of boxes by how much of their image they take.

    Source: CenterMask (arXiv:1911.06667), equation 2: more than half of the image belongs to the
    coarsest level, more than a quarter to the one below.

    Args:
        boxes: (N, 4) XYXY or (N, 5) rotated.
        image_areas: (N,) of each box's image without padding.
        min_level: of the pyramid.
        max_level: of the pyramid.
    """
    # An empty box takes an infinitely small part, which belongs to the finest level.
    level = torch.ceil(max_level - torch.log2(image_areas / _areas(boxes) + 1e-8))
    return level.clamp(min_level, max_level).to(torch.int64)


def _areas(boxes: Tensor) -> Tensor:
    size = boxes[:, 2:] - boxes[:, :2] if boxes.shape[1] == 4 else boxes[:, 2:4]
    return size.prod(dim=1)


def to_rois(boxes: Sequence[Tensor]) -> Tensor:
    """(sum N_i, 1 + D) rows of batch index and box, from per-image (N_i, D) boxes."""
    index = torch.cat([b.new_full((len(b), 1), i) for i, b in enumerate(boxes)])
    return torch.cat((index, torch.cat(list(boxes))), dim=1)
