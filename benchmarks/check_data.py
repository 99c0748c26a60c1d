"""`segdet check-data` on a json of COCO train2017's size, without opening images.

    python -m benchmarks.check_data --json output/check_data.json

118 000 images, 860 000 annotations, polygons of 26 corners on average: 0.5 GB. Time is wall-clock
of the command in a process of its own, memory the largest sum over its processes, half-second
samples of what they do not share.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

HEIGHT, WIDTH, CLASSES = 480, 640, 80


def random_annotations(rng: np.random.Generator, images: int, number: int) -> Iterator[str]:
    """Rows as COCO's files have them: a wavy blob in its box; 1 % are crowds with an RLE."""
    image_of = np.sort(rng.integers(1, images + 1, number))
    side = np.exp(rng.uniform(np.log(8), np.log(300), (number, 2)))
    corner = rng.random((number, 2)) * ([WIDTH, HEIGHT] - side)
    corners = rng.integers(8, 45, number)
    for i in range(number):
        angle = np.linspace(0, 2 * np.pi, int(corners[i]), endpoint=False)
        radius = 1 + 0.15 * np.sin(5 * angle + i)
        blob = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        blob = (blob - blob.min(0)) / np.ptp(blob, axis=0)
        points = (corner[i] + blob * side[i]).round(2)
        (x0, y0), (x1, y1) = points.min(0).tolist(), points.max(0).tolist()
        x, y = points.T
        area = float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)
        row = {
            "segmentation": [points.reshape(-1).tolist()],
            "area": round(area, 2),
            "iscrowd": 0,
            "image_id": int(image_of[i]),
            "bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
            "category_id": i % CLASSES + 1,
            "id": i + 1,
        }
        if i % 100 == 99:
            first = int(x0) * HEIGHT + int(y0)
            count = max(1, int(y1) - int(y0))
            counts = [first, count, HEIGHT * WIDTH - first - count]
            row |= {"iscrowd": 1, "area": count, "bbox": [int(x0), int(y0), 1, count]}
            row["segmentation"] = {"counts": counts, "size": [HEIGHT, WIDTH]}
        yield json.dumps(row)


def make_file(file: Path, images: int, number: int, seed: int = 0) -> None:
    """Write a COCO json without a defect."""
    rng = np.random.default_rng(seed)
    with file.open("w") as out:
        out.write('{"info": {"description": "made by benchmarks/check_data.py"}, "images": [')
        for i in range(1, images + 1):
            row = {"file_name": f"{i:012}.jpg", "height": HEIGHT, "width": WIDTH, "id": i}
            out.write(("" if i == 1 else ", ") + json.dumps(row))
        names = [{"id": k, "name": f"class {k}"} for k in range(1, CLASSES + 1)]
        out.write(f'], "categories": {json.dumps(names)}, "annotations": [')
        for i, row in enumerate(random_annotations(rng, images, number)):
            out.write((", " if i else "") + row)
        out.write("]}")


def memory_of(pid: int) -> int:
    """Bytes that a process has and shares with no other, or in its share of the rest."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line[:4] == "Pss:")


def run(argv: list[str]) -> tuple[int, float, int]:
    """Exit code, seconds and the largest sum of the memory of a command and its children."""
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(argv) as process:
        while process.poll() is None:
            listed = f"/proc/{process.pid}/task/{process.pid}/children"
            children = Path(listed).read_text().split() if os.path.exists(listed) else []
            peak = max(peak, sum(memory_of(int(one)) for one in [process.pid, *children]))
            time.sleep(0.5)
    return process.returncode, time.perf_counter() - start, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--annotations", type=int, default=860_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--file", metavar="JSON", help="make it here, or take it if it exists")
    parser.add_argument("--json", metavar="FILE", help="write the row here too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(args.file or f"{folder}/large.json")
        if not file.exists():
            make_file(file, args.images, args.annotations)
        command = [sys.executable, "-m", "segdet.cli", "check-data", str(file)]
        code, seconds, peak = run([*command, "--no-images", "--workers", str(args.workers)])
        row = {
            "name": f"check-data, {args.annotations} annotations, {args.workers} processes",
            "file_gb": round(file.stat().st_size / 1e9, 3),
            "ours_s": round(seconds, 1),
            "peak_gb": round(peak / 1e9, 2),
            "exit_code": code,
        }
    print(row)
    if args.json:
        Path(args.json).write_text(json.dumps([row], indent=1))


if __name__ == "__main__":
    main()
