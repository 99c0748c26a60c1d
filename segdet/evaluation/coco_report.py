"""COCO's numbers for people: names, percent, tables."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from segdet.errors import ConfigError
from segdet.evaluation.coco_metrics import COCOMetrics
from segdet.evaluation.coco_records import GroundTruth

logger = logging.getLogger(__name__)

TASKS = ("bbox", "segm", "keypoints")  # what is evaluated unasked, where outputs hold it
KNOWN_TASKS = (*TASKS, "boundary")
_OF_BOXES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
REPORTED = {
    **dict.fromkeys(("bbox", "segm", "boundary"), _OF_BOXES),
    "keypoints": ("AP", "AP50", "AP75", "APm", "APl"),
}


def checked_tasks(tasks: Sequence[str], known: Sequence[str] = KNOWN_TASKS) -> tuple[str, ...]:
    """Refuse tasks that are not evaluated here.

    Raises:
        ConfigError: an unknown task.
    """
    tasks = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    if unknown := [task for task in tasks if task not in known]:
        raise ConfigError(f"this evaluation knows the tasks {', '.join(known)}; got {unknown}")
    return tasks


def report(task: str, metrics: COCOMetrics, truth: GroundTruth) -> dict[str, float]:
    """Log the tables and give the numbers in percent, NaN where undefined."""
    results = {name: percent(metrics.stats[name]) for name in REPORTED[task]}
    logger.info("Evaluation results for %s:\n%s", task, table(results))
    if len(truth.category_ids) > 1:
        distinct = distinct_names(truth.category_names, truth.category_ids)
        names = zip(distinct, metrics.category_ap, strict=True)
        per_class = {name: percent(ap) for name, ap in names}
        logger.info("%s AP per class:\n%s", task, table(per_class))
        results.update({f"AP-{name}": ap for name, ap in per_class.items()})
    return results


def percent(value: float) -> float:
    """100 times the value; NaN for -1, which says that there is none."""
    return float(value) * 100 if value > -1 else float("nan")


def distinct_names(names: Sequence[str], ids: Iterable[Any]) -> list[str]:
    """Class names; those of several classes get their ids added."""
    count = Counter(names)
    both = zip(names, ids, strict=True)
    return [name if count[name] == 1 else f"{name} ({key})" for name, key in both]


def table(values: dict[str, float], kind: str = "AP") -> str:
    """A markdown table of names and values; several pairs a line if there are many.

    Args:
        values: name -> value.
        kind: what the values are, where there are many.
    """
    cells = [(name, f"{value:.3f}") for name, value in values.items()]
    if len(cells) <= 6:
        rows = [[name for name, _ in cells], [value for _, value in cells]]
    else:
        cells += [("", "")] * (-len(cells) % 3)
        rows = [
            [text for pair in cells[i : i + 3] for text in pair] for i in range(0, len(cells), 3)
        ]
        rows.insert(0, ["class", kind] * 3)
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A markdown table whose columns line up; the first row is its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "\n".join(
        "| " + " | ".join(t.ljust(w) for t, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    )
