"""MaskIoU head of Mask Scoring R-CNN (arXiv:1903.00241): how well a mask fits its object.

CenterMask (arXiv:1911.06667) has the same head, and counts polygons in a way of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdet.config.ranges import PositiveInt
from segdet.errors import ConfigError
from segdet.layers import Losses, c2_xavier_fill, conv3x3_relu, normal_fill
from segdet.modeling.mask_head import (
    MaskRCNNConvUpsampleHead,
    mask_loss,
    mask_targets,
    own_masks,
)
from segdet.modeling.roi_heads import attach_masks_of
from segdet.structures import BitMasks, Detections, PolygonMasks, Proposals, Targets
from segdet.structures.polygons import Box, Polygon, polygon_area, rasterized_area

FC_DIM = 1024  # of both hidden layers, in every release
# Below it a share counts as this much: an object off its region has a target of about 0, not NaN.
LEAST_SHARE = 1e-10
MASKS_AT_ONCE = 16  # that become floating point: what they take in memory is bounded


@dataclass(frozen=True, kw_only=True)
class MaskIoUHeadConfig:
    """MODEL.ROI_MASKIOU_HEAD; the keys are CenterMask2's, the defaults Mask Scoring R-CNN's."""

    name: str = "MaskIoUHead"
    conv_dim: PositiveInt = 256
    num_conv: PositiveInt = 4  # the last one halves

    def __post_init__(self) -> None:
        if self.name != "MaskIoUHead":
            raise ConfigError(f"NAME {self.name!r} is unknown; known: MaskIoUHead")

    @property
    def build(self) -> Callable[..., MaskIoUHead]:
        """The head's constructor with these settings."""
        return functools.partial(MaskIoUHead, conv_dim=self.conv_dim, num_conv=self.num_conv)


class MaskIoUHead(nn.Module):
    """Pooled features and the mask predicted from them, to the mask's overlap with its object.

    Source: Mask Scoring R-CNN, section 3.2, "MaskIoU head". The result is linear: it may leave
    [0, 1].

    Args:
        in_channels: of the pooled features.
        num_classes: outputs.
        side: cells of the pooled features a side; masks have twice as many.
        conv_dim: channels of the convolutions.
        num_conv: 3x3 convolutions, the last one with stride 2.
        fill: gives the hidden layers their random weights.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        side: int,
        conv_dim: int,
        num_conv: int,
        fill: Callable[[nn.Linear], None] = c2_xavier_fill,
    ) -> None:
        super().__init__()
        self.convs: list[nn.Module] = []
        channels = in_channels + 1
        for k in range(1, num_conv + 1):
            conv = conv3x3_relu(channels, conv_dim, stride=2 if k == num_conv else 1)
            self.add_module(f"maskiou_fcn{k}", conv)
            self.convs.append(conv)
            channels = conv_dim
        self.maskiou_fc1 = nn.Linear(conv_dim * ((side + 1) // 2) ** 2, FC_DIM)
        self.maskiou_fc2 = nn.Linear(FC_DIM, FC_DIM)
        self.maskiou = nn.Linear(FC_DIM, num_classes)
        fill(self.maskiou_fc1)
        fill(self.maskiou_fc2)
        normal_fill(self.maskiou, std=0.01)

    def forward(self, pooled: Tensor, masks: Tensor) -> Tensor:
        """Predicted IoUs of each region's mask, one for each class that the region may be of.

        Args:
            pooled: (R, C, S, S), the mask head's input.
            masks: (R, 2S, 2S) probabilities of each region's class. The head's loss reaches the
                mask head through them, as in the official code.

        Returns:
            (R, K).
        """
        x = torch.cat((pooled, F.max_pool2d(masks[:, None], kernel_size=2)), dim=1)
        for conv in self.convs:
            x = conv(x)
        x = F.relu(self.maskiou_fc1(x.flatten(1)))
        return self.maskiou(F.relu(self.maskiou_fc2(x)))


def maskiou_loss(
    ious: Tensor, target_ious: Tensor, gt_classes: Tensor, weight: float = 1.0
) -> Losses:
    """`loss_maskiou`: half the mean squared error, over the regions whose mask meets its object.

    Source: the official code of Mask Scoring R-CNN; regions of target 0 count neither in the sum
    nor in the mean.

    Args:
        ious: (R, K), predicted.
        target_ious: (R,) in [0, 1].
        gt_classes: (R,) int64 in [0, K).
        weight: of the loss.

    Returns:
        One term, zero and connected to `ious` where there is no such region.
    """
    counts = target_ious > 0
    error = torch.where(counts, ious_of_class(ious, gt_classes) - target_ious, 0)
    number = counts.sum()
    loss = weight * 0.5 * (error**2).sum() / number.clamp(min=1)
    return Losses({"loss_maskiou": loss}, {}, {"loss_maskiou": number})


def ious_of_class(ious: Tensor, classes: Tensor) -> Tensor:
    """(R,): each row's entry of `ious` (R, K)."""
    return ious[torch.arange(len(ious), device=ious.device), classes]


@torch.no_grad()
def maskiou_targets(logits: Tensor, gt_masks: Tensor, shares: Tensor) -> Tensor:
    """IoU of each predicted mask with its whole object, also with what lies off the region.

    Source: Mask Scoring R-CNN, section 3.2, "Training", counted on the cells of the region.

    Args:
        logits: (R, M, M) of each region's class; a cell is predicted where they are above 0.
        gt_masks: (R, M, M) bool, the object cropped to the region.
        shares: (R,) how much of the object lies in the region.

    Returns:
        (R,) in [0, 1].
    """
    pred = logits > 0
    dtype = torch.promote_types(logits.dtype, torch.float32)
    inter, pred_area, inside = (
        cells.sum(dim=(1, 2), dtype=dtype) for cells in (pred & gt_masks, pred, gt_masks)
    )
    whole = inside / shares.to(dtype).clamp(min=LEAST_SHARE)
    return inter / (pred_area + whole - inter).clamp(min=1)


# (R,) of objects, boxes (R, 4) and the image's (height, width)
PolygonShares = Callable[[PolygonMasks, Tensor, tuple[int, int]], Tensor]


def canvas_shares(masks: PolygonMasks, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """As Mask Scoring R-CNN counts, on two canvases of whole pixels: it may come to 1.003.

    In float32 as there, because the areas depend on how the last digit of a point is rounded.
    """
    shares = []
    for parts, box in zip(masks, boxes.float().cpu().numpy(), strict=True):
        polygons = [part.astype(np.float32) for part in parts]
        whole = rasterized_area(polygons, _window(polygons, box, image_size)) if polygons else 0
        shares.append(rasterized_area(polygons, box) / max(whole, 1))
    return boxes.new_tensor(shares)


def outline_shares(masks: PolygonMasks, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """As CenterMask counts: pixels of a canvas, divided by the area within the outlines."""
    shares = []
    for polygons, box in zip(masks, boxes.cpu().numpy(), strict=True):
        whole = sum(polygon_area(polygon) for polygon in polygons)
        shares.append(min(rasterized_area(polygons, box) / whole, 1.0) if whole else 0.0)
    return boxes.new_tensor(shares)


@torch.no_grad()
def shares_inside(
    proposals: Sequence[Proposals],
    targets: Sequence[Targets],
    polygon_shares: PolygonShares = canvas_shares,
) -> Tensor:
    """(R,) how much of its object lies in each foreground proposal's box, about in [0, 1].

    Args:
        proposals: foreground only, with `gt_index`, the row of the image's targets.
        targets: with `gt_masks`.
        polygon_shares: counts objects that are polygons; those of pixels are counted exactly.
    """
    shares = []
    for p, target in zip(proposals, targets, strict=True):
        boxes = p.proposal_boxes.tensor
        if len(boxes) == 0:
            shares.append(boxes.new_zeros(0))
            continue
        masks = target.gt_masks[p.gt_index]
        if isinstance(masks, BitMasks):
            shares.append(_bitmask_shares(masks, boxes))
        else:
            shares.append(polygon_shares(masks, boxes, target.image_size))
    return torch.cat(shares)


def _bitmask_shares(masks: BitMasks, boxes: Tensor) -> Tensor:
    """Exact: a pixel counts as far as the box covers it."""
    parts = zip(masks.tensor.split(MASKS_AT_ONCE), boxes.split(MASKS_AT_ONCE), strict=True)
    return torch.cat([_covered_shares(pixels, some) for pixels, some in parts])


def _covered_shares(masks: Tensor, boxes: Tensor) -> Tensor:
    height, width = masks.shape[1:]
    x0, y0, x1, y1 = boxes.unsqueeze(2).unbind(1)  # (R, 1) each
    columns = torch.arange(width, device=boxes.device)
    rows = torch.arange(height, device=boxes.device)
    covered_columns = (torch.minimum(x1, columns + 1) - torch.maximum(x0, columns)).clamp(min=0)
    covered_rows = (torch.minimum(y1, rows + 1) - torch.maximum(y0, rows)).clamp(min=0)
    pixels = masks.to(boxes.dtype)
    inside = torch.einsum("rh,rhw,rw->r", covered_rows, pixels, covered_columns)
    return inside / pixels.sum(dim=(1, 2)).clamp(min=1)


def _window(polygons: Sequence[Polygon], box: Box, image_size: tuple[int, int]) -> Box:
    """The part of the image around an object and a box: (4,) XYXY."""
    points = np.concatenate(polygons).reshape(-1, 2)
    last = np.array(image_size[::-1], np.float32) - 1
    low = np.minimum(np.trunc(box[:2]), points.min(0)).clip(0, last)
    high = np.maximum(np.trunc(box[2:]) + 1, points.max(0)).clip(0, last)
    return np.concatenate((low, high))


def scored_mask_losses(
    mask_head: MaskRCNNConvUpsampleHead,
    maskiou_head: MaskIoUHead,
    pooled: Tensor,
    fg: Sequence[Proposals],
    targets: Sequence[Targets],
    *,
    weight: float,
    polygon_shares: PolygonShares = canvas_shares,
) -> Losses:
    """`loss_mask` and `loss_maskiou` of the foreground regions.

    Args:
        mask_head: makes masks of the regions.
        maskiou_head: predicts how well these fit.
        pooled: (R, C, S, S), the regions' features; rows in the order of `fg`.
        fg: foreground only, with `gt_index` and `gt_classes`.
        targets: with `gt_masks`.
        weight: of `loss_maskiou`.
        polygon_shares: as in `shares_inside`.
    """
    classes = torch.cat([p.gt_classes for p in fg])
    logits = own_masks(mask_head, pooled, classes)
    own = logits[:, 0]  # (R, M, M)
    gt_masks = mask_targets(fg, targets, logits.shape[-1])
    ious = maskiou_head(pooled, own.sigmoid())  # (R, K)
    target_ious = maskiou_targets(own, gt_masks, shares_inside(fg, targets, polygon_shares))
    return mask_loss(logits, gt_masks, classes) | maskiou_loss(ious, target_ious, classes, weight)


def attach_scored_masks(
    mask_head: MaskRCNNConvUpsampleHead,
    maskiou_head: MaskIoUHead,
    pooled: Tensor,
    detections: list[Detections],
) -> list[Detections]:
    """Sets `pred_masks` (N, 1, M, M) probabilities and `mask_scores` (N,), from pooled features."""
    attach_masks_of(mask_head, pooled, detections)
    masks = torch.cat([d.pred_masks[:, 0] for d in detections])  # (sum N, M, M)
    return attach_mask_scores(maskiou_head(pooled, masks), detections)


def attach_mask_scores(ious: Tensor, detections: list[Detections]) -> list[Detections]:
    """Sets `mask_scores` (N,): `scores` times the predicted IoU of each one's class.

    Source: Mask Scoring R-CNN, section 3.2, "Inference". Order, boxes and `scores` stay.

    Args:
        ious: (sum N, K).
        detections: with `pred_classes` and `scores`.
    """
    own = ious_of_class(ious, torch.cat([d.pred_classes for d in detections]))
    for d, iou in zip(detections, own.split([len(d) for d in detections]), strict=True):
        d.mask_scores = d.scores * iou
    return detections
