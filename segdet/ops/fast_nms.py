"""Fast NMS: all pairs at once, and boxes that are dropped still drop others."""

# torch.library comes without complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import torch
from torch import Tensor

from . import library, plain_nms


def fast_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    top_k: int = 200,
    max_detections: int = 100,
) -> tuple[Tensor, Tensor, Tensor]:
    """Class by class, drop each box that overlaps any better one, dropped itself or not.

    Source: YOLACT (Bolya et al. 2019, arXiv:1904.02689), section 5, "Fast NMS". A box may come out
    for several classes.

    Args:
        boxes: (N, 4) floating point, XYXY in any unit.
        scores: (K, N) floating point, of the classes without background; of equal scores the lower
            class, then the lower index is better.
        iou_threshold: boxes strictly above it are dropped; two empty boxes drop nothing.
        top_k: boxes that are considered for a class.
        max_detections: that are returned, the best over all classes.

    Returns:
        Of D detections, best first: (D,) int64 indices into `boxes`, (D,) int64 classes and (D,)
        scores, through which gradients reach the input's.

    Raises:
        RuntimeError: a wrong shape or type, or a negative count.
    """
    if library.has_binary(boxes.device):
        index, classes = torch.ops.segdet.fast_nms(
            boxes.detach(), scores.detach(), iou_threshold, top_k, max_detections
        )
    else:
        index, classes = _plain(boxes, scores, iou_threshold, top_k, max_detections)
    return index, classes, scores[classes, index]


def cross_class_fast_nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, top_k: int = 200
) -> tuple[Tensor, Tensor, Tensor]:
    """`fast_nms` of all boxes together, each in its best class.

    Source: YOLACT's `cc_fast_nms`. A box comes out at most once, and boxes of different classes
    drop each other.

    Args:
        boxes: (N, 4), as for `fast_nms`.
        scores: (K, N) with K >= 1, as for `fast_nms`.
        iou_threshold: as for `fast_nms`.
        top_k: boxes that are considered.

    Returns:
        As `fast_nms`.

    Raises:
        RuntimeError: a wrong shape or type, or a negative count.
    """
    best, classes = scores.max(0)
    index, _, kept_scores = fast_nms(boxes, best[None], iou_threshold, top_k, top_k)
    return index, classes[index], kept_scores


def _fake(
    boxes: Tensor, scores: Tensor, iou_threshold: float, top_k: int, max_detections: int
) -> tuple[Tensor, Tensor]:
    found = torch.library.get_ctx().new_dynamic_size()
    index = boxes.new_empty((found,), dtype=torch.int64)
    return index, torch.empty_like(index)


library.register("fast_nms", _fake)


def _plain(
    boxes: Tensor, scores: Tensor, iou_threshold: float, top_k: int, max_detections: int
) -> tuple[Tensor, Tensor]:
    _check(boxes, scores, top_k, max_detections)
    ordered, index = scores.sort(dim=1, descending=True, stable=True)
    ordered, index = ordered[:, :top_k], index[:, :top_k]  # (K, k)
    candidates = plain_nms.widened(boxes)[index]  # (K, k, 4)
    dropped = torch.zeros_like(index, dtype=torch.bool)
    for of_class, pairs in enumerate(candidates):
        above = plain_nms.pairwise_iou(pairs, pairs).double() > iou_threshold
        dropped[of_class] = above.triu(1).any(0)
    classes = torch.arange(len(scores), device=scores.device)[:, None].expand_as(index)
    order = ordered[~dropped].argsort(descending=True, stable=True)[:max_detections]
    return index[~dropped][order], classes[~dropped][order]


def _check(boxes: Tensor, scores: Tensor, top_k: int, max_detections: int) -> None:
    """Refuse what the compiled op refuses."""
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise RuntimeError(
            f"segdet::fast_nms: boxes must be (N, 4), has shape {tuple(boxes.shape)}"
        )
    if scores.dim() != 2 or scores.shape[1] != len(boxes):
        raise RuntimeError(
            f"segdet::fast_nms: scores must be (K, N) with N = {len(boxes)}, has shape "
            f"{tuple(scores.shape)}"
        )
    if top_k < 0 or max_detections < 0:
        raise RuntimeError(
            "segdet::fast_nms: top_k and max_detections must be >= 0, are "
            f"{top_k} and {max_detections}"
        )
