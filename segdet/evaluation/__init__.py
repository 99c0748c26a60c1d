"""Evaluation of models: the loop over a data set, COCO's metrics, and comparing results."""

from segdet.evaluation.cityscapes import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator
from segdet.evaluation.coco import COCOEvaluator
from segdet.evaluation.coco_results import evaluate_results
from segdet.evaluation.evaluator import (
    DatasetEvaluator,
    DatasetEvaluators,
    inference_context,
    inference_on_dataset,
)
from segdet.evaluation.lvis import LVISEvaluator
from segdet.evaluation.panoptic import COCOPanopticEvaluator
from segdet.evaluation.pascal_voc import PascalVOCDetectionEvaluator
from segdet.evaluation.rotated_coco import RotatedCOCOEvaluator
from segdet.evaluation.sem_seg import SemSegEvaluator
from segdet.evaluation.testing import print_csv_format, verify_results

__all__ = [
    "COCOEvaluator",
    "COCOPanopticEvaluator",
    "CityscapesInstanceEvaluator",
    "CityscapesSemSegEvaluator",
    "DatasetEvaluator",
    "DatasetEvaluators",
    "LVISEvaluator",
    "PascalVOCDetectionEvaluator",
    "RotatedCOCOEvaluator",
    "SemSegEvaluator",
    "evaluate_results",
    "inference_context",
    "inference_on_dataset",
    "print_csv_format",
    "verify_results",
]
