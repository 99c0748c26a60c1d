"""All that is known of a run's predictions."""

from __future__ import annotations

from dataclasses import dataclass

from segdet.evaluation.analysis.bootstrap import Intervals, confidence_intervals
from segdet.evaluation.analysis.calibration import Calibration, calibrate
from segdet.evaluation.analysis.confusion import Confusion, confusion_matrix
from segdet.evaluation.analysis.errors import Errors, find_errors
from segdet.evaluation.analysis.tables import Curves, Tables, curves_and_tables
from segdet.evaluation.coco_records import GroundTruth, Predictions
from segdet.evaluation.coco_report import distinct_names
from segdet.evaluation.matching import Matches, match_detections


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Of one kind, "bbox" or "segm"; K classes in the order of `class_names`."""

    class_names: list[str]
    matches: Matches
    tables: Tables
    curves: Curves
    errors: Errors
    confusion: Confusion
    calibration: Calibration
    intervals: Intervals


def analyze(
    truth: GroundTruth,
    found: Predictions,
    kind: str,
    *,
    score: float = 0.5,
    iou: float = 0.5,
    samples: int = 1000,
    seed: int = 0,
) -> Analysis:
    """Analyse predictions of a data set.

    Args:
        truth: the annotations, as `read_ground_truth` gives them.
        found: the predictions, as `read_predictions` gives them.
        kind: "bbox" or "segm".
        score: from which detections are in the confusion matrix.
        iou: one of COCO's ten, from which a detection is right for errors, confusion, calibration.
        samples: of the bootstrap.
        seed: likewise.
    """
    matches = match_detections(truth, found, kind)
    curves, tables = curves_and_tables(matches)
    return Analysis(
        class_names=distinct_names(truth.category_names, truth.category_ids),
        matches=matches,
        tables=tables,
        curves=curves,
        errors=find_errors(matches, iou),
        confusion=confusion_matrix(matches, score=score, iou=iou),
        calibration=calibrate(matches, iou=iou),
        intervals=confidence_intervals(matches, samples=samples, seed=seed),
    )
