"""COCO evaluation, ours against pycocotools and faster_coco_eval, on one synthetic data set.

    python -m benchmarks.evaluation --json output/evaluation.json --threads 2 --filter segm

"from files" is the whole command: two json files in, 12 numbers out (ours checks every record).
"from memory" is an evaluation during training: ground truth loaded, predictions as the model's
arrays gave them (ours) or as the list of records that the peer takes. All must give equal numbers.
"masks to RLE" is one image's masks encoded, against one pycocotools call for each mask.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import torch
from tqdm import tqdm

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


@dataclass(frozen=True, kw_only=True)
class Duel:
    """One line of the table: the same work done by us and by a peer, with results to compare."""

    name: str
    ours: Callable[[], Any]
    peer: str
    theirs: Callable[[], Any]


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


def evaluate_with(peer: str, kind: str, truth: Any, results: Any) -> list[float]:
    """The peer's 12 numbers; `truth` is a file or its COCO object, `results` a file or a list."""
    module, name = PEERS[peer]
    with contextlib.redirect_stdout(io.StringIO()):
        if isinstance(truth, Path):
            truth = load_with(peer, truth)
        found = truth.loadRes(str(results) if isinstance(results, Path) else results)
        evaluation = getattr(importlib.import_module(module), name)(truth, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return list(evaluation.stats[:12])


def load_with(peer: str, truth: Path) -> Any:
    """The peer's COCO object."""
    module = "pycocotools.coco" if peer == "pycocotools" else peer
    with contextlib.redirect_stdout(io.StringIO()):
        return importlib.import_module(module).COCO(str(truth))


def from_files(kind: str, gt_json: Path, results_json: Path) -> list[float]:
    truth = read_ground_truth(gt_json)
    return list(coco_metrics(truth, read_predictions(results_json, truth), kind).stats.values())


def evaluation_duels(folder: Path, images: int) -> Iterator[Duel]:
    """Both kinds, both ways, all peers."""
    gt_json, results_json = make_files(folder, images)
    truth = read_ground_truth(gt_json)
    for kind in ("bbox", "segm"):
        file = only(kind, results_json)
        found = read_predictions(file, truth)
        records = json.loads(file.read_text())
        for peer in filter(find_spec, PEERS):
            named = f"{peer} {version(peer)}"
            yield Duel(
                name=f"coco {kind} from files ({images} images)",
                ours=lambda a=(kind, gt_json, file): from_files(*a),
                peer=named,
                theirs=lambda a=(peer, kind, gt_json, file): evaluate_with(*a),
            )
            loaded = load_with(peer, gt_json)
            yield Duel(
                name=f"coco {kind} from memory ({images} images)",
                ours=lambda a=(truth, found, kind): list(coco_metrics(*a).stats.values()),
                peer=named,
                theirs=lambda a=(peer, kind, loaded, records): evaluate_with(*a[:3], fresh(a[3])),
            )


def fresh(records: list[dict]) -> list[dict]:
    """The peers write into the records that they are given."""
    return [dict(row) for row in records]


def encoding_duels() -> Iterator[Duel]:
    """100 masks of one image."""
    boxes = random_boxes(np.random.default_rng(0), PER_IMAGE)
    rles = mask_api.frPyObjects(polygons_in(boxes), HEIGHT, WIDTH)
    masks = torch.from_numpy(mask_api.decode(rles).transpose(2, 0, 1).copy()).bool()

    def one_by_one() -> list[dict]:
        columns = [np.array(m[:, :, None], order="F", dtype=np.uint8) for m in masks.numpy()]
        encoded = [mask_api.encode(one)[0] for one in columns]
        return [{"size": rle["size"], "counts": rle["counts"].decode()} for rle in encoded]

    yield Duel(
        name=f"masks to RLE ({PER_IMAGE} of {HEIGHT}x{WIDTH})",
        ours=lambda: encode_masks(masks),
        peer=f"pycocotools {version('pycocotools')}",
        theirs=one_by_one,
    )


def median_seconds(run: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Median wall time and the result; no further call once 10 seconds have passed."""
    times: list[float] = []
    result = None
    while len(times) < repeats and sum(times) < 10:
        started = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - started)
    return statistics.median(times), result


def check_equal(duel: Duel, ours: Any, theirs: Any) -> None:
    if ours == theirs:
        return
    difference = np.abs(np.array(ours) - np.array(theirs)).max()
    if difference > 1e-10:
        raise SystemExit(f"{duel.name}: {duel.peer} differs by {difference}")


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
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.environ["RAYON_NUM_THREADS"] = str(args.threads)  # read by hotcoco when it first runs
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        duels = [*evaluation_duels(Path(folder), args.images), *encoding_duels()]
        for duel in tqdm([one for one in duels if args.filter in one.name], unit="row"):
            ours_s, ours = median_seconds(duel.ours, args.repeats)
            peer_s, theirs = median_seconds(duel.theirs, args.repeats)
            check_equal(duel, ours, theirs)
            rows.append(
                {
                    "name": duel.name,
                    "ours_s": ours_s,
                    "peer": duel.peer,
                    "peer_s": peer_s,
                    "ratio": peer_s / ours_s,
                    "limit_s": None,
                }
            )
    print(f"{'evaluation':<40} {'ours s':>8} {'peer s':>8} {'ratio':>6}  peer")
    for row in rows:
        numbers = f"{row['ours_s']:8.3f} {row['peer_s']:8.3f} {row['ratio']:6.1f}"
        print(f"{row['name']:<40} {numbers}  {row['peer']}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
