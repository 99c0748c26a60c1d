"""How far numbers would move with other images: intervals, and whether two runs differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segdet.errors import DataError
from segdet.evaluation.analysis.tables import nan_mean
from segdet.evaluation.average_precision import resampled_ap
from segdet.evaluation.matching import Matches

_AT_ONCE = 64  # samples, which bounds memory
NAMES = ("AP", "AP50", "AP75")  # what is known of all classes together; of each class AP


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number in [0, 1] of the data set as it is, and the bounds that resampled ones stay in."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Confidence intervals; NaN where there is no object."""

    confidence: float
    samples: int
    overall: dict[str, Interval]  # of `NAMES`
    classes: list[Interval]  # K, of AP


@dataclass(frozen=True, kw_only=True)
class Difference:
    """By how much a number of one run exceeds that of another."""

    value: float  # of the first run minus that of the second
    low: float
    high: float
    p_value: float  # two-sided: how often resampling turns the sign, 1 for equal runs


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs on the same images."""

    confidence: float
    samples: int
    overall: dict[str, Difference]  # of `NAMES`
    classes: list[Difference]  # K, of AP


def confidence_intervals(
    matches: Matches, *, samples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Intervals:
    """Resample the images: percentile bootstrap.

    Args:
        matches: of the data set.
        samples: data sets that are drawn, each of as many images, with replacement.
        confidence: share of them that the interval holds.
        seed: of the draw.
    """
    value, drawn = _resample(matches, samples, seed)
    low, high = _bounds(drawn, confidence)
    intervals = [
        Interval(value=v, low=a, high=b)
        for v, a, b in zip(value.tolist(), low.tolist(), high.tolist(), strict=True)
    ]
    return Intervals(
        confidence=confidence,
        samples=samples,
        overall=dict(zip(NAMES, intervals, strict=False)),
        classes=intervals[len(NAMES) :],
    )


def compare(
    first: Matches, second: Matches, *, samples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Comparison:
    """Resample the images of two runs together: paired bootstrap.

    A p-value is twice the share of samples in which the difference is not of the sign that it
    mostly has, with one sample added (Davison and Hinkley 1997, section 4.2). Those of many
    classes are many tests: of 20 equal ones, one falls below 0.05.

    Args:
        first: of one run.
        second: of another on the same annotations.
        samples: as for `confidence_intervals`.
        confidence: likewise.
        seed: likewise.

    Raises:
        DataError: the runs were not evaluated on the same annotations.
    """
    if (
        first.truth.image_ids != second.truth.image_ids
        or first.truth.category_ids != second.truth.category_ids
    ):
        raise DataError(
            f"{first.truth.source} and {second.truth.source} have other images or categories; "
            "evaluate both runs on the same annotations"
        )
    (value_a, drawn_a), (value_b, drawn_b) = (
        _resample(matches, samples, seed) for matches in (first, second)
    )
    drawn = drawn_a - drawn_b
    low, high = _bounds(drawn, confidence)
    known = np.maximum((~np.isnan(drawn)).sum(0), 1)
    turned = np.minimum((drawn <= 0).sum(0), (drawn >= 0).sum(0))
    p_value = np.minimum(2 * (turned + 1) / (known + 1), 1)
    rows = np.stack([value_a - value_b, low, high, p_value], axis=1).tolist()
    differences = [Difference(value=v, low=a, high=b, p_value=p) for v, a, b, p in rows]
    return Comparison(
        confidence=confidence,
        samples=samples,
        overall=dict(zip(NAMES, differences, strict=False)),
        classes=differences[len(NAMES) :],
    )


def _resample(matches: Matches, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(3 + K,) AP, AP50, AP75 and AP of each class; (samples, 3 + K) of the drawn data sets."""
    images = len(matches.truth.image_ids)
    rng = np.random.default_rng(seed)
    drawn = []
    for begin in range(0, samples, _AT_ONCE):
        number = min(_AT_ONCE, samples - begin)
        weights = rng.multinomial(images, np.full(images, 1 / images), size=number)
        drawn.append(_numbers(resampled_ap(matches, weights)))
    whole = np.ones((1, images), dtype=np.int64)
    return _numbers(resampled_ap(matches, whole))[0], np.concatenate(drawn)


def _numbers(ap: np.ndarray) -> np.ndarray:
    """(B, 3 + K) from (B, T, K)."""
    of_classes = ap.mean(1)
    overall = [of_classes, ap[:, 0], ap[:, 5]]
    return np.column_stack([*(nan_mean(one, axis=1) for one in overall), of_classes])


def _bounds(drawn: np.ndarray, confidence: float) -> np.ndarray:
    """(2, numbers) percentiles; NaN where a number was never there."""
    bounds = np.full((2, drawn.shape[1]), np.nan)
    there = ~np.isnan(drawn).all(0)
    share = (1 - confidence) / 2
    bounds[:, there] = np.nanquantile(drawn[:, there], [share, 1 - share], axis=0)
    return bounds
