"""Cluster NMS: greedy NMS as a fixed number of matrix operations."""

from __future__ import annotations

import torch
from torch import Tensor

from . import plain_nms


def cluster_nms(boxes: Tensor, scores: Tensor, iou_threshold: float, iterations: int) -> Tensor:
    """Drop each box that overlaps a better one that the iteration before did not drop.

    Source: Cluster-NMS (Zheng et al. 2020, arXiv:2005.03572), section 3. One iteration is Fast NMS;
    once an iteration changes nothing the result is that of `nms`. Plain PyTorch, of N^2 memory:
    where its shape need not be fixed, `nms` does the same faster.

    Args:
        boxes: (N, 4) floating point, XYXY.
        scores: (N,); of equal scores the lower index is better.
        iou_threshold: boxes strictly above it are dropped.
        iterations: at least 1.

    Returns:
        (K,) int64 indices into `boxes`, best first.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes = plain_nms.widened(boxes)[order]
    overlaps = plain_nms.pairwise_iou(boxes, boxes).double()  # the threshold is not rounded
    drops = (overlaps > iou_threshold).triu(1)  # row drops column
    stays = torch.ones_like(order, dtype=torch.bool)
    for _ in range(iterations):
        stays = ~(drops & stays[:, None]).any(0)
    return order[stays]
