"""The data sets of runs: what `segdet check-data` counts in them, without opening a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segdet.data.check.findings import Checked
from segdet.data.check.report import class_rows, headline, size_rows
from segdet.data.check.sources import check_dataset
from segdet.data.check.work import count_of_workers
from segdet.data.defects import Severity
from segdet.errors import DataError
from segdet.evaluation.coco_records import converted_name
from segdet.report.run import Run


def summaries_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What each data set of the runs holds; with `why` alone where that cannot be known."""
    uses: dict[str, tuple[Run, Counter[str]]] = {}
    for run in runs:
        for key, use in (("DATASETS.TRAIN", "training"), ("DATASETS.TEST", "test")):
            for name in run.names(key):
                uses.setdefault(name, (run, Counter()))[1][use] += 1
    return [
        {"name": name, "use": " and ".join(use), **part}
        for name, (run, use) in uses.items()
        for part in _summaries(name, run)
    ]


def _summaries(name: str, run: Run) -> list[dict[str, Any]]:
    converted = run.inference / converted_name(name)
    source = str(converted) if converted.is_file() else name
    try:
        checks = check_dataset(source, open_images=False, workers=count_of_workers())
    except DataError as error:
        return [{"why": f"Not looked into: {error}"}]
    return [_summary(one) for one in checks]


def _summary(checked: Checked) -> dict[str, Any]:
    summary = checked.summary
    if not summary.images:
        first = checked.findings[0].message if checked.findings else "it has no images"
        return {"why": f"Not looked into: {first}"}
    found = Counter(one.severity for one in checked.findings)
    told = [
        f"{found[kind]} {kind.name.lower()}{'s' * (found[kind] > 1)}"
        for kind in sorted(Severity)[::-1]
        if found[kind]
    ]
    return {
        "file": Path(checked.name).name,
        "why": None,
        "headline": headline(summary),
        "findings": f"check-data, without opening pictures: {', '.join(told) or 'no findings'}.",
        "unit": "pixels" if summary.pixels_of_class else "objects",
        "classes": class_rows(summary),
        "sizes": _without_empty_ends(size_rows(summary)) if summary.objects else [],
    }


def _without_empty_ends(rows: list[tuple[str, int]]) -> list[tuple[str, int]]:
    filled = [place for place, (_, count) in enumerate(rows) if count]
    return rows[filled[0] : filled[-1] + 1] if filled else []
