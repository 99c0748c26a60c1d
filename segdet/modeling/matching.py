"""Which ground truth box, if any, each anchor or proposal stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from segdet.errors import ConfigError

# Pairs of boxes whose overlaps are held at a time: 4 MB. An image with 500 objects and the 267000
# anchors of 1333 x 800 pixels would take half a gigabyte for each step of computing them.
_PAIRS_AT_ONCE = 1 << 20


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
        return self._label([iou], *iou.shape)

    def match(
        self, gt_boxes: Tensor, boxes: Tensor, iou: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The same of (G, D) and (N, D) boxes, without all of their overlaps at once.

        Args:
            gt_boxes: (G, D).
            boxes: (N, D), the candidates.
            iou: from both to (G, N).
        """
        at_once = max(_PAIRS_AT_ONCE // max(len(gt_boxes), 1), 1)
        parts = (iou(gt_boxes, part) for part in boxes.split(at_once))
        return self._label(parts, len(gt_boxes), len(boxes))

    def _label(self, parts: Iterable[Tensor], num_gt: int, num: int) -> tuple[Tensor, Tensor]:
        """Of the overlaps (G, n) of successive candidates."""
        bests, matches, ties = [], [], []
        for iou in parts:
            if num_gt == 0 or num == 0:
                none = torch.zeros(num, dtype=torch.int64, device=iou.device)
                return none, torch.full_like(none, self.labels[0], dtype=torch.int8)
            best, match = iou.max(dim=0)
            if self.allow_low_quality_matches:
                ties.append(_best_of_ground_truth(iou, sum(map(len, bests))))
            bests.append(best)
            matches.append(match)
        best = torch.cat(bests)
        bounds = best.new_tensor(self.thresholds)
        interval = torch.bucketize(best, bounds, right=True)  # t_i <= iou < t_i+1
        labels = torch.tensor(self.labels, dtype=torch.int8, device=best.device)[interval]
        if self.allow_low_quality_matches:
            best_of_gt = torch.stack([highest for highest, _, _ in ties]).amax(dim=0)
            for highest, gt, candidate in ties:
                labels[candidate[highest[gt] == best_of_gt[gt]]] = 1
        return torch.cat(matches), labels


def _best_of_ground_truth(iou: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each ground truth's highest overlap (G,), and the pairs that have it.

    Args:
        iou: (G, n) with candidates `first`, `first` + 1, ...
        first: number of the first candidate.

    Returns:
        The highest (G,); ground truth and candidate of each pair, (P,) each. A ground truth that
        overlaps nothing has none: its highest is 0, which every far candidate attains.
    """
    highest = iou.amax(dim=1)
    gt, candidate = torch.nonzero((iou == highest[:, None]) & (highest > 0)[:, None], as_tuple=True)
    return highest, gt, candidate + first
