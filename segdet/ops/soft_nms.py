"""Soft non-maximum suppression: overlapping boxes lose score instead of being dropped."""

# torch.library comes without complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import torch
from torch import Tensor

from . import library, plain_nms


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float = 0.3,
    *,
    idxs: Tensor | None = None,
    method: str = "linear",
    sigma: float = 0.5,
    min_score: float = 0.001,
) -> tuple[Tensor, Tensor]:
    """Take the best box, lower the scores of those that overlap it, and again with the rest.

    Source: Soft-NMS (Bodla et al. 2017, arXiv:1704.04503), section 3; AdelaiDet's `soft_nms`, which
    however returns the best box even where its score is not above `min_score`. Not differentiable:
    the scores that come out are detached from those that went in.

    Args:
        boxes: (N, 4) floating point, XYXY.
        scores: (N,) floating point; of equal scores the lower index is better.
        iou_threshold: "linear" lowers the scores of boxes whose IoU is above it.
        idxs: (N,) whole numbers, the class of each box: boxes of different classes do not meet.
        method: "linear" multiplies by 1 - IoU, "gaussian" by exp(-IoU^2 / sigma) at any IoU.
        sigma: positive.
        min_score: boxes that are not above it are dropped.

    Returns:
        (K,) int64 indices into `boxes`, and their new scores (K,), best first.

    Raises:
        RuntimeError: a wrong shape or type, or sigma.
        ValueError: another method.
    """
    if method not in ("linear", "gaussian"):
        raise ValueError(f'soft_nms: method must be "linear" or "gaussian", is {method!r}')
    gaussian = method == "gaussian"
    boxes, scores = boxes.detach(), scores.detach()
    if library.has_binary(boxes.device):
        return torch.ops.segdet.soft_nms(
            boxes, scores, idxs, iou_threshold, gaussian, sigma, min_score
        )
    plain_nms.check_boxes("soft_nms", boxes, scores)
    if not scores.is_floating_point():
        raise RuntimeError(f"segdet::soft_nms: scores must be floating point, is {scores.dtype}")
    if idxs is not None:
        plain_nms.check_classes("soft_nms", boxes, idxs)
    if gaussian and not sigma > 0:
        raise RuntimeError(f"segdet::soft_nms: sigma must be > 0, is {sigma}")
    return _plain(boxes, scores, idxs, iou_threshold, sigma if gaussian else None, min_score)


def _fake(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    gaussian: bool,
    sigma: float,
    min_score: float,
) -> tuple[Tensor, Tensor]:
    kept = torch.library.get_ctx().new_dynamic_size()
    return scores.new_empty((kept,), dtype=torch.int64), scores.new_empty((kept,))


library.register("soft_nms", _fake)


def _plain(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    sigma: float | None,
    min_score: float,
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(plain_nms.widened(boxes).dtype, scores.dtype)
    boxes, left = boxes.to(wide), scores.to(wide)
    dropped = ~(left > min_score)
    left = left.masked_fill(dropped, -torch.inf)
    kept: list[int] = []
    lowered = torch.zeros_like(left)
    while not dropped.all():
        best = int((left == left.max()).nonzero()[0])  # argmax promises no order of equal scores
        kept.append(best)
        lowered[best] = left[best]
        iou = plain_nms.pairwise_iou(boxes[best : best + 1], boxes)[0]
        remaining = (-(iou**2) / sigma).exp() if sigma is not None else 1 - iou
        meets = iou.double() > (0 if sigma is not None else iou_threshold)
        if idxs is not None:
            meets &= idxs == idxs[best]
        left = torch.where(meets, left * remaining, left)
        dropped |= ~(left > min_score)
        dropped[best] = True
        left = left.masked_fill(dropped, -torch.inf)
    keep = torch.tensor(kept, dtype=torch.int64, device=boxes.device)
    return keep, lowered[keep].to(scores.dtype)
