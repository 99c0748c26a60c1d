"""An analysis as tables for people and as a dict for json."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from segdet.evaluation.analysis.bootstrap import Comparison
from segdet.evaluation.analysis.errors import CORRECT, GAINS, IGNORED
from segdet.evaluation.analysis.summary import Analysis
from segdet.evaluation.analysis.tables import MEASURES
from segdet.evaluation.coco_report import aligned
from segdet.evaluation.matching import SIZES

_NUMBERS = ("AP", "AP50", "AP75", "recall")  # headings of `MEASURES`
_SHOWN = 20  # classes, in a confusion matrix as text


def lines(analysis: Analysis) -> Iterator[str]:
    """The tables, numbers in percent."""
    yield from _numbers(analysis)
    yield from _errors(analysis)
    yield from _confusion(analysis)
    yield from _calibration(analysis)


def _numbers(analysis: Analysis) -> Iterator[str]:
    intervals, tables = analysis.intervals, analysis.tables
    share = f"{100 * intervals.confidence:g} %"
    rows = [[name, *_row(i.value, i.low, i.high)] for name, i in intervals.overall.items()]
    yield f"\nnumbers, and where {share} of {intervals.samples} resampled data sets lie"
    yield aligned([["", "value", "from", "to"], *rows])
    means = tables.over_classes()
    yield "\nsizes (small < 32 x 32 pixels <= medium < 96 x 96 <= large)"
    head = ["size", "objects", *_NUMBERS]
    rows = [
        [size, str(tables.objects[a].sum()), *_row(*(means[name][a] for name in MEASURES))]
        for a, size in enumerate(SIZES)
    ]
    yield aligned([head, *rows])
    yield "\nclasses"
    head = ["class", "objects", "found", *_NUMBERS, share, "APs", "APm", "APl"]
    rows = []
    for k, name in enumerate(analysis.class_names):
        interval = intervals.classes[k]
        numbers = _row(*(getattr(tables, measure)[0, k] for measure in MEASURES))
        between = " to ".join(_row(interval.low, interval.high))
        counts = [str(tables.objects[0, k]), str(tables.detections[k])]
        rows.append([name, *counts, *numbers, between, *_row(*tables.ap[1:, k])])
    yield aligned([head, *rows])


def _errors(analysis: Analysis) -> Iterator[str]:
    errors = analysis.errors
    counts = errors.counts()
    yield (
        f"\nerrors at IoU {errors.iou:g}, and what AP there ({_percent(errors.ap)}) would gain "
        f"without them; {counts[CORRECT]} detections are right, {counts[IGNORED]} do not count"
    )
    rows = [[name, str(counts[name]), _percent(errors.gains[name])] for name in GAINS]
    yield aligned([["kind", "number", "gain"], *rows])
    yield "\nerrors of each class (missed: its objects)"
    by_class = errors.counts_by_class(analysis.matches)
    pairs = zip(analysis.class_names, by_class.tolist(), strict=True)
    yield aligned([["class", *GAINS], *([name, *map(str, row)] for name, row in pairs)])


def _confusion(analysis: Analysis) -> Iterator[str]:
    confusion = analysis.confusion
    names = [*analysis.class_names, "background"]
    what = f"confusion from score {confusion.score:g} and IoU {confusion.iou:g} on"
    if len(names) <= _SHOWN:
        yield f"\n{what}; rows: objects, columns: what they are taken for"
        pairs = zip(names, confusion.counts.tolist(), strict=True)
        yield aligned([["", *names], *([name, *map(str, row)] for name, row in pairs)])
        return
    yield f"\n{what}; the {_SHOWN} most frequent of two classes"
    wrong = confusion.counts[:-1, :-1].copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_SHOWN]
    cells = zip(*np.unravel_index(order, wrong.shape), strict=True)
    rows = [[names[a], names[b], str(wrong[a, b])] for a, b in cells if wrong[a, b]]
    yield aligned([["object", "taken for", "number"], *rows])


def _calibration(analysis: Analysis) -> Iterator[str]:
    one = analysis.calibration
    by = _percent(one.error)
    yield f"\ncalibration at IoU {one.iou:g}: scores and precision differ by {by} on average"
    head = ["scores", "detections", "mean score", "right"]
    rows = [
        [f"{a:.2g} to {b:.2g}", str(count), *_row(score, right)]
        for a, b, count, score, right in zip(
            one.edges[:-1], one.edges[1:], one.counts, one.mean_score, one.precision, strict=True
        )
    ]
    yield aligned([head, *rows])


def comparison_lines(comparison: Comparison, class_names: list[str]) -> Iterator[str]:
    """The table of two runs, differences in percent points."""
    yield (
        f"\nfirst minus second; where {100 * comparison.confidence:g} % of {comparison.samples} "
        "resampled data sets lie; p: two-sided"
    )
    named = [*comparison.overall.items(), *zip(class_names, comparison.classes, strict=True)]
    rows = [
        [name, f"{100 * d.value:+.1f}", *_row(d.low, d.high), f"{d.p_value:.3f}"]
        for name, d in named
    ]
    yield aligned([["", "difference", "from", "to", "p"], *rows])


def _row(*values: float) -> list[str]:
    return [_percent(value) for value in values]


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def as_json(analysis: Analysis) -> dict[str, Any]:
    """All numbers in [0, 1], None for those that are undefined."""
    errors = analysis.errors
    return plain(
        {
            "classes": analysis.class_names,
            "sizes": SIZES,
            "tables": {
                **asdict(analysis.tables),
                "over_classes": analysis.tables.over_classes(),
            },
            "curves": asdict(analysis.curves),
            "errors": {
                "iou": errors.iou,
                "ap": errors.ap,
                "counts": errors.counts(),
                "gains": errors.gains,
                "kinds": GAINS,
                "counts_by_class": errors.counts_by_class(analysis.matches),
            },
            "confusion": asdict(analysis.confusion),
            "calibration": asdict(analysis.calibration),
            "intervals": asdict(analysis.intervals),
        }
    )


def plain(value: Any) -> Any:
    """What json can hold: arrays as lists, NaN as None."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    return None if isinstance(value, float) and math.isnan(value) else value
