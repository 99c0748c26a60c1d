"""Whether a score says how often a detection is right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segdet.evaluation.analysis.errors import index_of_iou
from segdet.evaluation.matching import Matches


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Detections in bins of equal width by score; NaN in an empty bin."""

    iou: float  # from which a detection is right
    edges: np.ndarray  # (bins + 1,) 0 to 1; a bin holds its upper edge
    counts: np.ndarray  # (bins,) int64 detections
    mean_score: np.ndarray  # (bins,)
    precision: np.ndarray  # (bins,) share that is right
    # Expected calibration error: mean over detections of their bin's |mean_score - precision|.
    error: float
    class_error: np.ndarray  # (K,) likewise of each class; NaN where nothing was found


def calibrate(matches: Matches, *, iou: float = 0.5, bins: int = 10) -> Calibration:
    """Compare scores with precision.

    Source: Guo et al. 2017 (arXiv:1706.04599), section 2. Detections on crowds do not count.

    Args:
        matches: of the data set; scores lie in [0, 1].
        iou: one of COCO's ten.
        bins: their number.

    Raises:
        ValueError: another IoU.
    """
    t = index_of_iou(iou)
    counted = ~matches.ignored[0, t]
    scores, right = matches.found.scores[counted], matches.hits()[t][counted]
    category = matches.found.category[counted]
    edges = np.linspace(0, 1, bins + 1)
    place = np.searchsorted(edges[1:-1], scores, side="left")
    counts, score, precision = _bins(place, scores, right, bins)
    class_error = [
        _error(*_bins(place[own], scores[own], right[own], bins))
        for own in (category == k for k in range(len(matches.truth.category_ids)))
    ]
    return Calibration(
        iou=iou,
        edges=edges,
        counts=counts,
        mean_score=score,
        precision=precision,
        error=_error(counts, score, precision),
        class_error=np.array(class_error),
    )


def _bins(
    place: np.ndarray, scores: np.ndarray, right: np.ndarray, bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each bin the number of detections, their mean score and the share that is right."""
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        score = np.bincount(place, weights=scores, minlength=bins) / counts
        return counts, score, np.bincount(place, weights=right, minlength=bins) / counts


def _error(counts: np.ndarray, score: np.ndarray, precision: np.ndarray) -> float:
    if counts.sum() == 0:
        return float("nan")
    return float(np.nansum(counts * np.abs(score - precision)) / counts.sum())
