"""FCIS's last step (arXiv:1611.07709, section 2.3, "Inference"): regions vote on masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segdet.layers import batched_nms
from segdet.modeling.fcis_head import pixel_corners
from segdet.structures import Boxes, Detections, box_iou

Array = NDArray[np.floating]

KEPT_PIXELS = 1 << 28  # of drawn masks; in huge pictures the others are drawn again for each vote


@dataclass(frozen=True, kw_only=True)
class ScoredRegions:
    """What a model says of the regions of one image, before NMS."""

    image_size: tuple[int, int]  # (height, width) of the network input
    boxes: Tensor  # (R, 4) XYXY in its pixels
    scores: Tensor  # (R, K) in [0, 1]
    masks: Tensor  # (R, M, M) probabilities, for all classes the same


class MaskVoting:
    """Makes detections of regions: boxes by NMS, masks by the vote of all regions around.

    Source: the official code's rule for GPUs. Each mask is drawn and cut to pixels before the
    average, which weighs it by its region's score for the class, whatever class the region is of.
    The detection's box becomes the tight box of the result; its score stays.

    Works in whole pixels on the CPU.

    Args:
        score_thresh: detections need a score above it.
        nms_thresh: of two boxes of a class with an IoU above it, the lower goes.
        vote_thresh: regions whose box has at least this IoU with a detection's vote.
        mask_thresh: probability, and share of the votes, from which on a pixel counts.
        detections_per_image: at most this many.
        min_size: in pixels of the network input; regions with a smaller side are left out.
    """

    def __init__(
        self,
        *,
        score_thresh: float,
        nms_thresh: float,
        vote_thresh: float,
        mask_thresh: float,
        detections_per_image: int,
        min_size: float,
    ) -> None:
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.vote_thresh = vote_thresh
        self.mask_thresh = mask_thresh
        self.detections_per_image = detections_per_image
        self.min_size = min_size

    def __call__(self, regions: ScoredRegions, size: tuple[int, int]) -> Detections:
        """The detections in an image of `size` (height, width) pixels, best first."""
        device = regions.boxes.device
        found, masks = self.vote(regions, size)
        pixels = torch.zeros(len(found), *size, dtype=torch.bool)
        for pixel, mask, box in zip(
            pixels.numpy(), masks.numpy(), whole_corners(found.pred_boxes.tensor), strict=True
        ):
            pixel[window(box)] = draw(mask, box) >= self.mask_thresh
        found.pred_masks = pixels
        return found.to(device)

    @torch.no_grad()
    def vote(self, regions: ScoredRegions, size: tuple[int, int]) -> tuple[Detections, Tensor]:
        """As the call, with the masks beside the detections, as (N, M, M) shares of the votes."""
        sides = regions.boxes[:, 2:] - regions.boxes[:, :2]
        usable = (sides >= max(self.min_size, 1)).all(dim=1).cpu()  # at least a pixel
        boxes = scaled(regions.boxes.cpu()[usable], regions.image_size, size)
        scores = regions.scores.to("cpu", boxes.dtype)[usable]
        masks = regions.masks.to("cpu", boxes.dtype)[usable].numpy()
        drawn = _Drawn(masks, whole_corners(boxes), self.mask_thresh)
        region, classes = self._survivors(boxes, scores)
        voters = (box_iou(boxes[region], boxes) >= self.vote_thresh).numpy()
        made = [
            self._vote(drawn, np.flatnonzero(voter), weight, size)
            for voter, weight in zip(voters, scores[:, classes].T.numpy(), strict=True)
        ]
        rows = [row for row, one in enumerate(made) if one is not None]
        tight = np.array([one[0] for one in made if one is not None]).reshape(-1, 4)
        shares = np.array([one[1] for one in made if one is not None])
        found = Detections(
            size,
            pred_boxes=Boxes(torch.from_numpy(tight).to(boxes.dtype)),
            scores=scores[region, classes][rows],
            pred_classes=classes[rows],
        )
        return found, torch.from_numpy(shares.reshape(-1, *masks.shape[1:])).to(boxes.dtype)

    def _survivors(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Region and class of every detection, best first."""
        region, classes = torch.nonzero(scores > self.score_thresh, as_tuple=True)
        kept = batched_nms(boxes[region], scores[region, classes], classes, self.nms_thresh)
        kept = kept[: self.detections_per_image]
        return region[kept], classes[kept]

    def _vote(
        self, drawn: _Drawn, voters: NDArray[np.integer], scores: Array, size: tuple[int, int]
    ) -> tuple[Array, Array] | None:
        """Box (4,) XYXY and mask (M, M) of one detection; None where its mask has no extent."""
        weights = scores[voters] / scores[voters].sum()
        corners = drawn.corners[voters]
        # One pixel more on each side, as far as the image goes: the mask is resampled from there.
        low = np.maximum(corners[:, :2].min(axis=0) - 1, 0)
        high = np.minimum(corners[:, 2:].max(axis=0) + 1, np.array(size[::-1]) - 1)
        votes = np.zeros((high - low + 1)[::-1], scores.dtype)
        for voter, weight in zip(voters, weights, strict=True):
            votes[window(drawn.corners[voter] - np.tile(low, 2))] += weight * drawn[voter]
        counts = votes >= self.mask_thresh
        rows, columns = np.flatnonzero(counts.any(axis=1)), np.flatnonzero(counts.any(axis=0))
        if len(rows) == 0 or rows[0] == rows[-1] or columns[0] == columns[-1]:
            return None
        tight = np.array((columns[0], rows[0], columns[-1], rows[-1]))
        mask = _resample(votes, tight, drawn.masks.shape[1])
        return tight + np.tile(low, 2) + (0, 0, 1, 1), mask


class _Drawn:
    """Masks of regions in pixels of the image, drawn when they are asked for."""

    def __init__(self, masks: Array, corners: NDArray[np.integer], threshold: float) -> None:
        self.masks = masks  # (R, M, M)
        self.corners = corners
        self._threshold = threshold
        self._kept: dict[int, NDArray[np.bool_]] = {}
        self._free = KEPT_PIXELS

    def __getitem__(self, region: int) -> NDArray[np.bool_]:
        if region in self._kept:
            return self._kept[region]
        pixels = draw(self.masks[region], self.corners[region]) >= self._threshold
        if pixels.size <= self._free:
            self._free -= pixels.size
            self._kept[region] = pixels
        return pixels


def scaled(boxes: Tensor, image_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Boxes (R, 4) XYXY in another size of the image, as the official code scales them.

    It scales the last pixels that belong to the boxes, not their borders, and clips them so that
    every box keeps a pixel.
    """
    (height, width), (old_height, old_width) = size, image_size
    scale = boxes.new_tensor((width / old_width, height / old_height)).repeat(2)
    one = boxes.new_tensor((0, 0, 1, 1))
    last = boxes.new_tensor((width - 1, height - 1)).repeat(2)
    return torch.minimum(((boxes - one) * scale).clamp(min=0), last) + one


def whole_corners(boxes: Tensor) -> NDArray[np.integer]:
    """`pixel_corners` as whole numbers."""
    return pixel_corners(boxes).long().numpy()


def window(corners: NDArray[np.integer]) -> tuple[slice, slice]:
    """The part of an image between the first and the last pixels of a box."""
    x0, y0, x1, y1 = corners
    return slice(y0, y1 + 1), slice(x0, x1 + 1)


def draw(mask: Array, corners: NDArray[np.integer]) -> Array:
    """A mask (M, M) stretched over the pixels of its box, its border repeated beyond."""
    x0, y0, x1, y1 = corners
    side = len(mask)
    rows, columns = (_linear(0, side, n, side, mask.dtype) for n in (y1 - y0 + 1, x1 - x0 + 1))
    return rows @ mask @ columns.T


def _resample(votes: Array, corners: NDArray[np.integer], side: int) -> Array:
    """The part of a picture in a box as (side, side); half-pixels just outside come in too."""
    (x0, y0, x1, y1), (height, width) = corners, votes.shape
    rows = _linear(y0, y1 - y0 + 1, side, height, votes.dtype)
    columns = _linear(x0, x1 - x0 + 1, side, width, votes.dtype)
    return rows @ votes @ columns.T


def _linear(start: int, extent: int, count: int, size: int, dtype: np.dtype) -> Array:
    """Linear interpolation at the middles of `count` equal parts of [start, start + extent).

    Returns:
        (count, size) shares of the `size` cells of the axis in each; its ends repeat beyond.
    """
    place = start + (np.arange(count, dtype=dtype) + 0.5) * (extent / count) - 0.5
    place = np.clip(place, 0, size - 1)[:, None]
    return np.clip(1 - np.abs(place - np.arange(size, dtype=dtype)), 0, 1)
