"""Matrix NMS: the scores of masks decay with their overlap, all at once."""

# torch.library comes without complete types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import torch
from torch import Tensor

from . import library


def matrix_nms(
    masks: Tensor,
    scores: Tensor,
    classes: Tensor,
    *,
    kernel: str = "gaussian",
    sigma: float = 2.0,
) -> Tensor:
    """Lower the score of each mask by its overlap with better masks of its class.

    Source: SOLOv2 (Wang et al. 2020, arXiv:2003.10152), section 3.3; AdelaiDet's `matrix_nms`. What
    a better mask takes away is the less, the more it is itself suppressed. Not differentiable: the
    scores that come out are detached from those that went in.

    Args:
        masks: (N, H, W) bool. Two masks without a pixel have an IoU of 0.
        scores: (N,) floating point, in any order; of equal scores the lower index is better.
        classes: (N,) whole numbers.
        kernel: how IoU becomes a decay, exp(-sigma * IoU^2) or 1 - IoU. With the latter, a mask
            that is a copy of a better one takes nothing away: the better one does.
        sigma: positive.

    Returns:
        (N,) of `scores`' type, in the order of the input.

    Raises:
        RuntimeError: a wrong shape or type, or sigma.
        ValueError: another kernel.
    """
    if kernel not in ("gaussian", "linear"):
        raise ValueError(f'matrix_nms: kernel must be "gaussian" or "linear", is {kernel!r}')
    scores = scores.detach()
    if library.has_binary(masks.device):
        return torch.ops.segdet.matrix_nms(masks, scores, classes, kernel == "gaussian", sigma)
    _check(masks, scores, classes, sigma)
    return _plain(masks, scores, classes, sigma if kernel == "gaussian" else None)


def _fake(masks: Tensor, scores: Tensor, classes: Tensor, gaussian: bool, sigma: float) -> Tensor:
    return scores.new_empty(scores.shape)


library.register("matrix_nms", _fake)


def _plain(masks: Tensor, scores: Tensor, classes: Tensor, sigma: float | None) -> Tensor:
    if len(masks) == 0:
        return scores.clone()
    order = scores.argsort(descending=True, stable=True)
    wide = torch.float64 if scores.dtype == torch.float64 else torch.float32
    pixels, classes = masks[order].flatten(1).to(wide), classes[order]
    with torch.autocast(masks.device.type, enabled=False):
        inter, area = pixels @ pixels.T, pixels.sum(1)
    iou = inter / (area[:, None] + area - inter).clamp(min=1)
    iou = torch.where(classes[:, None] == classes, iou, 0).triu(1)  # row: the better mask
    most = iou.amax(0)[:, None]
    if sigma is not None:
        decay = (sigma * (most**2 - iou**2)).exp()
    else:
        decay = torch.where(most < 1, (1 - iou) / (1 - most), 1)
    lowered = scores.to(wide, copy=True)
    lowered[order] *= torch.where(iou > 0, decay, 1).amin(0).clamp(max=1)
    return lowered.to(scores.dtype)


def _check(masks: Tensor, scores: Tensor, classes: Tensor, sigma: float) -> None:
    """Refuse what the compiled op refuses."""
    if masks.dim() != 3 or masks.dtype != torch.bool:
        raise RuntimeError(
            f"segdet::matrix_nms: masks must be (N, H, W) bool, has shape {tuple(masks.shape)} and "
            f"is {masks.dtype}"
        )
    for name, values in (("scores", scores), ("classes", classes)):
        if values.shape != masks.shape[:1]:
            raise RuntimeError(
                f"segdet::matrix_nms: {name} must be (N,) with N = {len(masks)}, has shape "
                f"{tuple(values.shape)}"
            )
    if not scores.is_floating_point():
        raise RuntimeError(f"segdet::matrix_nms: scores must be floating point, is {scores.dtype}")
    if classes.is_floating_point():
        raise RuntimeError(f"segdet::matrix_nms: classes must be whole numbers, is {classes.dtype}")
    if not sigma > 0:
        raise RuntimeError(f"segdet::matrix_nms: sigma must be > 0, is {sigma}")
