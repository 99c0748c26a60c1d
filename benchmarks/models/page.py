"""Draws a file of `benchmarks.models` and writes docs/benchmarks.md of it.

python -m benchmarks.models.page benchmarks/results/models_cpu_2_threads.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.models.systems import SYSTEMS

ROOT = Path(__file__).parents[2]
COLOURS = ("#1f6fb4", "#e08214", "#4d9221", "#b2182b", "#762a83", "#888888", "#35978f", "#c51b7d")
WIDTH, ROW, LEFT = 720, 22, 210  # pixels
FIRST = next(iter(SYSTEMS))

INTRODUCTION = """\
# Benchmarks

Written by `python -m benchmarks.models.page {file}`, of rows of
`python -m benchmarks.models --threads {threads}`. Every row is the median of calls in one process,
ours and the peer's in turn, on the same images and objects, in float32. Weights are random and made
to find as much as a result may hold (100 detections with masks); `benchmarks/models/systems.py` has
what the models are, and how.
How the speed came about, and what it was before, stands in [performance.md](performance.md); the
ops by themselves in [ops.md](ops.md).
"""


def bars(title: str, groups: Sequence[tuple[str, Sequence[float | None]]], names: Sequence[str]):
    """Horizontal bars in groups: an SVG picture.

    Args:
        title: above, with the unit.
        groups: label of each, and a value for each of `names`; None is no bar.
        names: of the bars of a group.
    """
    most = max(value for _, values in groups for value in values if value is not None)
    high = 12 * len(names) + 10
    parts = [_text(8, 18, title, size=14), *_legend(names, 36)]
    top = 50
    for label, values in groups:
        parts.append(_text(LEFT - 8, top + high / 2, label, anchor="end"))
        for i, value in enumerate(values):
            if value is None:
                continue
            y, length = top + 12 * i, value / most * (WIDTH - LEFT - 70)
            parts.append(
                f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="10" fill="{COLOURS[i]}"/>'
            )
            parts.append(_text(LEFT + length + 4, y + 9, _short(value), size=10))
        top += high
    return _svg(parts, top)


def stacks(title: str, groups: Sequence[tuple[str, dict[str, float]]]):
    """Horizontal bars made of parts, whose names are written below: an SVG picture."""
    most = max(sum(parts.values()) for _, parts in groups)
    pieces, top = [_text(8, 18, title, size=14)], 30
    for label, parts in groups:
        pieces.append(_text(LEFT - 8, top + 13, label, anchor="end"))
        x, listed = float(LEFT), []
        ordered = sorted(parts.items(), key=lambda item: -item[1])
        for i, (name, value) in enumerate(ordered):
            length, colour = value / most * (WIDTH - LEFT - 20), COLOURS[min(i, len(COLOURS) - 1)]
            pieces.append(
                f'<rect x="{x:.1f}" y="{top}" width="{length:.1f}" height="16" fill="{colour}"/>'
            )
            x += length
            if i < 4:
                listed.append(f'<tspan fill="{colour}">{escape(name)} {_short(value)}  </tspan>')
        pieces.append(f'<text x="{LEFT}" y="{top + 28}" font-size="10">{"".join(listed)}</text>')
        top += 38
    return _svg(pieces, top)


def lines(title: str, curves: Sequence[tuple[str, Sequence[tuple[float, float]]]], along: str):
    """Curves from (0, 0): an SVG picture; a straight line through the origin is proportional."""
    left, top, wide, high = 60, 60, WIDTH - 100, 220
    x_most = max(x for _, points in curves for x, _ in points) * 1.05
    y_most = max(y for _, points in curves for _, y in points) * 1.1
    parts = [_text(8, 18, title, size=14), *_legend([name for name, _ in curves], 36)]
    parts.append(
        f'<rect x="{left}" y="{top}" width="{wide}" height="{high}" fill="none" stroke="#999"/>'
    )
    for i, (_, points) in enumerate(curves):
        spots = [(left + x / x_most * wide, top + high - y / y_most * high) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[i]}"/>')
        for (x, y), (_, value) in zip(spots, points, strict=True):
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{COLOURS[i]}"/>')
            parts.append(_text(x, y - 6, _short(value), size=10, anchor="middle"))
    for x in sorted({x for _, points in curves for x, _ in points}):
        spot = left + x / x_most * wide
        parts.append(_text(spot, top + high + 14, f"{x:g}", size=10, anchor="middle"))
    parts.append(_text(left + wide / 2, top + high + 30, along, anchor="middle"))
    return _svg(parts, top + high + 40)


def _svg(parts: Iterable[str], height: float) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}"'
    body = "\n".join(parts)
    white = '<rect width="100%" height="100%" fill="white"/>'
    return f'{head} font-family="sans-serif" font-size="12">\n{white}\n{body}\n</svg>\n'


def _text(x: float, y: float, text: str, *, size: int = 12, anchor: str = "start") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"'
    return f"<text {place}>{escape(text)}</text>"


def _legend(names: Sequence[str], y: float) -> list[str]:
    parts, x = [], 8.0
    for name, colour in zip(names, COLOURS, strict=False):
        parts.append(f'<rect x="{x:.1f}" y="{y - 9}" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(x + 14, y, name, size=11))
        x += 30 + 6.2 * len(name)
    return parts


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


class Page:
    """What the rows of a file say, as pictures and tables.

    Args:
        rows: of the file; they come by system, work and size of the images.
        pictures: folder of the pictures, below that of the page.
    """

    def __init__(self, rows: list[dict[str, Any]], pictures: Path) -> None:
        systems = list(SYSTEMS)
        # However a file was updated; rows of one place stay in their order.
        self.rows = sorted(
            rows,
            key=lambda r: (
                *(systems.index(r["system"]), r["work"]),
                *(r.get("height", 0), r.get("batch", 1)),
            ),
        )
        self.pictures = pictures

    def write(self, file: Path, source: str) -> None:
        """The page, and its pictures beside it."""
        self.pictures.mkdir(parents=True, exist_ok=True)
        threads = max(row.get("threads", 1) for row in self.rows)
        sections = [
            INTRODUCTION.format(file=source, threads=threads),
            self.speed(),
            self.stages("inference"),
            self.stages("training step"),
            self.memory(),
            *(self.scaling(what) for what in ("image size", "objects", "batch", "threads")),
        ]
        file.write_text("\n".join(section for section in sections if section))

    def _picture(self, name: str, svg: str) -> str:
        (self.pictures / f"{name}.svg").write_text(svg)
        return f"![{name.replace('_', ' ')}]({self.pictures.name}/{name}.svg)\n"

    def speed(self) -> str:
        """A table of all rows that have a peer, and pictures of two kinds."""
        table = [
            "## Speed\n",
            "| | ours, s | peer, s | peer / ours | images a second |",
            "|---|---|---|---|---|",
        ]
        found = [row for row in self.rows if row.get("peer_s") and "work" in row]
        for row in found:
            table.append(
                f"| {row['name']} | {row['ours_s']:.3f} | {row['peer_s']:.3f} ({row['peer']}) | "
                f"{row['ratio']:.2f} | {row['images_per_s']:.2f} |"
            )
        parts = ["\n".join(table) + "\n"]
        for work in ("inference", "training step"):
            groups = []
            for system in SYSTEMS:
                own = [
                    row
                    for row in found
                    if (row["system"], row["work"], row["batch"]) == (system, work, 1)
                    and row["height"] < 600
                ]
                groups += [(system, (row["ours_s"], row["peer_s"])) for row in own[:1]]
            if groups:
                title = f"{work} of one image of 640 x 480 (YOLACT: 550 x 550), seconds"
                names = ("ours", "torchvision's Mask R-CNN on the same image")
                parts.append(
                    self._picture(work.split()[0] + "_by_system", bars(title, groups, names))
                )
        return "\n".join(parts)

    def stages(self, work: str) -> str:
        """A picture of where the time goes, by system."""
        groups = []
        for system in SYSTEMS:
            own = [
                r for r in self.rows if "stage" in r and (r["system"], r["work"]) == (system, work)
            ]
            if own:
                groups.append((system, {row["stage"]: row["ours_s"] for row in own}))
        if not groups:
            return ""
        title = f"{work} of one image: seconds inside of each part"
        name = f"stages_of_{work.split()[0]}"
        return f"## Where the time of {_a(work)} goes\n\n" + self._picture(
            name, stacks(title, groups)
        )

    def memory(self) -> str:
        """A table of the memory of processes."""
        own = [row for row in self.rows if row.get("ours_mib") is not None]
        if not own:
            return ""
        table = [
            "## Memory\n",
            "The most resident memory of a process that does nothing but 4 steps or predictions,",
            "in MiB; in brackets, where measured, what it had after its imports.\n",
            "| | ours | torchvision's Mask R-CNN |",
            "|---|---|---|",
        ]
        for row in own:
            name = row["name"].removeprefix("memory of ")
            table.append(f"| {name} | {_memory(row, 'ours')} | {_memory(row, 'peer')} |")
        return "\n".join(table) + "\n"

    def scaling(self, what: str) -> str:
        """Curves of the time against one of the quantities."""
        place = {
            "image size": ("megapixels", lambda row: row["width"] * row["height"] / 1e6),
            "objects": ("objects of an image: annotated, or found", lambda row: row["objects"]),
            "batch": ("images at a time", lambda row: row["batch"]),
            "threads": ("threads", lambda row: row["threads"]),
        }
        along, position = place[what]
        curves: dict[str, list[tuple[float, float]]] = {}
        for row in self.rows:
            if row.get("scaling") == what:
                name = f"{row['system']}, {row['work']}"
                curves.setdefault(name, []).append((position(row), row["ours_s"]))
        if not curves:
            return ""
        told = [
            f"- {name}: " + ", ".join(f"{x:.3g}: {y:.2f} s" for x, y in sorted(points))
            for name, points in curves.items()
        ]
        svg = lines("seconds", [(name, sorted(points)) for name, points in curves.items()], along)
        name = f"scaling_with_{what.replace(' ', '_')}"
        heading = f"## How it grows with {what}\n"
        return "\n".join([heading, self._picture(name, svg), *told, ""])


def _a(work: str) -> str:
    return "a prediction" if work == "inference" else "a training step"


def _memory(row: dict[str, Any], whose: str) -> str:
    imports = row.get(f"{whose}_imports_mib")
    return f"{row[f'{whose}_mib']:.0f}" + (f" ({imports:.0f})" if imports else "")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="what `benchmarks.models --json` wrote")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/benchmarks.md")
    args = parser.parse_args()
    rows = json.loads(args.file.read_text())
    Page(rows, args.page.parent / "benchmarks").write(args.page, str(args.file))


if __name__ == "__main__":
    main()
