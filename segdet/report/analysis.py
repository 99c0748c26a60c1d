"""The analysis of what runs found, as tables and curves of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from segdet.errors import DataError
from segdet.evaluation.analysis import (
    GAINS,
    MISSED,
    Analysis,
    Comparison,
    Difference,
    Interval,
    analyze,
    compare,
)
from segdet.evaluation.analysis.bootstrap import NAMES
from segdet.evaluation.matching import SIZES
from segdet.report.results import metric_row
from segdet.report.run import TASKS
from segdet.report.tested import Tested

_OF_SIZE = {"APs": "small", "APm": "medium", "APl": "large"}
_MOST_CONFUSED = 30  # classes of a confusion matrix on the page

OUTCOMES = {
    "correct": "an object of its class, at IoU 0.50 or more, that no better one found",
    "classification": "an object of another class, at IoU 0.50 or more",
    "localisation": "an object of its class, but at an IoU of 0.10 to 0.50",
    "both": "an object of another class, at an IoU of 0.10 to 0.50",
    "duplicate": "an object that a better one found already",
    "background": "no object: the IoU with all is below 0.10",
    "missed": "an object that nothing found",
    "ignored": "a region that does not count, or beyond the 100 of its class",
}


def analyses_of(tested: Sequence[Tested | None]) -> dict[str, list[Analysis | None]]:
    """Task -> the analysis of each run; masks before boxes."""
    found: dict[str, list[Analysis | None]] = {}
    for task, held in (("segm", "masks"), ("bbox", "boxes")):
        has = [one is not None and getattr(one.found, held) is not None for one in tested]
        if any(has):
            found[task] = [
                analyze(one.truth, one.found, task) if one is not None and there else None
                for one, there in zip(tested, has, strict=True)
            ]
    return found


def task_of(
    task: str, analyses: Sequence[Analysis | None], written: Mapping[str, Any] | None
) -> dict[str, Any]:
    """All of a task.

    Args:
        task: "segm" or "bbox".
        analyses: of each run, of at least one.
        written: the table of metrics.json, for runs without an analysis.
    """
    comparison, notes = _compared(analyses)
    known = next(one for one in analyses if one is not None)
    names = known.class_names
    objects = known.tables.objects[SIZES.index("all")].tolist()
    notes.append(
        f"Intervals hold 95 % of {known.intervals.samples} data sets of as many images, drawn with "
        "replacement from the test data: they tell how far the numbers would move with other "
        "images, not with another training."
    )
    return {
        "name": task,
        "title": TASKS[task],
        "caption": "average precision",
        "metrics": _metrics(analyses, comparison, _cells(written, "metrics")),
        "class_metric": "AP",
        "classes": _classes(names, objects, analyses, comparison, _cells(written, "classes")),
        "notes": notes,
        "errors": _errors(analyses),
        "precision": _precision(names, analyses),
        "confusion": _confusion(names, analyses),
        "calibration": _calibration(analyses),
    }


def _cells(written: Mapping[str, Any] | None, part: str) -> dict[str, list[Any]]:
    return {row["name"]: row["runs"] for row in written[part]} if written else {}


def _compared(analyses: Sequence[Analysis | None]) -> tuple[Comparison | None, list[str]]:
    """The two runs' comparison, and notes about it."""
    if len(analyses) < 2:
        return None, []
    first, second = analyses[:2]
    if first is None or second is None:
        return None, ["One of the runs has no predictions at hand: no significance is known."]
    try:
        comparison = compare(first.matches, second.matches)
    except DataError as error:
        return None, [f"The runs cannot be compared image by image: {error}."]
    return comparison, [
        "Differences are first minus second run on the same images, with their 95 % intervals; p "
        f"is two-sided, from {comparison.samples} paired samples. A clear difference has p < 0.05; "
        "of 20 classes without any, one falls below that by chance."
    ]


def _metrics(
    analyses: Sequence[Analysis | None],
    comparison: Comparison | None,
    written: Mapping[str, list[Any]],
) -> list[dict[str, Any]]:
    rows = []
    for name in (*NAMES, *_OF_SIZE):
        cells = []
        for k, one in enumerate(analyses):
            if one is None:
                cells.append(written[name][k] if name in written else None)
            elif name in NAMES:
                cells.append(_interval(one.intervals.overall[name]))
            else:
                means = one.tables.over_classes()["ap"]
                cells.append(_cell(means[SIZES.index(_OF_SIZE[name])]))
        row = metric_row(name, cells)
        if comparison is not None and name in comparison.overall:
            row["difference"] = _difference(comparison.overall[name])
        rows.append(row)
    return rows


def _classes(
    names: Sequence[str],
    objects: Sequence[int],
    analyses: Sequence[Analysis | None],
    comparison: Comparison | None,
    written: Mapping[str, list[Any]],
) -> list[dict[str, Any]]:
    rows = []
    for c, name in enumerate(names):
        cells = []
        for k, one in enumerate(analyses):
            if one is None:
                cells.append(written[name][k] if name in written else None)
            else:
                same = name in one.class_names
                own = one.intervals.classes[one.class_names.index(name)] if same else None
                cells.append(own and _interval(own))
        difference = None if comparison is None else _difference(comparison.classes[c])
        rows.append({"name": name, "objects": objects[c], "runs": cells, "difference": difference})
    return rows


def _errors(analyses: Sequence[Analysis | None]) -> dict[str, Any]:
    return {
        "metric": "AP50",
        "caption": "Detections by what is wrong with them, and the AP50 that mending them alone "
        "would add (TIDE)",
        "kinds": [
            {
                "key": name,
                "name": name,
                "meaning": "an object that nothing found, nor a detection of a wrong class or "
                "place hints at"
                if name == MISSED
                else OUTCOMES[name],
                "runs": [
                    one
                    and {
                        "count": one.errors.counts()[name],
                        "gain": _percent(one.errors.gains[name]),
                    }
                    for one in analyses
                ],
            }
            for name in GAINS
        ],
    }


def _precision(names: Sequence[str], analyses: Sequence[Analysis | None]) -> dict[str, Any]:
    known = next(one for one in analyses if one is not None).curves
    rows: list[tuple[str, list[np.ndarray | None]]] = [
        ("all classes", [one and one.curves.mean_precision for one in analyses])
    ]
    for name in names:
        own = [
            one.curves.precision[:, one.class_names.index(name)]
            if one is not None and name in one.class_names
            else None
            for one in analyses
        ]
        rows.append((name, own))
    return {
        "recalls": _rounded(known.recalls),
        "curves": [
            {
                "name": name,
                "ious": [
                    {
                        "iou": iou,
                        "runs": [None if one is None else _rounded(one[place]) for one in own],
                    }
                    for place, iou in enumerate(known.ious)
                ],
            }
            for name, own in rows
        ],
    }


def _confusion(names: Sequence[str], analyses: Sequence[Analysis | None]) -> dict[str, Any]:
    known = next(one for one in analyses if one is not None).confusion
    same = [
        one and (one.confusion.counts if one.class_names == names else None) for one in analyses
    ]
    tables = [one for one in same if one is not None]
    wrong = np.sum([one - np.diag(np.diag(one)) for one in tables], axis=0)
    worst = np.argsort(-(wrong.sum(0) + wrong.sum(1))[:-1], kind="stable")[:_MOST_CONFUSED]
    shown = [*sorted(worst.tolist()), len(names)]
    part = f" Of {len(names)} classes, the {_MOST_CONFUSED} most confused ones."
    return {
        "names": [[*names, "background"][c] for c in shown],
        "runs": [None if one is None else one[np.ix_(shown, shown)].tolist() for one in same],
        "caption": "Rows are what objects are, columns what was found there: detections with a "
        f"score of {known.score:g} or more, at IoU {known.iou:g} or more. The last row are "
        "detections where nothing is, the last column objects that were not found."
        + (part if len(names) > _MOST_CONFUSED else ""),
    }


def _calibration(analyses: Sequence[Analysis | None]) -> dict[str, Any]:
    runs = []
    for one in analyses:
        if one is None:
            runs.append(None)
            continue
        own = one.calibration
        columns = own.edges[:-1], own.edges[1:], own.counts, own.mean_score, own.precision
        bins = [
            {
                "from": low,
                "to": high,
                "count": count,
                "share": count / max(int(own.counts.sum()), 1),
                "score": _number(score),
                "precision": _number(precision),
            }
            for low, high, count, score, precision in zip(
                *(column.tolist() for column in columns), strict=True
            )
        ]
        runs.append({"bins": bins, "error": _number(own.error)})
    return {
        "runs": runs,
        "caption": "Dots: the share of detections with about that score that are right at IoU "
        "0.50; on the dotted line the score says it exactly. Columns: the share of all detections "
        "that has that score.",
    }


def _interval(one: Interval) -> dict[str, Any]:
    return {"value": _percent(one.value), "low": _percent(one.low), "high": _percent(one.high)}


def _cell(value: float) -> dict[str, Any]:
    return {"value": _percent(value), "low": None, "high": None}


def _difference(one: Difference) -> dict[str, Any]:
    p = _number(one.p_value)
    numbers = {key: _percent(getattr(one, key)) for key in ("value", "low", "high")}
    return {**numbers, "p": p, "significant": p is not None and p < 0.05}


def _percent(value: float) -> float | None:
    return _number(100 * float(value))


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _rounded(values: np.ndarray) -> list[float | None]:
    return [_number(value) for value in np.round(values, 3).tolist()]
