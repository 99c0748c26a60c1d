"""COCO evaluation, ours against pycocotools and faster_coco_eval, on one synthetic data set.

    python -m benchmarks.evaluation --json output/evaluation.json --threads 2 --filter segm

"from files" is the whole command: two json files in, 12 numbers out (ours checks every record).
"alone" is the evaluation of what was read: our columns, or the objects that the peer made of the
files. Each side has a process of its own, whose peak of memory while it works from files is told.
All must give equal numbers. "masks to RLE" is one image's masks encoded, against one pycocotools
call for each mask.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import io
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import torch

from segdet.evaluation.coco_metrics import coco_metrics
from segdet.evaluation.coco_records import read_ground_truth
from segdet.evaluation.coco_results import read_predictions
from segdet.evaluation.rle import encode_masks

mask_api: Any = pycocotools.mask  # its type stubs are stricter than it is
HEIGHT, WIDTH, CLASSES = 480, 640, 80
PER_IMAGE = 100  # detections
PEERS = {  # package -> module and class that evaluates, with COCO beside it
    "pycocotools": ("pycocotools.cocoeval", "COCOeval"),
    "faster_coco_eval": ("faster_coco_eval", "COCOeval_faster"),
}


def random_boxes(rng: np.random.Generator, number: int) -> np.ndarray:
    """(number, 4) XYWH inside the image: sides of 8 to 300 pixels, log-uniform."""
    side = np.exp(rng.uniform(np.log(8), np.log(300), (number, 2)))
    corner = rng.random((number, 2)) * ([WIDTH, HEIGHT] - side)
    return np.concatenate([corner, side], axis=1).round(2)


def polygons_in(boxes: np.ndarray) -> list[list[float]]:
    """An ellipse of 16 corners in each box."""
    angle = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    unit = np.stack([np.cos(angle), np.sin(angle)], axis=1) / 2 + 0.5
    return (
        (boxes[:, None, :2] + unit * boxes[:, None, 2:]).reshape(len(boxes), -1).round(2).tolist()
    )


def make_files(folder: Path, images: int, seed: int = 0) -> tuple[Path, Path]:
    """Ground truth of about 7 objects an image, 1 % crowd; 100 detections an image.

    Of the detections about a fifth are jittered objects, the rest lies anywhere.
    """
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image_id in range(1, images + 1):
        boxes = random_boxes(rng, number := int(rng.integers(3, 12)))
        classes = rng.integers(1, CLASSES + 1, number)
        common = {"image_id": image_id}
        for box, polygon, label in zip(boxes, polygons_in(boxes), classes.tolist(), strict=True):
            annotations.append(
                {
                    **common,
                    "id": len(annotations) + 1,
                    "category_id": label,
                    "bbox": box.tolist(),
                    "area": float(np.pi / 4 * box[2] * box[3]),
                    "iscrowd": int(rng.random() < 0.01),
                    "segmentation": [polygon],
                }
            )
        chosen = rng.integers(0, number, PER_IMAGE // 5)
        jitter = (
            boxes[chosen] + rng.normal(0, 0.05, (len(chosen), 4)) * boxes[chosen][:, [2, 3, 2, 3]]
        )
        guesses = random_boxes(rng, PER_IMAGE - len(chosen))
        found = np.concatenate([jitter, guesses]).round(2).clip(min=1)
        labels = [*classes[chosen].tolist(), *rng.integers(1, CLASSES + 1, len(guesses)).tolist()]
        masks = mask_api.frPyObjects(polygons_in(found), HEIGHT, WIDTH)
        scores = rng.random(PER_IMAGE).round(4).tolist()
        for box, mask, label, score in zip(found.tolist(), masks, labels, scores, strict=True):
            mask["counts"] = mask["counts"].decode()
            results.append(
                {**common, "category_id": label, "score": score, "bbox": box, "segmentation": mask}
            )
    truth = {
        "images": [
            {"id": i + 1, "height": HEIGHT, "width": WIDTH, "file_name": f"{i}.jpg"}
            for i in range(images)
        ],
        "categories": [{"id": k, "name": f"class {k}"} for k in range(1, CLASSES + 1)],
        "annotations": annotations,
    }
    for name, content in (("truth", truth), ("results", results)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder / "truth.json", folder / "results.json"


def only(kind: str, file: Path) -> Path:
    """The results file with what one kind needs: with a box, the peers size masks by the box."""
    unwanted = "segmentation" if kind == "bbox" else "bbox"
    rows = json.loads(file.read_text())
    for row in rows:
        del row[unwanted]
    part = file.with_name(f"{kind}.json")
    part.write_text(json.dumps(rows))
    return part


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a process measured of one evaluation."""

    stats: list[float]  # COCO's 12
    from_files_s: float  # medians
    alone_s: float
    peak_mib: float  # more than when the process began to work


def ours(kind: str, gt_json: Path, results_json: Path) -> tuple[list[float], float]:
    """12 numbers, and the seconds that they took once the files were read."""
    truth = read_ground_truth(gt_json)
    found = read_predictions(results_json, truth)
    started = time.perf_counter()
    stats = list(coco_metrics(truth, found, kind).stats.values())
    return stats, time.perf_counter() - started


def theirs(peer: str, kind: str, gt_json: Path, results_json: Path) -> tuple[list[float], float]:
    """The same by a peer."""
    module, name = PEERS[peer]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = importlib.import_module("pycocotools.coco" if peer == "pycocotools" else peer).COCO
        truth = coco(str(gt_json))
        found = truth.loadRes(str(results_json))
        started = time.perf_counter()
        evaluation = getattr(importlib.import_module(module), name)(truth, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return list(evaluation.stats[:12]), time.perf_counter() - started


def measure(evaluate: Callable[[], tuple[list[float], float]], threads: int, repeats: int) -> Any:
    """In a process of its own: times, numbers, memory; no further run once 10 seconds passed."""
    torch.set_num_threads(threads)
    before = memory_mib("VmRSS")
    whole, alone, peak, stats = [], [], 0.0, []
    while len(whole) < repeats and sum(whole) < 10:
        started = time.perf_counter()
        stats, seconds = evaluate()
        whole.append(time.perf_counter() - started)
        alone.append(seconds)
        peak = peak or memory_mib("VmHWM") - before
    return Measured(
        stats=stats,
        from_files_s=statistics.median(whole),
        alone_s=statistics.median(alone),
        peak_mib=peak,
    )


def memory_mib(line: str) -> float:
    """Of this process: VmRSS is what it has, VmHWM the most that it had."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{line}:")[1].split()[0]) / 1024


def evaluation_rows(folder: Path, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Both kinds, all peers."""
    gt_json, results_json = folder / "truth.json", folder / "results.json"
    if not results_json.exists():
        make_files(folder, args.images)
    for kind in ("bbox", "segm"):
        names = [f"coco {kind} {what} ({args.images} images)" for what in ("from files", "alone")]
        if not any(args.filter in name for name in names):
            continue
        files = (kind, gt_json, only(kind, results_json))
        mine = apart(functools.partial(ours, *files), args)
        for peer in filter(find_spec, [args.peer] if args.peer else PEERS):
            other = apart(functools.partial(theirs, peer, *files), args)
            named = f"{peer} {version(peer)}"
            check_equal(names[0], named, mine.stats, other.stats)
            memory = {"ours_peak_mib": mine.peak_mib, "peer_peak_mib": other.peak_mib}
            yield row(names[0], mine.from_files_s, named, other.from_files_s, **memory)
            yield row(names[1], mine.alone_s, named, other.alone_s)


def apart(evaluate: Callable[[], tuple[list[float], float]], args: argparse.Namespace) -> Measured:
    """`measure` in a new process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measure, evaluate, args.threads, args.repeats).result()


def row(name: str, ours_s: float, peer: str, peer_s: float, **more: float) -> dict[str, Any]:
    """One of the table."""
    times = {"ours_s": ours_s, "peer": peer, "peer_s": peer_s, "ratio": peer_s / ours_s}
    return {"name": name, **times, "limit_s": None, **more}


def encoding_row(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """100 masks of one image."""
    name = f"masks to RLE ({PER_IMAGE} of {HEIGHT}x{WIDTH})"
    if args.filter not in name:
        return
    boxes = random_boxes(np.random.default_rng(0), PER_IMAGE)
    rles = mask_api.frPyObjects(polygons_in(boxes), HEIGHT, WIDTH)
    masks = torch.from_numpy(mask_api.decode(rles).transpose(2, 0, 1).copy()).bool()

    def one_by_one() -> list[dict]:
        columns = [np.array(m[:, :, None], order="F", dtype=np.uint8) for m in masks.numpy()]
        encoded = [mask_api.encode(one)[0] for one in columns]
        return [{"size": rle["size"], "counts": rle["counts"].decode()} for rle in encoded]

    ours_s, encoded = median_seconds(lambda: encode_masks(masks), args.repeats)
    peer_s, expected = median_seconds(one_by_one, args.repeats)
    if encoded != expected:
        raise SystemExit(f"{name}: pycocotools differs")
    yield row(name, ours_s, f"pycocotools {version('pycocotools')}", peer_s)


def median_seconds(run: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Median wall time and the result; no further call once 10 seconds have passed."""
    times: list[float] = []
    result = None
    while len(times) < repeats and sum(times) < 10:
        started = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - started)
    return statistics.median(times), result


def check_equal(name: str, peer: str, ours: list[float], theirs: list[float]) -> None:
    difference = np.abs(np.array(ours) - np.array(theirs)).max()
    if difference > 1e-12:
        raise SystemExit(f"{name}: {peer} differs by {difference}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="ignored: CPU work"
    )
    parser.add_argument("--filter", default="", metavar="WORD", help="only rows that contain it")
    parser.add_argument("--images", type=int, default=1000, help="size of the data set")
    parser.add_argument("--repeats", type=int, default=5, help="at most so many runs")
    parser.add_argument("--peer", choices=PEERS, help="only this one (default: all)")
    parser.add_argument("--cache", type=Path, help="make the files here, or take those of before")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.environ["RAYON_NUM_THREADS"] = str(args.threads)  # read by hotcoco when it first runs
    rows = []
    print(f"{'evaluation':<40} {'ours s':>8} {'peer s':>8} {'ratio':>6}  peer; MiB of ours, peer")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if args.cache is None else args.cache / str(args.images)
        folder.mkdir(parents=True, exist_ok=True)
        for one in chain(evaluation_rows(folder, args), encoding_row(args)):
            if args.filter in one["name"]:
                rows.append(one)
                numbers = f"{one['ours_s']:8.3f} {one['peer_s']:8.3f} {one['ratio']:6.1f}"
                memory = [f"{one[key]:.0f}" for key in one if key.endswith("_mib")]
                print(f"{one['name']:<40} {numbers}  {one['peer']} {' '.join(memory)}", flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
