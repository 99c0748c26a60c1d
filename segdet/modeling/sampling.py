"""Balanced random subsets of positive and negative candidates."""

from __future__ import annotations

import torch
from torch import Tensor


def subsample_labels(
    labels: Tensor, num_samples: int, positive_fraction: float, bg_label: int
) -> tuple[Tensor, Tensor]:
    """Draws at most `num_samples` candidates, at most `positive_fraction` of them positive.

    Source: Faster R-CNN (arXiv:1506.01497), section 3.1.3. Negatives fill what positives leave;
    fewer are returned where there are not enough.

    Args:
        labels: (N,) integers: -1 is ignored, `bg_label` negative, anything else positive.

    Returns:
        Indices of the drawn positives and negatives, int64, from torch's global generator.
    """
    positive = torch.nonzero((labels != -1) & (labels != bg_label)).squeeze(1)
    negative = torch.nonzero(labels == bg_label).squeeze(1)
    num_positive = min(len(positive), int(num_samples * positive_fraction))
    num_negative = min(len(negative), num_samples - num_positive)
    return _draw(positive, num_positive), _draw(negative, num_negative)


def _draw(candidates: Tensor, count: int) -> Tensor:
    order = torch.randperm(len(candidates), device=candidates.device)[:count]
    return candidates[order]
