"""FCIS's head (arXiv:1611.07709): score maps that say at once what a region holds and where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.config.ranges import NonNegativeFloat, PositiveFraction, PositiveInt
from segdet.errors import ConfigError
from segdet.layers import Losses, at_least_float32, normal_fill, ps_roi_pool, smooth_l1_loss
from segdet.modeling.box_coder import Box2BoxTransform
from segdet.modeling.roi_pooler import to_rois
from segdet.structures import BitMasks, PolygonMasks, Proposals, Targets

# Regions pooled at a time where no gradient is wanted: of 81 classes and 21 x 21 bins, 64 take
# 18 MB, and 600 would take 171.
CHUNK = 64
OUTSIDE, INSIDE = 0, 1  # the two maps of a class


@dataclass(frozen=True, kw_only=True)
class FCISHeadConfig:
    """MODEL.FCIS; defaults are the official code's."""

    conv_dim: PositiveInt = 1024  # channels of the 1x1 convolution before the score maps
    group_size: PositiveInt = 7  # parts of a region along a side, each with score maps of its own
    pooled_size: PositiveInt = 21  # cells of a mask along a side
    ohem: bool = True  # train on the hardest regions, not on random ones
    mask_loss_weight: NonNegativeFloat = 10.0
    mask_thresh: PositiveFraction = 0.4  # that puts a pixel into a mask: target, vote, result
    vote_thresh: PositiveFraction = 0.5  # IoU that gives a region a say in a detection's mask

    def __post_init__(self) -> None:
        if self.group_size > self.pooled_size:
            raise ConfigError(
                f"GROUP_SIZE must be at most POOLED_SIZE = {self.pooled_size}, is {self.group_size}"
            )

    def build(self, in_channels: int, num_classes: int, stride: int) -> FCISHead:
        """The head for a map of `in_channels` channels and this stride."""
        return FCISHead(
            in_channels,
            num_classes,
            stride=stride,
            conv_dim=self.conv_dim,
            group_size=self.group_size,
            pooled_size=self.pooled_size,
        )

    def build_loss(self, box_transform: Box2BoxTransform, num_regions: int) -> FCISLoss:
        """The training losses, of `num_regions` regions an image."""
        return FCISLoss(
            box_transform,
            num_regions=num_regions,
            mask_side=self.pooled_size,
            mask_thresh=self.mask_thresh,
            mask_weight=self.mask_loss_weight,
        )


class ScoreMaps(NamedTuple):
    """What the head makes of a batch of feature maps; G is GROUP_SIZE."""

    seg: Tensor  # (B, (K + 1) * 2 * G * G, H, W): class (background last), out or in, row, column
    box: Tensor  # (B, 4 * G * G, H, W)


class RegionScores(NamedTuple):
    """What the score maps say of R regions."""

    class_logits: Tensor  # (R, K + 1), background last
    mask_logits: Tensor  # (R, M, M), inside against outside, of one class each
    deltas: Tensor  # (R, 4)


class FCISHead(nn.Module):
    """Three 1x1 convolutions; a region is read off their maps without further weights.

    Source: FCIS, section 2.2, "Joint mask prediction and classification".

    Args:
        in_channels: of the feature map.
        num_classes: K, without background.
        stride: of the feature map.
        conv_dim: channels of the first convolution.
        group_size: parts of a region along a side.
        pooled_size: M, cells of a mask along a side.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        stride: int,
        conv_dim: int,
        group_size: int,
        pooled_size: int,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.group_size = group_size
        self.pooled_size = pooled_size
        parts = group_size**2
        self.conv_new_1 = nn.Conv2d(in_channels, conv_dim, kernel_size=1)
        self.fcis_cls_seg = nn.Conv2d(conv_dim, (num_classes + 1) * 2 * parts, kernel_size=1)
        self.fcis_bbox = nn.Conv2d(conv_dim, 4 * parts, kernel_size=1)
        # In the official code 0.01 at the widths that it has; narrower layers then as strong.
        normal_fill(self.conv_new_1, std=0.01 * math.sqrt(2048 / in_channels))
        for layer in (self.fcis_cls_seg, self.fcis_bbox):
            normal_fill(layer, std=0.01 * math.sqrt(1024 / conv_dim))

    def forward(self, feature: Tensor) -> ScoreMaps:
        """(B, C, H, W) to the score maps."""
        x = F.relu(self.conv_new_1(feature))
        return ScoreMaps(self.fcis_cls_seg(x), self.fcis_bbox(x))

    def regions(
        self, maps: ScoreMaps, boxes: Sequence[Tensor], classes: Tensor | None = None
    ) -> RegionScores:
        """Scores of the regions in the boxes of every image.

        Args:
            maps: of the batch.
            boxes: per image, (R_i, 4) XYXY in pixels of the network input.
            classes: (sum R_i,) int64 in [0, K]: whose mask is wanted; by default that of the most
                probable class but background.
        """
        rois = to_rois(boxes)
        # A gradient needs all of them at once anyway.
        size = max(len(rois), 1) if torch.is_grad_enabled() else CHUNK
        chunks = rois.split(size)  # without regions one, an empty one
        wanted = [None] * len(chunks) if classes is None else classes.split(size)
        parts = [self._regions(maps, rois, of) for rois, of in zip(chunks, wanted, strict=True)]
        return RegionScores(*(torch.cat(fields) for fields in zip(*parts, strict=True)))

    def _regions(self, maps: ScoreMaps, rois: Tensor, classes: Tensor | None) -> RegionScores:
        scores = self._pool(maps.seg, rois).unflatten(1, (-1, 2))  # (R, K + 1, 2, M, M)
        either = torch.maximum(scores[:, :, OUTSIDE], scores[:, :, INSIDE])
        class_logits = either.mean(dim=(2, 3))
        if classes is None:
            classes = class_logits[:, :-1].argmax(dim=1)
        own = scores[torch.arange(len(scores), device=scores.device), classes]
        deltas = self._pool(maps.box, rois).mean(dim=(2, 3))
        return RegionScores(class_logits, own[:, INSIDE] - own[:, OUTSIDE], deltas)

    def _pool(self, maps: Tensor, rois: Tensor) -> Tensor:
        """(R, channels / G / G, M, M), at least float32."""
        pooled = ps_roi_pool(
            maps,
            rois - rois.new_tensor((0, 0, 0, 1, 1)),  # to the last pixels that belong to the boxes
            self.pooled_size,
            spatial_scale=1 / self.stride,
            group_size=self.group_size,
            rounding="pixels",
        )
        return at_least_float32(pooled)


class RegionTargets(NamedTuple):
    """What R regions of an image, or of several, should become."""

    boxes: Tensor  # (R, 4) XYXY of the regions themselves, in pixels of the network input
    classes: Tensor  # (R,) int64 in [0, K], K is background
    masks: Tensor  # (R, M, M) bool, all False for background
    deltas: Tensor  # (R, 4), all 0 for background

    def take(self, rows: Tensor) -> RegionTargets:
        """Those of some regions."""
        return RegionTargets(*(field[rows] for field in self))


class FCISLoss:
    """Classes, masks and boxes of regions against their targets.

    Source: FCIS, section 2.3, "Training", with the weights and divisors of the official code.

    Args:
        box_transform: encodes objects relative to regions.
        num_regions: of an image; divides the losses of masks and boxes, however many there are.
        mask_side: M.
        mask_thresh: share of a cell from which on it belongs to the object.
        mask_weight: of the masks' loss.
    """

    def __init__(
        self,
        box_transform: Box2BoxTransform,
        *,
        num_regions: int,
        mask_side: int,
        mask_thresh: float,
        mask_weight: float,
    ) -> None:
        self.box_transform = box_transform
        self.num_regions = num_regions
        self.mask_side = mask_side
        self.mask_thresh = mask_thresh
        self.mask_weight = mask_weight

    @torch.no_grad()
    def targets(self, sampled: Proposals, target: Targets, num_classes: int) -> RegionTargets:
        """Of the sampled proposals of one image.

        Args:
            sampled: with `gt_classes`, and `gt_index` where the image has objects.
            target: with `gt_boxes` and `gt_masks`.
            num_classes: K; proposals of this class are background.
        """
        boxes, classes = sampled.proposal_boxes.tensor, sampled.gt_classes
        masks = torch.zeros(len(boxes), *(self.mask_side,) * 2, dtype=torch.bool)
        masks, deltas = masks.to(boxes.device), torch.zeros_like(boxes)
        fg = torch.nonzero(classes < num_classes).squeeze(1)
        if len(fg):
            index, gt_boxes = sampled.gt_index[fg], target.gt_boxes.tensor.to(boxes.dtype)
            deltas[fg] = self.box_transform.get_deltas(boxes[fg], gt_boxes[index])
            pixels = pixels_of(target.gt_masks, target.image_size).to(boxes.device)
            soft = crop_masks(pixels, gt_boxes, boxes[fg], index, self.mask_side)
            masks[fg] = soft >= self.mask_thresh
        return RegionTargets(boxes, classes, masks, deltas)

    def __call__(self, scores: RegionScores, targets: RegionTargets, num_images: int = 1) -> Losses:
        """`loss_cls` (a mean), `loss_mask` and `loss_box_reg`, of the regions of all images."""
        cls, mask, box = self._of_each(scores, targets)
        nominal = self.num_regions * num_images
        return Losses(
            {
                "loss_cls": cls.sum() / max(len(cls), 1),
                "loss_mask": mask.sum() / nominal,
                "loss_box_reg": box.sum() / nominal,
            },
            counts={"loss_cls": len(cls)},
        )

    @torch.no_grad()
    def hardest(self, scores: RegionScores, targets: RegionTargets) -> Tensor:
        """Indices of the `num_regions` regions of one image whose losses sum up to most.

        Source: OHEM (arXiv:1604.03540), here without NMS.
        """
        total = torch.stack(self._of_each(scores, targets)).sum(dim=0)
        return total.topk(min(self.num_regions, len(total))).indices

    def _of_each(
        self, scores: RegionScores, targets: RegionTargets
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(R,) each: the loss of a region's class, of its mask (weighted), and of its box."""
        logits = scores.class_logits
        is_fg = targets.classes < logits.shape[1] - 1
        cls = F.cross_entropy(logits, targets.classes, reduction="none")
        pixel = F.binary_cross_entropy_with_logits(
            scores.mask_logits, targets.masks.to(logits.dtype), reduction="none"
        )
        box = smooth_l1_loss(scores.deltas, targets.deltas.to(logits.dtype), beta=1.0)
        mask = self.mask_weight * pixel.mean(dim=(1, 2))
        return cls, mask * is_fg, box.sum(dim=1) * is_fg


def pixels_of(masks: BitMasks | PolygonMasks, image_size: tuple[int, int]) -> Tensor:
    """(G, H, W) bool, the objects' pixels on an image of this size."""
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, *image_size)
    return masks.tensor


def crop_masks(masks: Tensor, gt_boxes: Tensor, boxes: Tensor, index: Tensor, side: int) -> Tensor:
    """Each region's object, cut out by the region and stretched to a square.

    Source: the official code: corners are rounded to pixels, halves to even; what lies outside of
    the object's own box counts as empty; the cut is resized bilinearly, its border repeated.

    Args:
        masks: (G, H, W) bool, or numbers in [0, 1], in pixels of the network input.
        gt_boxes: (G, 4) XYXY of the objects.
        boxes: (R, 4) XYXY of the regions.
        index: (R,) int64 in [0, G), the region's object.
        side: M.

    Returns:
        (R, M, M) in [0, 1].
    """
    low, high = pixel_corners(gt_boxes)[index].split(2, dim=1)  # (R, 2): x, y
    start, stop = pixel_corners(boxes).split(2, dim=1)
    extent = (stop - start + 1).clamp(min=1)
    steps = torch.arange(side, device=boxes.device, dtype=boxes.dtype) + 0.5
    place = steps[:, None, None] * extent / side - 0.5  # (M, R, 2) pixels of the cut
    place = torch.minimum(place.clamp(min=0), extent - 1)
    first = place.floor()
    share = place - first
    limit = boxes.new_tensor(masks.shape[:0:-1]) - 1  # (2,): last column, last row
    corners = []
    for step, weight in ((0, 1 - share), (1, share)):
        at = torch.minimum(first + step, extent - 1) + start
        is_inside = (at >= low) & (at <= high) & (at >= 0) & (at <= limit)
        pixel = torch.minimum(at.clamp(min=0), limit).long().transpose(0, 1)  # (R, M, 2)
        corners.append((pixel, (weight * is_inside).transpose(0, 1)))
    soft = boxes.new_zeros(len(boxes), side, side)
    for rows, row_weight in corners:
        for columns, column_weight in corners:
            values = masks[index[:, None, None], rows[:, :, None, 1], columns[:, None, :, 0]]
            soft += values * row_weight[:, :, None, 1] * column_weight[:, None, :, 0]
    return soft


def pixel_corners(boxes: Tensor) -> Tensor:
    """(N, 4) whole numbers: the first and the last pixel of a box on each axis, halves to even."""
    return (boxes - boxes.new_tensor((0, 0, 1, 1))).round()
