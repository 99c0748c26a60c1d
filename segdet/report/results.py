"""Results that runs wrote to metrics.json, as tables of the page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from segdet.report.run import TASKS, Run

MEANINGS = {
    "AP": "mean over IoU 0.50 to 0.95, and over classes",
    "AP50": "at IoU 0.50",
    "AP75": "at IoU 0.75",
    "APs": "objects under 32² pixels",
    "APm": "objects of 32² to 96² pixels",
    "APl": "objects over 96² pixels",
    "PQ": "panoptic quality: mean over classes of recognition times segmentation quality",
    "SQ": "segmentation quality: mean IoU of the segments that were found",
    "RQ": "recognition quality: F1 of segments at IoU 0.50",
    "mIoU": "intersection over union, mean over classes",
    "fwIoU": "intersection over union, weighed by the classes' pixels",
    "mACC": "share of a class's pixels that are right, mean over classes",
    "pACC": "share of all pixels that are right",
}
_OF = {"th": "things alone", "st": "stuff alone"}
CAPTIONS = {"panoptic_seg": "quality", "sem_seg": "overlap and accuracy"}
# The metric that classes are compared by, and those shown at the top.
MAIN = {"panoptic_seg": "PQ", "sem_seg": "IoU"}
HEADLINE = {"panoptic_seg": ["PQ"], "sem_seg": ["mIoU"]}


def table_of(task: str, runs: Sequence[Run]) -> dict[str, Any] | None:
    """A task's last results in metrics.json; None where no run has them."""
    results = [_last(run, task) for run in runs]
    names = list(dict.fromkeys(name for one in results for name in one))
    if not names:
        return None
    main = MAIN.get(task, "AP")
    return {
        "name": task,
        "title": TASKS[task],
        "caption": CAPTIONS.get(task, "average precision"),
        "metrics": [
            metric_row(name, [_cell(one.get(name)) for one in results])
            for name in names
            if "-" not in name
        ],
        "class_metric": main,
        "classes": [
            {
                "name": name.partition("-")[2],
                "objects": None,
                "runs": [_cell(one.get(name)) for one in results],
            }
            for name in names
            if name.startswith(f"{main}-")
        ],
        "notes": [],
    }


def metric_row(name: str, runs: list[dict[str, Any] | None]) -> dict[str, Any]:
    """A metric of each run with what it means."""
    return {"name": name, "meaning": _meaning(name), "runs": runs, "difference": None}


def _meaning(name: str) -> str:
    base, _, part = name.partition("_")
    if part in _OF:
        return _OF[part]
    if match := re.fullmatch(r"AR([sml]?)@(\d+)", name):
        of = MEANINGS.get(f"AP{match[1]}", "") if match[1] else ""
        return f"recall of the {match[2]} best proposals{f', {of}' if of else ''}"
    return MEANINGS.get(base, "")


def _cell(value: float | None) -> dict[str, Any] | None:
    return None if value is None else {"value": value, "low": None, "high": None}


def _last(run: Run, task: str) -> dict[str, float | None]:
    """Metric -> its last value."""
    found = {metric: points[-1][1] for metric, points in run.results_of(task).items()}
    return dict(sorted(found.items(), key=lambda one: _place(one[0])))


def _place(metric: str) -> int:
    """The order of evaluators; metrics.json is sorted by name."""
    base = metric.partition("_")[0]
    known = list(MEANINGS)
    return known.index(base) if base in known else len(known)
