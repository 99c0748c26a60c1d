"""What has been found, as one page that needs no other file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from segdet.data.check.findings import Checked, Finding, Summary
from segdet.data.check.report import by_kind, class_rows, headline, size_rows
from segdet.data.defects import KINDS

SHOWN = 500  # findings of a kind, rows of a table; the json holds all

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #4a86c5; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2.5rem; overflow-wrap: anywhere }
table { border-collapse: collapse; width: 100% }
td, th { border-top: 1px solid var(--line); padding: .2rem .6rem; text-align: left;
  vertical-align: top; overflow-wrap: anywhere }
td.count { text-align: right; font-variant-numeric: tabular-nums; width: 7rem }
details { border: 1px solid var(--line); border-radius: .4rem; margin: .4rem 0;
  padding: .4rem .8rem }
summary { cursor: pointer } summary b { font-weight: 600 }
.error { border-left: .4rem solid #c5373d } .warning { border-left: .4rem solid #c98a14 }
.note { border-left: .4rem solid #5a8f5a } .quiet { opacity: .75 }
.bar { background: var(--bar); height: .8rem; border-radius: .2rem; min-width: 1px }
"""


def page(checks: Sequence[Checked]) -> str:
    """The page; nothing in it asks for another address."""
    parts = [part for checked in checks for part in _dataset(checked)]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>Data checked by segdet</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        "<h1>Data checked by segdet</h1>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def _dataset(checked: Checked) -> Iterator[str]:
    yield f"<h2>{escape(checked.name)}</h2>\n<p>{escape(headline(checked.summary))}</p>"
    groups = by_kind(checked.findings)
    if not groups:
        yield "<p>Nothing to complain about.</p>"
    for kind, found in groups.items():
        yield _group(kind, found)
    yield from _histograms(checked.summary)


def _group(kind: str, found: Sequence[Finding]) -> str:
    severity, training = KINDS[kind]
    name = severity.name.lower()
    rows = [(one.record, one.field, one.message) for one in found[:SHOWN]]
    rest = f"<p>... and {len(found) - SHOWN} more</p>" if len(found) > SHOWN else ""
    return (
        f'<details class="{name}"><summary><b>{len(found)} &times; {escape(kind)}</b> ({name}) '
        f'<span class="quiet">training {escape(training)}</span></summary>\n'
        f"<table><tr><th>record</th><th>field</th><th>what</th></tr>\n{_rows(rows)}</table>"
        f"{rest}</details>"
    )


def _rows(rows: Iterable[Iterable[str]]) -> str:
    return "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>\n" for cells in rows
    )


def _histograms(summary: Summary) -> Iterator[str]:
    classes = [(f"{name} ({images} images)", count) for name, count, images in class_rows(summary)]
    what = "Pixels" if summary.pixels_of_class else "Objects"
    sizes = [(f"{w} x {h}", n) for (w, h), n in summary.image_sizes.most_common()]
    yield from _bars(f"{what} by class", classes)
    yield from _bars("Objects by size (root of the area, pixels)", size_rows(summary))
    yield from _bars("Images by size", sizes)


def _bars(title: str, rows: Sequence[tuple[str, int]]) -> Iterator[str]:
    most = max((count for _, count in rows), default=0)
    if not most:
        return
    cells = "".join(
        f'<tr><td>{escape(name)}</td><td class="count">{count}</td><td style="width:50%">'
        f'<div class="bar" style="width:{100 * count / most:.1f}%"></div></td></tr>\n'
        for name, count in rows[:SHOWN]
    )
    yield f"<details open><summary><b>{escape(title)}</b></summary><table>{cells}</table></details>"
