"""`segdet analyze`: why a run has the AP that it has, and whether another one is better."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from segdet.errors import DataError
from segdet.evaluation.analysis import text
from segdet.evaluation.analysis.bootstrap import compare
from segdet.evaluation.analysis.summary import Analysis, analyze
from segdet.evaluation.coco_records import (
    GroundTruth,
    Predictions,
    read_dataset_ground_truth,
    read_ground_truth,
)
from segdet.evaluation.coco_results import read_predictions
from segdet.utils.writing import write_text_atomically

RESULTS = "coco_instances_results.json"


def main(argv: list[str]) -> None:
    """Say why predictions have the AP that they have, and whether another run is better."""
    parser = argparse.ArgumentParser(prog="segdet analyze", description=__doc__)
    parser.add_argument(
        "predictions", type=Path, help=f"{RESULTS} of an evaluation, or the folder of a run"
    )
    truth = parser.add_mutually_exclusive_group(required=True)
    truth.add_argument("--dataset", metavar="NAME", help="as in DATASETS.TEST")
    truth.add_argument("--annotations", metavar="JSON", type=Path, help="a COCO instances json")
    parser.add_argument(
        "--against", type=Path, metavar="PREDICTIONS", help="another run, to compare with"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="write analysis.json there")
    parser.add_argument(
        "--score", type=float, default=0.5, help="for the confusion matrix (default: 0.5)"
    )
    parser.add_argument(
        "--iou", type=float, default=0.5, help="from which a detection is right (default: 0.5)"
    )
    parser.add_argument("--samples", type=int, default=1000, help="of the bootstrap")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    args = parser.parse_args(argv)
    if args.samples < 1:
        raise DataError(f"--samples must be >= 1, is {args.samples}")
    annotations = (
        read_dataset_ground_truth(args.dataset)
        if args.annotations is None
        else read_ground_truth(args.annotations)
    )
    draw = {"samples": args.samples, "seed": args.seed}
    options = {"score": args.score, "iou": args.iou, **draw}
    first = analyze_file(args.predictions, annotations, **options)
    written: dict[str, Any] = {kind: text.as_json(one) for kind, one in first.items()}
    second = {} if args.against is None else analyze_file(args.against, annotations, **options)
    if args.against is not None and not first.keys() & second.keys():
        raise DataError(f"{args.predictions} and {args.against} hold nothing of the same kind")
    for kind, one in first.items():
        print(f"\n== {kind} of {args.predictions} ==")
        print("\n".join(text.lines(one)))
        if kind in second:
            comparison = compare(one.matches, second[kind].matches, **draw)
            print(f"\n== {kind} against {args.against} ==")
            print("\n".join(text.comparison_lines(comparison, one.class_names)))
            written[kind]["comparison"] = text.plain(asdict(comparison))
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        file = args.output / "analysis.json"
        write_text_atomically(file, json.dumps(written, indent=1) + "\n")
        print(f"\nwritten: {file}")


def analyze_file(path: Path, truth: GroundTruth, **options: Any) -> dict[str, Analysis]:
    """Analyse a results file, or that of a run.

    Args:
        path: the file, or the folder of a run.
        truth: the annotations.
        options: of `analyze`.

    Returns:
        "bbox" and "segm", those that the file has.

    Raises:
        DataError: no such file, a broken one, or one with keypoints alone; an IoU that is none of
            COCO's ten.
    """
    found = read_predictions(results_of(path), truth)
    kinds = [kind for kind, there in _given(found).items() if there]
    if not kinds:
        raise DataError(f"{path}: has neither boxes nor masks to analyse")
    try:
        return {kind: analyze(truth, found, kind, **options) for kind in kinds}
    except ValueError as error:
        raise DataError(str(error)) from None


def _given(found: Predictions) -> dict[str, bool]:
    return {"bbox": found.boxes is not None, "segm": found.masks is not None}


def results_of(path: Path) -> Path:
    """The results file that a path stands for: itself, or that of the run in a folder.

    Raises:
        DataError: a folder without one.
    """
    if not path.is_dir():
        return path
    places = [path / "inference" / RESULTS, path / RESULTS]
    for file in places:
        if file.is_file():
            return file
    raise DataError(f"{path}: is the folder of no evaluated run; looked for {places[0]}")
