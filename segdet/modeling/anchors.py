"""Anchors: boxes of fixed sizes and shapes, tiled over every cell of a feature map."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from segdet.config.ranges import Finite, PositiveFloat, Range
from segdet.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AnchorGeneratorConfig:
    """MODEL.ANCHOR_GENERATOR; one entry of `sizes` and `aspect_ratios` serves every level."""

    name: str = "DefaultAnchorGenerator"
    sizes: tuple[tuple[PositiveFloat, ...], ...] = ((32, 64, 128, 256, 512),)
    aspect_ratios: tuple[tuple[PositiveFloat, ...], ...] = ((0.5, 1.0, 2.0),)
    angles: tuple[tuple[Finite, ...], ...] = ((-90, 0, 90),)
    offset: Annotated[float, Range(0, 1, open_high=True)] = 0.0

    def __post_init__(self) -> None:
        if self.name not in ANCHOR_GENERATORS:
            raise ConfigError(
                f"NAME {self.name!r} is unknown; known: {', '.join(ANCHOR_GENERATORS)}"
            )

    def build(self, strides: Sequence[int]) -> DefaultAnchorGenerator:
        """The generator for levels of these strides."""
        return ANCHOR_GENERATORS[self.name](self, strides)


class DefaultAnchorGenerator(nn.Module):
    """Anchors centred on `(offset + index) * stride` of every cell.

    Source: Faster R-CNN (arXiv:1506.01497), section 3.1.1. With detectron2's default offset 0 the
    first anchor is centred on the image corner (0, 0), not in the middle of its cell.

    Args:
        sizes: per level (or once for all), anchor sides in pixels of the network input.
        aspect_ratios: per level (or once for all), height / width.
        strides: one per level.
        offset: in cells, within [0, 1).
    """

    box_dim = 4

    def __init__(
        self,
        *,
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[Sequence[float]],
        strides: Sequence[int],
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0.0 <= offset < 1.0:
            raise ConfigError(f"OFFSET must be in [0, 1), is {offset}")
        self.strides = tuple(strides)
        self.offset = offset
        self.num_anchors = []
        levels = zip(
            _per_level(sizes, len(strides), "SIZES"),
            _per_level(aspect_ratios, len(strides), "ASPECT_RATIOS"),
            strict=True,
        )
        for level, (level_sizes, level_ratios) in enumerate(levels):
            self._set_cell(level, self.cell(level_sizes, level_ratios, strides[level]))

    @staticmethod
    def cell(sizes: Sequence[float], aspect_ratios: Sequence[float], stride: int) -> Tensor:
        """(A, 4) XYXY anchors of the cell at (0, 0)."""
        return cell_anchors(sizes, aspect_ratios)

    def _set_cell(self, level: int, cell: Tensor) -> None:
        """Take (A, box_dim) anchors around (0, 0) for a level."""
        self.register_buffer(f"cell_anchors_{level}", cell, persistent=False)
        self.num_anchors.append(len(cell))

    @property
    def anchors_per_cell(self) -> int:
        """What a head that all levels share predicts for.

        Raises:
            ConfigError: the levels differ.
        """
        if len(set(self.num_anchors)) != 1:
            raise ConfigError(
                "one head serves all levels, so each needs the same number of anchors a cell; "
                f"ANCHOR_GENERATOR gives {self.num_anchors}"
            )
        return self.num_anchors[0]

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Anchors of every level.

        Args:
            features: one (B, C, H, W) map per level.

        Returns:
            One (H * W * A, box_dim) per level in pixels of the padded network input; cells run
            row by row, and the A anchors of a cell are adjacent (sizes outer, ratios inner).
        """
        return [
            self._grid(getattr(self, f"cell_anchors_{level}"), feature.shape[-2:], stride)
            for level, (feature, stride) in enumerate(zip(features, self.strides, strict=True))
        ]

    def _grid(self, cell: Tensor, size: Sequence[int], stride: int) -> Tensor:
        ys, xs = (
            (torch.arange(n, dtype=cell.dtype, device=cell.device) + self.offset) * stride
            for n in size
        )
        y, x = torch.meshgrid(ys, xs, indexing="ij")
        shifts = self._shifts(x, y)  # (H, W, box_dim)
        return (shifts[:, :, None] + cell).reshape(-1, self.box_dim)

    def _shifts(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.stack((x, y, x, y), dim=-1)


class RotatedAnchorGenerator(DefaultAnchorGenerator):
    """Anchors turned by several angles: centre x, centre y, width, height, degrees.

    Source: RRPN (arXiv:1703.01086), section 3.3.

    Args:
        sizes: per level (or once for all), anchor sides in pixels of the network input.
        aspect_ratios: per level (or once for all), height / width.
        angles: per level (or once for all), degrees, counter-clockwise; innermost in the order.
        strides: one per level.
        offset: in cells, within [0, 1).
    """

    box_dim = 5

    def __init__(
        self,
        *,
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[Sequence[float]],
        angles: Sequence[Sequence[float]],
        strides: Sequence[int],
        offset: float = 0.0,
    ) -> None:
        self._angles = _per_level(angles, len(strides), "ANGLES")
        super().__init__(sizes=sizes, aspect_ratios=aspect_ratios, strides=strides, offset=offset)

    def _set_cell(self, level: int, cell: Tensor) -> None:
        angles = cell.new_tensor(self._angles[level])
        turned = cell.new_zeros(len(cell), len(angles), 5)
        turned[..., 2:4] = (cell[:, 2:] - cell[:, :2])[:, None]  # width, height
        turned[..., 4] = angles
        super()._set_cell(level, turned.flatten(0, 1))

    def _shifts(self, x: Tensor, y: Tensor) -> Tensor:
        zero = torch.zeros_like(x)
        return torch.stack((x, y, zero, zero, zero), dim=-1)


class RoundedAnchorGenerator(DefaultAnchorGenerator):
    """Faster R-CNN's own anchors, of whole pixels; ratios outer, sizes inner.

    Source: the code of Faster R-CNN (arXiv:1506.01497), R-FCN and FCIS. A square of the stride is
    brought to each ratio, its sides rounded to pixels, halves to even, and then enlarged. Anchors
    are centred on the middle of their cell.
    """

    @staticmethod
    def cell(sizes: Sequence[float], aspect_ratios: Sequence[float], stride: int) -> Tensor:  # noqa: D102
        boxes = []
        for ratio in aspect_ratios:
            width = round(math.sqrt(stride**2 / ratio))
            height = round(width * ratio)
            for size in sizes:
                x, y = width * size / stride / 2, height * size / stride / 2
                boxes.append((-x, -y, x, y))
        return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4) + stride / 2


def _upright(
    section: AnchorGeneratorConfig,
    strides: Sequence[int],
    kind: type[DefaultAnchorGenerator] = DefaultAnchorGenerator,
) -> DefaultAnchorGenerator:
    return kind(
        sizes=section.sizes,
        aspect_ratios=section.aspect_ratios,
        strides=strides,
        offset=section.offset,
    )


def _rotated(section: AnchorGeneratorConfig, strides: Sequence[int]) -> RotatedAnchorGenerator:
    return RotatedAnchorGenerator(
        sizes=section.sizes,
        aspect_ratios=section.aspect_ratios,
        angles=section.angles,
        strides=strides,
        offset=section.offset,
    )


# MODEL.ANCHOR_GENERATOR.NAME -> what builds it, for levels of these strides
ANCHOR_GENERATORS: dict[
    str, Callable[[AnchorGeneratorConfig, Sequence[int]], DefaultAnchorGenerator]
] = {
    "DefaultAnchorGenerator": _upright,
    "RotatedAnchorGenerator": _rotated,
    "RoundedAnchorGenerator": functools.partial(_upright, kind=RoundedAnchorGenerator),
}


def flatten_cells(x: Tensor, size: int) -> Tensor:
    """(B, A * size, H, W) to (B, H * W * A, size): a head's output in the order of its anchors."""
    return x.unflatten(1, (-1, size)).permute(0, 3, 4, 1, 2).flatten(1, 3)


def cell_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> Tensor:
    """(A, 4) float32 XYXY boxes centred on (0, 0); sizes outer, ratios inner."""
    boxes = []
    for size in sizes:
        for ratio in aspect_ratios:
            width = math.sqrt(size**2 / ratio)
            height = ratio * width
            boxes.append((-width / 2, -height / 2, width / 2, height / 2))
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def _per_level(
    values: Sequence[Sequence[float]], levels: int, key: str
) -> Sequence[Sequence[float]]:
    if len(values) == 1:
        return list(values) * levels
    if len(values) != levels:
        raise ConfigError(
            f"ANCHOR_GENERATOR.{key} has {len(values)} entries for {levels} feature levels; "
            f"give 1 or {levels}"
        )
    return values
