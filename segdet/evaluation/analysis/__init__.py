"""Why a number is what it is: errors, tables, curves, confusion, calibration, intervals."""

from segdet.evaluation.analysis.bootstrap import (
    Comparison,
    Difference,
    Interval,
    Intervals,
    compare,
    confidence_intervals,
)
from segdet.evaluation.analysis.calibration import Calibration, calibrate
from segdet.evaluation.analysis.confusion import Confusion, confusion_matrix
from segdet.evaluation.analysis.errors import GAINS, KINDS, MISSED, Errors, find_errors
from segdet.evaluation.analysis.summary import Analysis, analyze
from segdet.evaluation.analysis.tables import MEASURES, Curves, Tables, curves_and_tables

__all__ = [
    "GAINS",
    "KINDS",
    "MEASURES",
    "MISSED",
    "Analysis",
    "Calibration",
    "Comparison",
    "Confusion",
    "Curves",
    "Difference",
    "Errors",
    "Interval",
    "Intervals",
    "Tables",
    "analyze",
    "calibrate",
    "compare",
    "confidence_intervals",
    "confusion_matrix",
    "curves_and_tables",
    "find_errors",
]
