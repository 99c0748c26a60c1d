"""Which class is taken for which."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segdet.evaluation.matching import Matches


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Objects by their class and that of the detection that covers them."""

    score: float  # detections below it are left out
    iou: float  # from which a detection covers an object
    # (K + 1, K + 1) int64: row, the object's class; column, the detection's; the last of each is
    # background: objects that nothing covers, detections that cover nothing.
    counts: np.ndarray

    def shares(self) -> np.ndarray:
        """(K + 1, K + 1) of each row; 0 in empty rows."""
        return self.counts / self.counts.sum(1, keepdims=True).clip(1)


def confusion_matrix(matches: Matches, *, score: float = 0.5, iou: float = 0.5) -> Confusion:
    """Count pairs of classes.

    From the best detection down, each takes the free object, of whatever class, with the highest
    IoU. Detections that lie on a crowd of their class alone are left out.

    Args:
        matches: of the data set.
        score: detections below it do not count.
        iou: in (0, 1].
    """
    truth, found = matches.truth, matches.found
    background = len(truth.category_ids)
    counts = np.zeros((background + 1, background + 1), dtype=np.int64)
    for i, table in enumerate(matches.overlaps):
        detections, objects = matches.rows_of(i)
        rows = np.flatnonzero(found.scores[detections] >= score)
        crowd = truth.crowd[objects]
        free = ~crowd
        for d, category in zip(rows, found.category[detections[rows]], strict=True):
            near = (table[d] >= iou) & free
            if near.any():
                best = np.where(near, table[d], -1).argmax()
                free[best] = False
                counts[truth.category[objects[best]], category] += 1
            elif not ((table[d] >= iou) & crowd & (truth.category[objects] == category)).any():
                counts[background, category] += 1
        counts[:-1, background] += np.bincount(truth.category[objects[free]], minlength=background)
    return Confusion(score=score, iou=iou, counts=counts)
