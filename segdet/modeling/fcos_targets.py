"""FCOS's locations, and which of them stand for which object (arXiv:2006.09214, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from segdet.layers import at_least_float32
from segdet.structures import Targets


@dataclass(frozen=True)
class Positives:
    """The locations of a batch that have an object, P of them, the finest level's first.

    Attributes:
        counts: of each level.
        image: (P,) int64 index in the batch.
        cell: (P,) int64, row * W + column on the level's map.
        gt_index: (P,) int64 row of the object among those of all images, joined.
        gt_classes: (P,) int64 in [0, K).
        ltrb: (P, 4) from the location to the object's sides, in strides of the level; all > 0.
    """

    counts: tuple[int, ...]
    image: Tensor
    cell: Tensor
    gt_index: Tensor
    gt_classes: Tensor
    ltrb: Tensor

    def gather(self, maps: Sequence[Tensor]) -> Tensor:
        """Their cells of one map (B, C, H, W) a level: (P, C), at least float32."""
        return at_least_float32(
            self.look_up(lambda x, image, cell: x.flatten(2)[image, :, cell], maps)
        )

    def look_up(
        self, rows_at: Callable[[Tensor, Tensor, Tensor], Tensor], maps: Sequence[Tensor]
    ) -> Tensor:
        """(P, C): what `rows_at` gives for a level's map, images and cells, all levels joined."""
        levels = zip(maps, self.image.split(self.counts), self.cell.split(self.counts), strict=True)
        return torch.cat([rows_at(x, image, cell) for x, image, cell in levels])

    def gather_own_class(self, logits: Sequence[Tensor]) -> Tensor:
        """The logits (P,) of their objects' classes, from (B, K, H, W) a level."""
        levels = zip(
            logits,
            self.image.split(self.counts),
            self.gt_classes.split(self.counts),
            self.cell.split(self.counts),
            strict=True,
        )
        return at_least_float32(
            torch.cat([x.flatten(2)[image, k, cell] for x, image, k, cell in levels])
        )


class LocationMatcher:
    """Gives every location of every level at most one object.

    An object takes a location strictly inside its box if the farthest of the box's four sides is
    in the level's range, both ends included; of several objects the smallest gets it.

    Args:
        strides: per level.
        ranges: per level, (least, greatest) pixels from a location to the farthest side.
        radius: in strides; only locations strictly within it of the box's centre are taken, on
            either axis (centre sampling); None takes the whole box.
    """

    def __init__(
        self,
        strides: Sequence[int],
        ranges: Sequence[tuple[float, float]],
        *,
        radius: float | None = 1.5,
    ) -> None:
        self.strides = tuple(strides)
        self.ranges = tuple(ranges)
        self.radius = radius

    @torch.no_grad()
    def __call__(self, sizes: Sequence[Sequence[int]], targets: Sequence[Targets]) -> Positives:
        """The locations of a batch that have an object.

        Args:
            sizes: per level, (height, width) of its map.
            targets: per image.
        """
        boxes = torch.cat([t.gt_boxes.tensor for t in targets])  # (G, 4)
        counts = torch.tensor([len(t) for t in targets], device=boxes.device)
        images = torch.arange(len(targets), device=boxes.device)
        image = images.repeat_interleave(counts, output_size=len(boxes))  # (G,)
        order = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).argsort(stable=True)
        rank = order.argsort()  # the smallest object's is 0

        starts, total = [], 0  # of each level, in one row of all locations of the batch
        for height, width in sizes:
            starts.append(total)
            total += len(targets) * height * width
        best = rank.new_full((total + 1,), len(boxes))  # the last stands for no location
        for level, (height, width) in enumerate(sizes):
            row, column, taken = self._candidates(level, (height, width), boxes)
            cell = (image[:, None, None] * height + row) * width + column
            slot = torch.where(taken, starts[level] + cell, total)  # (G, h, w)
            ranks = rank[:, None, None].expand_as(slot)
            best.scatter_reduce_(0, slot.flatten(), ranks.flatten(), "amin")
        slots = torch.nonzero(best[:-1] < len(boxes)).squeeze(1)  # (P,)
        return self._describe(slots, order[best[slots]], starts, sizes, boxes, targets)

    def _candidates(
        self, level: int, size: tuple[int, int], boxes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A window of cells of one level around each box: rows, columns, whether it takes them.

        All three broadcast to (G, h, w). With centre sampling the window is a few cells wide: the
        memory that matching takes does not grow with the maps.
        """
        stride, (height, width) = self.strides[level], size
        half = stride // 2
        low, high = boxes[:, :2], boxes[:, 2:]
        if self.radius is None:
            first = torch.zeros_like(low, dtype=torch.int64)
        else:
            centre, reach = (low + high) / 2, self.radius * stride
            low, high = torch.maximum(low, centre - reach), torch.minimum(high, centre + reach)
            first = ((centre - reach - half) / stride).floor().long()
            height, width = (min(side, int(2 * self.radius) + 3) for side in size)
        column = first[:, 0, None, None] + torch.arange(width, device=boxes.device)
        row = first[:, 1, None, None] + torch.arange(height, device=boxes.device)[:, None]
        if self.radius is not None:  # a window that leaves the map is moved into it
            column = column - (column[..., -1:] - (size[1] - 1)).clamp(min=0)
            column = column - column[..., :1].clamp(max=0)
            row = row - (row[:, -1:] - (size[0] - 1)).clamp(min=0)
            row = row - row[:, :1].clamp(max=0)
        x, y = (column * stride + half).to(boxes), (row * stride + half).to(boxes)
        x0, y0, x1, y1 = torch.cat((low, high), dim=1)[:, :, None, None].unbind(1)
        inside = (x > x0) & (x < x1) & (y > y0) & (y < y1)
        x0, y0, x1, y1 = boxes[:, :, None, None].unbind(1)
        farthest = torch.maximum(torch.maximum(x - x0, x1 - x), torch.maximum(y - y0, y1 - y))
        least, greatest = self.ranges[level]
        return row, column, inside & (farthest >= least) & (farthest <= greatest)

    def _describe(
        self,
        slots: Tensor,
        gt_index: Tensor,
        starts: Sequence[int],
        sizes: Sequence[Sequence[int]],
        boxes: Tensor,
        targets: Sequence[Targets],
    ) -> Positives:
        bounds = slots.new_tensor(starts)
        level = torch.searchsorted(bounds, slots, right=True) - 1  # (P,)
        strides = slots.new_tensor(self.strides)[level]
        height, width = slots.new_tensor(sizes)[level].unbind(1)
        local = slots - bounds[level]
        cell = local % (height * width)
        centre = torch.stack((cell % width, cell // width), dim=1) * strides[:, None]
        centre = (centre + strides[:, None] // 2).to(boxes)  # (P, 2)
        own = boxes[gt_index]
        ltrb = torch.cat((centre - own[:, :2], own[:, 2:] - centre), dim=1)
        return Positives(
            counts=tuple(torch.bincount(level, minlength=len(starts)).tolist()),
            image=local // (height * width),
            cell=cell,
            gt_index=gt_index,
            gt_classes=torch.cat([t.gt_classes for t in targets])[gt_index],
            ltrb=ltrb / strides[:, None],
        )


def locations(size: Sequence[int], stride: int, like: Tensor) -> Tensor:
    """The points (H * W, 2), x and y in input pixels, that the cells of a map stand for.

    Args:
        size: (height, width) of the map.
        stride: of the map.
        like: gives device and type.
    """
    height, width = size
    y = torch.arange(height, device=like.device) * stride + stride // 2
    x = torch.arange(width, device=like.device) * stride + stride // 2
    grid = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), dim=-1)
    return grid.flatten(0, 1).to(like.dtype)


def centerness(ltrb: Tensor) -> Tensor:
    """How near the middle of its box a location is, (P,) in (0, 1] (arXiv:2006.09214, eq. 3).

    Args:
        ltrb: (P, 4) distances to the sides, all > 0.
    """
    left, top, right, bottom = ltrb.unbind(1)
    x = torch.minimum(left, right) / torch.maximum(left, right)
    y = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    return (x * y).sqrt()
