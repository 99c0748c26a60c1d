"""What a run found in its test data, and the annotation that it is judged by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segdet.data import MetadataCatalog
from segdet.data.readers.coco_json import read_coco_json
from segdet.errors import DataError
from segdet.evaluation import COCOEvaluator
from segdet.evaluation.coco_records import (
    GroundTruth,
    Predictions,
    columns_of,
    converted_name,
)
from segdet.evaluation.coco_results import read_predictions
from segdet.report.run import Missing, Run

RESULTS_FILE = COCOEvaluator.results_file
_WHAT = "intervals, errors, precision by recall, and pictures of objects"


@dataclass(frozen=True, kw_only=True)
class Tested:
    """Objects that a run found, and those that are there."""

    truth: GroundTruth
    files: list[str]  # of the truth's images
    found: Predictions


def read_tested(run: Run) -> Tested | None:
    """Read both; None where that cannot be, with the reason in `run.missing`.

    None without a word of a run whose evaluations were of no objects, as those of label maps.
    """
    no_objects = run.results and not run.results_of("bbox") and not run.results_of("segm")
    if no_objects and not (run.inference / RESULTS_FILE).is_file():
        return None
    try:
        return _read(run)
    except DataError as error:
        run.missing.append(Missing(_WHAT, str(error)))
        return None


def _read(run: Run) -> Tested:
    results = run.inference / RESULTS_FILE
    if not results.is_file():
        raise DataError(
            f"there is no {results}; the evaluation of a COCO data set of objects writes it"
        )
    if not run.tested:
        raise DataError("the configuration names no DATASETS.TEST, so the annotation is not known")
    json_file, image_root = _annotation(run)
    file = read_coco_json(json_file, image_root, extra_annotation_keys=("id", "area"))
    truth = GroundTruth(**columns_of(file, json_file))
    if not truth.annotated:
        raise DataError(f"{json_file} has no annotations: it is of a test set")
    return Tested(
        truth=truth,
        files=[record["file_name"] for record in file.records],
        found=read_predictions(results, truth),
    )


def _annotation(run: Run) -> tuple[str, str]:
    """The COCO json of the test data, and the folder of its images."""
    known = MetadataCatalog.get(run.tested)
    json_file = known.get("json_file")
    if json_file is not None and Path(json_file).is_file():
        return json_file, known.get("image_root", "")
    converted = run.inference / converted_name(run.tested)
    if converted.is_file():
        return str(converted), ""
    if json_file is not None:
        raise DataError(
            f"the annotation of {run.tested}, {json_file}, is not there; SEGDET_DATASETS names the "
            "folder of data sets"
        )
    raise DataError(
        f"the annotation of {run.tested} is not known here, and {converted}, which the evaluation "
        "of data sets that are registered in code writes, is not there"
    )
