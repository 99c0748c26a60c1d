"""Points and what is found at them: the primitives of PointRend (arXiv:1912.08193).

The names are those of detectron2's `projects/PointRend/point_rend/point_features.py`. Coordinates
are (x, y); the whole of a map, or of a box, is [0, 1] x [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segdet.errors import ConfigError
from segdet.layers import point_sample
from segdet.structures import BitMasks, Boxes, Proposals, Targets


def generate_regular_grid_point_coords(
    R: int, side_size: int, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> Tensor:
    """(R, side_size**2, 2): the centres of a grid's cells, row by row, R times."""
    centres = (torch.arange(side_size, device=device, dtype=dtype) + 0.5) / side_size
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack((x, y), dim=2).reshape(1, -1, 2).expand(R, -1, -1)


def get_point_coords_wrt_image(boxes_coords: Tensor, point_coords: Tensor) -> Tensor:
    """(R, P, 2) pixels of the image.

    Args:
        boxes_coords: (R, 4) XYXY in pixels.
        point_coords: (R, P, 2) within each box.
    """
    low, high = boxes_coords[:, None, :2], boxes_coords[:, None, 2:]
    return low + point_coords * (high - low)


def point_sample_fine_grained_features(
    features_list: Sequence[Tensor],
    feature_scales: Sequence[float],
    boxes: Sequence[Boxes],
    point_coords: Tensor,
) -> tuple[Tensor, Tensor]:
    """Features of whole images at the points of regions.

    Args:
        features_list: (B, C, H, W) maps.
        feature_scales: of each map, 1 / stride.
        boxes: of each image, in pixels of the network input.
        point_coords: (R, P, 2) within each box, all images' boxes in turn.

    Returns:
        (R, sum of C, P) samples, and (R, P, 2) where they were taken, in pixels.
    """
    coords = get_point_coords_wrt_image(torch.cat([b.tensor for b in boxes]), point_coords)
    of_image = coords.split([len(b) for b in boxes])
    samples: list[Tensor] = []
    for feature, scale in zip(features_list, feature_scales, strict=True):
        extent = _extent(feature, scale)
        of_images = zip(feature, of_image, strict=True)
        samples.append(torch.cat([_sample_regions(map, at / extent) for map, at in of_images]))
    return torch.cat(samples, dim=1), coords


def _extent(feature: Tensor, scale: float) -> Tensor:
    """(2,) pixels that a map spans: those of the padded batch, not of the image."""
    height, width = feature.shape[-2:]
    return torch.tensor([width / scale, height / scale], device=feature.device)


def _sample_regions(feature: Tensor, points: Tensor) -> Tensor:
    """(R, C, P) samples of one image's (C, H, W) map at (R, P, 2) points of it."""
    samples = point_sample(feature[None], points.reshape(1, -1, 2))[0]  # (C, R * P)
    return samples.reshape(len(feature), *points.shape[:2]).transpose(0, 1)


@torch.no_grad()
def get_uncertain_point_coords_with_randomness(
    coarse_logits: Tensor,
    uncertainty_func: Callable[[Tensor], Tensor],
    num_points: int,
    oversample_ratio: float,
    importance_sample_ratio: float,
) -> Tensor:
    """Points to train on: the least certain of many random ones, and some more random ones.

    Source: PointRend, section 3.1, "Training". Draws twice from torch's global generator of the
    logits' device.

    Args:
        coarse_logits: (R, K, H, W).
        uncertainty_func: (R, K, P) logits at points -> (R, 1, P), high where uncertain.
        num_points: N, at each map.
        oversample_ratio: k >= 1: the least certain are chosen of int(k * N).
        importance_sample_ratio: share in [0, 1] of the points that are so chosen.

    Returns:
        (R, N, 2), the chosen ones first.
    """
    rows, device = len(coarse_logits), coarse_logits.device
    dtype = torch.promote_types(coarse_logits.dtype, torch.float32)  # half is too coarse
    num_drawn = int(num_points * oversample_ratio)
    drawn = torch.rand(rows, num_drawn, 2, device=device, dtype=dtype)
    uncertainty = uncertainty_func(point_sample(coarse_logits, drawn))[:, 0]
    num_uncertain = int(importance_sample_ratio * num_points)
    chosen = uncertainty.topk(num_uncertain, dim=1).indices
    uncertain = drawn.gather(1, chosen[..., None].expand(-1, -1, 2))
    more = torch.rand(rows, num_points - num_uncertain, 2, device=device, dtype=dtype)
    return torch.cat((uncertain, more), dim=1)


def get_uncertain_point_coords_on_grid(
    uncertainty_map: Tensor, num_points: int
) -> tuple[Tensor, Tensor]:
    """The least certain cells of each map, the least certain first.

    Args:
        uncertainty_map: (R, 1, H, W), high where uncertain.
        num_points: at most this many a map.

    Returns:
        (R, P) int64 indices into the flattened map, and (R, P, 2) centres of those cells, with
        P = min(num_points, H * W).
    """
    height, width = uncertainty_map.shape[-2:]
    flat = uncertainty_map.flatten(1)
    indices = flat.topk(min(num_points, height * width), dim=1).indices
    dtype = torch.promote_types(flat.dtype, torch.float32)
    x, y = (indices % width).to(dtype), (indices // width).to(dtype)
    return indices, torch.stack(((x + 0.5) / width, (y + 0.5) / height), dim=2)


@torch.no_grad()
def sample_point_labels(
    proposals: Sequence[Proposals], targets: Sequence[Targets], point_coords: Tensor
) -> Tensor:
    """(R, P) in [0, 1]: each region's object at its points, a bilinear sample of the mask.

    Args:
        proposals: foreground only, with `gt_index`, the row of the image's targets.
        targets: with `gt_masks` as BitMasks.
        point_coords: (R, P, 2) within each proposal's box.

    Raises:
        ConfigError: the masks are polygons.
    """
    labels = []
    of_image = point_coords.split([len(p) for p in proposals])
    for p, target, points in zip(proposals, targets, of_image, strict=True):
        if len(p) == 0:  # of which an image without objects has no `gt_index`
            labels.append(points.new_zeros(points.shape[:2]))
            continue
        if not isinstance(target.gt_masks, BitMasks):
            raise ConfigError(
                "PointRend trains on masks of pixels: set INPUT.MASK_FORMAT to bitmask "
                f"(gt_masks are {type(target.gt_masks).__name__})"
            )
        masks = target.gt_masks.tensor.to(points.dtype)  # (N, H, W)
        coords = get_point_coords_wrt_image(p.proposal_boxes.tensor, points)
        of_object = _sample_regions(masks, coords / _extent(masks, 1.0))  # (R, N, P)
        labels.append(of_object[torch.arange(len(p), device=points.device), p.gt_index])
    return torch.cat(labels)


def subdivide(
    logits: Tensor,
    predict: Callable[[Tensor], Tensor],
    uncertainty_func: Callable[[Tensor], Tensor],
    *,
    steps: int,
    num_points: int,
) -> Tensor:
    """Logits of twice the sides at each step, predicted anew where they are least certain.

    Source: PointRend, section 3.1, "Inference" (adaptive subdivision).

    Args:
        logits: (R, K, H, W).
        predict: (R, P, 2) points -> (R, K, P) logits there.
        uncertainty_func: (R, K, H, W) logits -> (R, 1, H, W), high where uncertain.
        steps: how often to double.
        num_points: cells to predict anew in each step.

    Returns:
        (R, K, H * 2**steps, W * 2**steps).
    """
    for _ in range(steps):
        logits = F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)
        indices, points = get_uncertain_point_coords_on_grid(uncertainty_func(logits), num_points)
        refined = predict(points).to(logits.dtype)
        cells = indices[:, None].expand_as(refined)
        logits = logits.flatten(2).scatter(2, cells, refined).view_as(logits)
    return logits
