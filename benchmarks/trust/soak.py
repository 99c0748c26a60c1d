"""A long training run: do its memory and its open files grow?

python -m benchmarks.trust.soak [FILE.yaml] [--minutes M] [--plot F] [--json F] [KEY VALUE ...]

Trains with small images, saves and evaluates often, and looks every two seconds at the resident
memory and the open files of the run and of its loader workers, in /proc. The first third is left
out: caches fill there, above all that of oneDNN, which compiles convolutions for each number of
regions and keeps 1024 of them. The growth is the slope of a straight line through the rest, times
its length; noise is the standard deviation around the line. SIGTERM ends the run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[2]
SETTINGS = """
    SOLVER.MAX_ITER 1000000 SOLVER.CHECKPOINT_PERIOD 20 SOLVER.CHECKPOINTS_KEPT 2
    TEST.EVAL_PERIOD 60 INPUT.MIN_SIZE_TRAIN (64,80,96) INPUT.MAX_SIZE_TRAIN 128
    INPUT.MIN_SIZE_TEST 80 INPUT.MAX_SIZE_TEST 128 SOLVER.IMS_PER_BATCH 2 SOLVER.BASE_LR 0.005
"""
EVERY = 2.0  # seconds
SIZE, MARGIN = (640, 200), 40  # of one curve in the plot, pixels


def processes_of(pid: int) -> list[int]:
    """The process and those that it started, which may have ended by now."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        found = [int(child) for child in children.read_text().split()]
    except OSError:
        return []
    return [pid, *(one for child in found for one in processes_of(child))]


def look(pid: int) -> tuple[float, int]:
    """Resident memory in MB, pages shared by several counted once for all; open files."""
    memory, files = 0, 0
    for one in processes_of(pid):
        try:
            rows = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
            memory += next(int(row.split()[1]) for row in rows if row.startswith("Pss:"))
            files += len(os.listdir(f"/proc/{one}/fd"))
        except (OSError, StopIteration):
            continue  # a worker that has just ended
    return memory / 1024, files


def summary(seconds: np.ndarray, values: np.ndarray) -> dict[str, float]:
    """Growth over the last two thirds, and the noise around it."""
    late = seconds >= seconds[-1] / 3
    line = np.polyfit(seconds[late], values[late], 1)
    noise = float((values[late] - np.polyval(line, seconds[late])).std())
    length = float(seconds[late][-1] - seconds[late][0])
    return {"mean": float(values[late].mean()), "growth": float(line[0]) * length, "noise": noise}


def draw(curves: dict[str, tuple[np.ndarray, np.ndarray]], file: Path) -> None:
    """A curve below the other, from zero up."""
    width, height = SIZE
    picture = Image.new(
        "RGB", (width + 2 * MARGIN, len(curves) * (height + MARGIN) + MARGIN), "white"
    )
    pen = ImageDraw.Draw(picture)
    for number, (name, (seconds, values)) in enumerate(curves.items()):
        top = MARGIN + number * (height + MARGIN)
        x = MARGIN + seconds / seconds[-1] * width
        y = top + height - values / (values.max() * 1.1) * height
        pen.rectangle((MARGIN, top, MARGIN + width, top + height), outline="grey")
        pen.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill="blue")
        pen.text((MARGIN, top - 14), f"{name}: up to {values.max():.0f}", fill="black")
        pen.text(
            (MARGIN + width - 60, top + height + 2), f"{seconds[-1] / 60:.1f} min", fill="black"
        )
    picture.save(file, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", default="configs/demo/mask_rcnn.yaml")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--plot", metavar="FILE", type=Path)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the numbers there, too")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, ROOT / "tools/train_net.py", "--config-file", args.config]
        settings = [*SETTINGS.split(), "OUTPUT_DIR", folder, *args.opts]
        log = open(Path(folder, "stdout.txt"), "w")  # noqa: SIM115  as long as the run
        run = subprocess.Popen([*command, *settings], stdout=log, stderr=log)
        metrics = Path(folder, "metrics.json")
        while run.poll() is None and not (metrics.exists() and metrics.stat().st_size):
            time.sleep(EVERY)  # imports and the data set's index are no part of it
        started, rows = time.monotonic(), []
        while run.poll() is None and time.monotonic() < started + args.minutes * 60:
            rows.append((time.monotonic() - started, *look(run.pid)))
            time.sleep(EVERY)
        run.terminate()
        code = run.wait(120)
        if code != 143:
            raise SystemExit(f"the run ended with {code}: {Path(log.name).read_text()[-2000:]}")
        iterations = json.loads(metrics.read_text().splitlines()[-1])["iteration"] + 1
    seconds, memory, files = np.array(rows).T
    curves = {"memory (MB)": (seconds, memory), "open files": (seconds, files)}
    found = {name: summary(*curve) for name, curve in curves.items()}
    for name, one in found.items():
        print(
            f"{name}: mean {one['mean']:.1f}, growth {one['growth']:+.2f}, noise "
            f"{one['noise']:.2f}, over {seconds[-1] / 60:.1f} minutes, {iterations} iterations"
        )
    if args.plot:
        draw(curves, args.plot)
    if args.json:
        told = {"minutes": seconds[-1] / 60, "iterations": iterations, **found}
        args.json.write_text(json.dumps(told, indent=1))
    # Noise, or a hundredth of the whole where that is more.
    limits = {name: max(2 * one["noise"], one["mean"] / 100) for name, one in found.items()}
    raise SystemExit(any(one["growth"] > limits[name] for name, one in found.items()))


if __name__ == "__main__":
    main()
