"""What has been found, as text and as json."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from segdet.data.check.findings import SIZES, Checked, Finding, Summary
from segdet.data.defects import KINDS, Severity

HEADINGS = {
    Severity.ERROR: "errors: training stops",
    Severity.WARNING: "warnings: training runs on something else than was meant",
    Severity.NOTE: "notes",
}


def by_kind(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """The findings of each kind, the worst kinds first, then the most frequent."""
    groups: defaultdict[str, list[Finding]] = defaultdict(list)
    for one in findings:
        groups[one.kind].append(one)
    order = sorted(groups, key=lambda kind: (-KINDS[kind].severity, -len(groups[kind]), kind))
    return {kind: groups[kind] for kind in order}


def headline(summary: Summary) -> str:
    """What a data set holds, in a line."""
    parts = [f"{summary.images} images"]
    if summary.objects or not summary.pixels_of_class:
        parts += [f"{summary.objects} objects", f"{summary.with_mask} of them with a mask"]
        parts += [f"{summary.crowds} crowds"]
    parts += [f"{len(summary.classes)} classes"]
    return ", ".join(parts)


def class_rows(summary: Summary) -> list[tuple[str, int, int]]:
    """Name, count (of objects; of pixels in label maps) and images of each class, most first."""
    counts = summary.pixels_of_class or summary.objects_of_class
    rows = [(n, counts[k], summary.images_of_class[k]) for k, n in enumerate(summary.classes)]
    return sorted(rows, key=lambda row: -row[1])


def size_rows(summary: Summary) -> list[tuple[str, int]]:
    """Range of sizes (root of the area, pixels) and count of objects."""
    bounds = ["0", *(f"{size:g}" for size in SIZES)]
    names = [f"{low}-{high}" for low, high in pairwise(bounds)]
    return [(name, summary.sizes[k]) for k, name in enumerate([*names, f"over {bounds[-1]}"])]


def lines(checks: Sequence[Checked], shown: int) -> Iterator[str]:
    """The report as text.

    Args:
        checks: of all data sets.
        shown: findings of each kind that are written out; the rest is counted.
    """
    for checked in checks:
        yield f"{checked.name}: {headline(checked.summary)}"
        groups = by_kind(checked.findings)
        heading = None
        for kind, found in groups.items():
            if KINDS[kind].severity != heading:
                heading = KINDS[kind].severity
                yield f"  {HEADINGS[heading]}"
            yield f"    {len(found)} x {kind}: training {KINDS[kind].training}"
            yield from (f"        {_where(one)}{one.message}" for one in found[:shown])
            if len(found) > shown:
                yield f"        ... and {len(found) - shown} more"
        if not groups:
            yield "  nothing to complain about"
        yield from _histograms(checked.summary, shown)
        yield ""


def _where(one: Finding) -> str:
    place = ", ".join(word for word in (one.record, one.field) if word)
    return f"{place}: " if place else ""


def _histograms(summary: Summary, shown: int) -> Iterator[str]:
    classes = class_rows(summary)
    if any(count for _, count, _ in classes):
        what = "pixels" if summary.pixels_of_class else "objects"
        yield f"  {what} (images) by class"
        some = classes if len(classes) <= 2 * shown else [*classes[:shown], None, *classes[-shown:]]
        for row in some:
            yield "        ..." if row is None else f"    {row[1]:>10} ({row[2]})  {row[0]}"
    if summary.objects:
        most = max(count for _, count in size_rows(summary))
        yield "  objects by size (root of the area, pixels)"
        for name, count in size_rows(summary):
            yield f"    {count:>10}  {name:>9}  {'#' * round(30 * count / most)}"
        areas = ", ".join(f"{summary.areas[k]} {k}" for k in ("small", "medium", "large"))
        yield f"    COCO's bounds: {areas}"


def as_json(checks: Sequence[Checked]) -> dict[str, Any]:
    """The report for other programs; nothing is left out."""
    return {
        "datasets": [
            {
                "name": checked.name,
                "severity": None if checked.severity is None else checked.severity.name.lower(),
                "findings": [
                    {
                        "kind": one.kind,
                        "severity": one.severity.name.lower(),
                        "file": one.file,
                        "record": one.record,
                        "field": one.field,
                        "row": one.row,
                        "message": one.message,
                        "training": KINDS[one.kind].training,
                    }
                    for one in checked.findings
                ],
                "images": checked.summary.images,
                "objects": checked.summary.objects,
                "objects_with_mask": checked.summary.with_mask,
                "crowds": checked.summary.crowds,
                "classes": [
                    {"name": name, "count": count, "images": images}
                    for name, count, images in class_rows(checked.summary)
                ],
                "sizes": dict(size_rows(checked.summary)),
                "areas": dict(checked.summary.areas),
                "image_sizes": [
                    {"width": w, "height": h, "images": n}
                    for (w, h), n in checked.summary.image_sizes.most_common()
                ],
            }
            for checked in checks
        ]
    }
