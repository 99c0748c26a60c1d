"""Which ground truth box, if any, each anchor or proposal stands for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from segdet.errors import ConfigError


class Matcher:
    """Assigns every candidate to its best ground truth and labels it by that overlap.

    Source: Faster R-CNN (arXiv:1506.01497), section 3.1.2; detectron2's half-open intervals.

    Args:
        thresholds: ascending IoU limits t; candidate IoU in [t_i, t_i+1) takes `labels[i + 1]`,
            below the first it takes `labels[0]`.
        labels: 1 positive, 0 negative, -1 ignored; one more than thresholds.
        allow_low_quality_matches: every candidate whose IoU with some ground truth equals that
            ground truth's maximum becomes positive too; it keeps its own best match.
    """

    def __init__(
        self,
        thresholds: Sequence[float],
        labels: Sequence[int],
        *,
        allow_low_quality_matches: bool = False,
    ) -> None:
        if list(thresholds) != sorted(thresholds) or not all(t > 0 for t in thresholds):
            raise ConfigError(f"IOU_THRESHOLDS must be positive and ascending, are {thresholds}")
        if len(labels) != len(thresholds) + 1 or not set(labels) <= {-1, 0, 1}:
            raise ConfigError(
                f"IOU_LABELS must be {len(thresholds) + 1} values of -1, 0, 1 for thresholds "
                f"{thresholds}, are {labels}"
            )
        self.thresholds = tuple(thresholds)
        self.labels = tuple(labels)
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, iou: Tensor) -> tuple[Tensor, Tensor]:
        """Matches and labels.

        Args:
            iou: (G, N), ground truth by candidate.

        Returns:
            matches (N,) int64 in [0, G), 0 where G == 0; labels (N,) int8, `labels[0]` where
            G == 0.
        """
        num_gt, num = iou.shape
        if num_gt == 0 or num == 0:
            matches = torch.zeros(num, dtype=torch.int64, device=iou.device)
            return matches, torch.full_like(matches, self.labels[0], dtype=torch.int8)
        best, matches = iou.max(dim=0)
        bounds = iou.new_tensor(self.thresholds)
        interval = torch.bucketize(best, bounds, right=True)  # t_i <= iou < t_i+1
        labels = torch.tensor(self.labels, dtype=torch.int8, device=iou.device)[interval]
        if self.allow_low_quality_matches:
            best_of_gt = iou.max(dim=1, keepdim=True).values
            # A ground truth that overlaps nothing has maximum 0, which every far anchor attains.
            tied = (iou == best_of_gt) & (best_of_gt > 0)
            labels[tied.any(dim=0)] = 1
        return matches, labels
