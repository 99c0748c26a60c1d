"""FCIS's last step (arXiv:1611.07709, section 2.3, "Inference"): regions vote on masks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from segdet.layers import batched_nms
from segdet.modeling.fcis_head import pixel_corners
from segdet.structures import BitMasks, Boxes, Detections, box_iou

VOTES = 1 << 26  # pixels whose votes are counted together, over detections
BLOCK = 1 << 21  # pixels that are drawn together, over masks


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

    @torch.no_grad()
    def __call__(self, regions: ScoredRegions, size: tuple[int, int]) -> Detections:
        """The detections in an image of `size` (height, width) pixels, best first."""
        with torch.autocast(regions.boxes.device.type, enabled=False):  # pixels need the digits
            found, masks = self.vote(regions, size)
            corners = pixel_corners(found.pred_boxes.tensor)
            found.pred_masks = corners.new_empty(len(found), *size, dtype=torch.bool)
            for rows in _blocks(size[0], len(found) * size[1]):
                found.pred_masks[:, rows] = draw(masks, corners, rows, size[1]) >= self.mask_thresh
        return found

    @torch.no_grad()
    def vote(self, regions: ScoredRegions, size: tuple[int, int]) -> tuple[Detections, Tensor]:
        """As the call, with the masks beside the detections, as (N, M, M) shares of the votes."""
        sides = regions.boxes[:, 2:] - regions.boxes[:, :2]
        usable = (sides >= max(self.min_size, 1)).all(dim=1)  # at least a pixel
        boxes = scaled(regions.boxes[usable], regions.image_size, size)
        scores, masks = (one[usable].to(boxes.dtype) for one in (regions.scores, regions.masks))
        region, classes = self._survivors(boxes, scores)
        is_voter = box_iou(boxes[region], boxes) >= self.vote_thresh  # (N, R)
        weights = torch.where(is_voter, scores[:, classes].T, 0)
        weights = weights / weights.sum(dim=1, keepdim=True)
        tight, shares = torch.zeros_like(boxes[region]), torch.zeros_like(masks[region])
        for group in _connected(is_voter):
            voters = torch.nonzero(is_voter[group].any(dim=0)).squeeze(1)
            tight[group], shares[group] = self._vote(
                masks[voters], pixel_corners(boxes[voters]), weights[group][:, voters], size
            )
        has_extent = (tight[:, 2:] - tight[:, :2] > 1).all(dim=1)
        found = Detections(
            size, pred_boxes=Boxes(tight), scores=scores[region, classes], pred_classes=classes
        )
        return found[has_extent], shares[has_extent]

    def _survivors(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Region and class of every detection, best first."""
        region, classes = torch.nonzero(scores > self.score_thresh, as_tuple=True)
        kept = batched_nms(boxes[region], scores[region, classes], classes, self.nms_thresh)
        kept = kept[: self.detections_per_image]
        return region[kept], classes[kept]

    def _vote(
        self, masks: Tensor, corners: Tensor, weights: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Tight boxes (n, 4) XYXY, zeros where no pixel is left, and masks (n, M, M).

        Args:
            masks: (R, M, M) of the voters.
            corners: (R, 4) their first and last pixels.
            weights: (n, R) of each voter for each detection.
            size: of the image.
        """
        # One pixel more on each side, as far as the image goes: masks are resampled from there.
        low = (corners[:, :2].amin(dim=0) - 1).clamp(min=0)
        last = corners.new_tensor((size[1] - 1, size[0] - 1))
        high = torch.minimum(corners[:, 2:].amax(dim=0) + 1, last)
        width, height = (int(n) for n in (high - low + 1).tolist())
        corners = corners - low.repeat(2)
        tight, shares = [], []
        for some in weights.split(max(VOTES // (width * height), 1)):
            votes = some.new_empty(len(some), height, width)
            for rows in _blocks(height, len(masks) * width):
                drawn = draw(masks, corners, rows, width) >= self.mask_thresh
                votes[:, rows] = (some @ drawn.flatten(1).to(some)).unflatten(1, drawn.shape[1:])
            box = BitMasks(votes >= self.mask_thresh).get_bounding_boxes().tensor.to(votes)
            shares.append(_resample(votes, box, masks.shape[-1]))
            is_there = (box[:, 2:] > 0).all(dim=1, keepdim=True)
            tight.append((box + low.repeat(2)) * is_there)
        return torch.cat(tight), torch.cat(shares)


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


def draw(masks: Tensor, corners: Tensor, rows: slice, width: int) -> Tensor:
    """Masks stretched over the pixels of their boxes, their borders repeated beyond; 0 elsewhere.

    Args:
        masks: (R, M, M).
        corners: (R, 4) whole numbers, the first and the last pixels of the boxes.
        rows: of the image, which are wanted.
        width: of the image.

    Returns:
        (R, rows, width).
    """
    side = masks.shape[-1]

    def shares(pixels: Tensor, first: Tensor, last: Tensor) -> Tensor:
        """(R, pixels, M) of each cell in each pixel of an axis."""
        place = (pixels - first[:, None] + 0.5) * (side / (last - first + 1))[:, None] - 0.5
        is_inside = (pixels >= first[:, None]) & (pixels <= last[:, None])
        return _linear(place, side) * is_inside[:, :, None]

    x0, y0, x1, y1 = corners.unbind(1)
    in_row = shares(torch.arange(rows.start, rows.stop).to(corners), y0, y1)
    in_column = shares(torch.arange(width).to(corners), x0, x1)
    return in_row @ masks @ in_column.mT


def _resample(votes: Tensor, boxes: Tensor, side: int) -> Tensor:
    """(n, side, side): the parts of pictures in boxes; what lies just outside comes in too."""
    steps = (torch.arange(side).to(boxes) + 0.5) / side
    low, extent = boxes[:, :2, None], (boxes[:, 2:] - boxes[:, :2])[:, :, None]
    place = low + steps * extent - 0.5  # (n, 2, side)
    rows = _linear(place[:, 1], votes.shape[1])
    return rows @ votes @ _linear(place[:, 0], votes.shape[2]).mT


def _linear(place: Tensor, size: int) -> Tensor:
    """(..., size): linear interpolation between cells of an axis at `place`, its ends repeated."""
    cells = torch.arange(size).to(place)
    return (1 - (place.clamp(0, size - 1)[..., None] - cells).abs()).clamp(min=0)


def _blocks(rows: int, row_values: int) -> Iterator[slice]:
    """Rows of a picture, so many at a time that they hold at most `BLOCK`, or one."""
    step = max(BLOCK // max(row_values, 1), 1)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _connected(is_voter: Tensor) -> list[Tensor]:
    """Rows of (N, R) that share voters, also by way of others: the indices of each such group."""
    if len(is_voter) == 0:
        return []
    shared = is_voter.float()
    reach = shared @ shared.T > 0
    while not torch.equal(further := reach.float() @ reach.float() > 0, reach):
        reach = further
    first = reach.float().argmax(dim=1)  # the group's first row
    return [torch.nonzero(first == one).squeeze(1) for one in first.unique()]
