"""Which evaluators a data set's metadata asks for."""

from __future__ import annotations

from collections.abc import Callable

from segdet.config import CfgNode
from segdet.data import DatasetCatalog, MetadataCatalog
from segdet.data.sem_seg import has_sem_seg
from segdet.errors import ConfigError
from segdet.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)


def _coco_evaluator(cfg: CfgNode, name: str, folder: str) -> COCOEvaluator:
    return COCOEvaluator(name, output_dir=folder, kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS)


def _panoptic_evaluator(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluators:
    """Of segments, and of label maps and objects where the ground truth has them."""
    records = DatasetCatalog.get(name)
    evaluators: list[DatasetEvaluator] = []
    if records and all(map(has_sem_seg, records)):
        evaluators.append(SemSegEvaluator(name, output_dir=folder))
    has_objects = any("annotations" in record for record in records)
    if has_objects or MetadataCatalog.get(name).get("json_file") is not None:
        evaluators.append(_coco_evaluator(cfg, name, folder))
    return DatasetEvaluators([*evaluators, COCOPanopticEvaluator(name, folder)])


def _cityscapes_panoptic_evaluator(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluators:
    of_objects, of_classes = CityscapesInstanceEvaluator(name), CityscapesSemSegEvaluator(name)
    return DatasetEvaluators([of_objects, of_classes, COCOPanopticEvaluator(name, folder)])


# evaluator_type of a data set's metadata -> its evaluator.
EVALUATORS: dict[str, Callable[[CfgNode, str, str], DatasetEvaluator]] = {
    "coco": _coco_evaluator,
    "sem_seg": lambda _, name, folder: SemSegEvaluator(name, output_dir=folder),
    "coco_panoptic_seg": _panoptic_evaluator,
    "lvis": lambda _, name, folder: LVISEvaluator(name, output_dir=folder),
    "pascal_voc": lambda _, name, folder: PascalVOCDetectionEvaluator(name),
    "cityscapes_instance": lambda _, name, folder: CityscapesInstanceEvaluator(name),
    "cityscapes_sem_seg": lambda _, name, folder: CityscapesSemSegEvaluator(name),
    "cityscapes_panoptic_seg": _cityscapes_panoptic_evaluator,
}


def check_evaluator_type(name: str) -> str:
    """The `evaluator_type` of a data set; "coco" where its metadata has none.

    Raises:
        ConfigError: there is no such evaluator.
    """
    kind = MetadataCatalog.get(name).get("evaluator_type", "coco")
    if kind not in EVALUATORS:
        raise ConfigError(
            f'{name} has evaluator_type "{kind}"; built in are {", ".join(EVALUATORS)}. '
            "Override DefaultTrainer.build_evaluator for others"
        )
    return kind
