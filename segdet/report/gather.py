"""Everything that the page draws, gathered from one run or two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from segdet.evaluation.analysis import Analysis
from segdet.report.analysis import analyses_of, task_of
from segdet.report.datasets import summaries_of
from segdet.report.gallery import Sources, gallery_of
from segdet.report.regions import gallery_of_regions, regions_of
from segdet.report.results import HEADLINE, table_of
from segdet.report.run import TASKS, Missing, Points, Run, group_of
from segdet.report.settings import settings_of
from segdet.report.tested import Tested, read_tested

_MOST_POINTS = 600  # of a curve


def report_of(runs: Sequence[Run], *, pictures: int) -> dict[str, Any]:
    """The data of the page, as `page` takes it.

    Args:
        runs: one, or two to compare.
        pictures: of the gallery, at most.
    """
    tested = [read_tested(run) for run in runs]
    analyses = analyses_of(tested)
    tasks = []
    for task in TASKS:
        written = table_of(task, runs)
        if task in analyses:
            tasks.append(task_of(task, analyses[task], written))
        elif written is not None:
            tasks.append(written)
    galleries, sources = _galleries(runs, tested, analyses, pictures)
    curves = [run.shown_curves() for run in runs]
    names = sorted({name for one in curves for name in one})
    return {
        "title": " against ".join(run.name for run in runs),
        "runs": [
            {
                "name": run.name,
                "about": _about(run),
                "facts": _facts(run),
                "curves": {name: thinned(points) for name, points in own.items()},
                "missing": [one._asdict() for one in run.missing],
            }
            for run, own in zip(runs, curves, strict=True)
        ],
        "groups": {name: group_of(name) for name in names},
        "headline": _headline(tasks),
        "config": settings_of(runs),
        "data": summaries_of(runs),
        "tasks": tasks,
        "no_metrics": "No evaluation of this run is known: metrics.json has no results, and "
        "inference/ has none that could be evaluated.",
        "galleries": galleries,
        "sources": sources,
        "no_gallery": "The page was made with --pictures 0."
        if pictures == 0
        else "There is no picture to show; the top of the page says why.",
    }


def _galleries(
    runs: Sequence[Run],
    tested: Sequence[Tested | None],
    analyses: dict[str, list[Analysis | None]],
    pictures: int,
) -> tuple[list[dict[str, Any]], list[str]]:
    """The galleries, and the pictures that they share."""
    if pictures == 0:
        return [], []
    main = next(iter(analyses.values()), None)
    regions = regions_of(runs)
    sources = Sources(pictures * ((main is not None) + (regions is not None)))
    galleries: list[dict[str, Any] | None] = []
    if main is not None:
        galleries.append(_gallery_of_objects(runs, tested, main, pictures, sources))
    if regions is not None:
        task, sets = regions
        galleries.append(gallery_of_regions(task, sets, pictures, sources))
    if None in galleries:
        why = f"not one image of {runs[0].tested} can be read"
        runs[0].missing.append(Missing("pictures", why))
    return [one for one in galleries if one is not None], sources.pictures


def _gallery_of_objects(
    runs: Sequence[Run],
    tested: Sequence[Tested | None],
    analyses: Sequence[Analysis | None],
    pictures: int,
    sources: Sources,
) -> dict[str, Any] | None:
    first = next(k for k, one in enumerate(analyses) if one is not None)
    shown = tested[first]
    assert shown is not None, "what was analysed has been read"
    same = [
        one if one is None or _on_same_images(one, analyses[first]) else None for one in analyses
    ]
    for run, one, kept in zip(runs, analyses, same, strict=True):
        if one is not kept:
            run.missing.append(Missing("pictures", "it was tested on other images or classes"))
    return gallery_of(shown, same, pictures, sources)


def _on_same_images(one: Analysis, other: Analysis | None) -> bool:
    truth, as_other = one.matches.truth, other.matches.truth if other else None
    return as_other is None or (
        truth.image_ids == as_other.image_ids and truth.category_ids == as_other.category_ids
    )


def thinned(points: Points) -> Points:
    """A curve of some hundred points at most: of each stretch the lowest and the highest."""
    rounded = [(i, None if value is None else float(f"{value:.5g}")) for i, value in points]
    if len(rounded) <= _MOST_POINTS:
        return rounded
    stretch = math.ceil(2 * len(rounded) / _MOST_POINTS)
    kept = {rounded[0], rounded[-1]}
    for begin in range(0, len(rounded), stretch):
        known = [(v, i) for i, v in rounded[begin : begin + stretch] if v is not None]
        kept |= {(i, v) for v, i in (min(known), max(known))} if known else set()
    return sorted(kept, key=lambda point: point[0])


def _about(run: Run) -> str:
    trained = ", ".join(run.names("DATASETS.TRAIN"))
    tested = ", ".join(run.names("DATASETS.TEST"))
    parts = [f"trained on {trained}" if trained else "", f"tested on {tested}" if tested else ""]
    words = ", ".join(filter(None, [run.system(), *parts]))
    return f"{words}." if words else str(run.folder)


def _facts(run: Run) -> list[tuple[str, str]]:
    """Short facts for the top; the same labels for every run."""
    config = run.config
    planned = config.get("SOLVER.MAX_ITER")
    came = f"{run.iterations:,}".replace(",", " ") if run.curves else "–"
    unfinished = run.curves and isinstance(planned, int) and run.iterations < planned
    seconds = sorted(value for _, value in run.curves.get("time", []) if value is not None)
    return [
        ("Iterations", f"{came} of {planned}" if unfinished else came),
        ("Images an iteration", str(config.get("SOLVER.IMS_PER_BATCH", "–"))),
        ("Seconds an iteration", f"{seconds[len(seconds) // 2]:.3g}" if seconds else "–"),
        ("Base learning rate", str(config.get("SOLVER.BASE_LR", "–"))),
    ]


def _headline(tasks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The few numbers that are looked for first: two of each task, or one where tasks are many."""
    found = [
        [
            {"name": f"{task['title']}: {row['name']}", "runs": row["runs"]}
            for row in task["metrics"]
            if row["name"] in HEADLINE.get(task["name"], ["AP", "AP50"])
        ]
        for task in tasks
    ]
    each = 2 if sum(map(len, found)) <= 4 else 1
    return [one for rows in found for one in rows[:each]]
