import pytest
import torch

from segdet.config import get_cfg
from segdet.data import DatasetCatalog, MetadataCatalog
from segdet.engine import DefaultTrainer
from segdet.engine.evaluators import EVALUATORS
from segdet.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOPanopticEvaluator,
    inference_on_dataset,
)
from segdet.structures import Boxes, Instances


@pytest.mark.parametrize(
    "name, tasks",
    [
        ("camvid_small_panoptic_val", ["bbox", "segm", "panoptic_seg", "sem_seg"]),
        ("camvid_small_sem_seg_val", ["sem_seg"]),
    ],
)
def test_panoptic_and_semantic_data_have_all_their_evaluators(
    shared_data, tmp_path, monkeypatch, name, tasks
):
    monkeypatch.setenv("SEGDET_DATASETS", str(shared_data))
    monkeypatch.setattr(MetadataCatalog, "_metadata", {})
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    evaluator = DefaultTrainer.build_evaluator(cfg, name)
    records = DatasetCatalog.get(name)
    size = 360, 480
    found = Instances(size, pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0))
    found.pred_classes, found.pred_masks = torch.zeros(0).long(), torch.zeros(0, *size)
    output = {"sem_seg": torch.zeros(9, *size), "instances": found}
    output["panoptic_seg"] = torch.zeros(size, dtype=torch.int32), []
    results = inference_on_dataset(lambda batch: [output], [[one] for one in records], evaluator)
    assert sorted(results) == sorted(tasks)
    folder = tmp_path / "inference"
    assert (folder / "sem_seg_predictions.json").is_file()
    assert len(list(folder.glob("panoptic/*.png"))) == (21 if len(tasks) > 1 else 0)


def test_panoptic_cityscapes_has_three(tmp_path, monkeypatch):
    monkeypatch.setattr(MetadataCatalog, "_metadata", {})
    (tmp_path / "truth.json").write_text('{"categories": []}')
    MetadataCatalog.get("town").set(
        panoptic_json=str(tmp_path / "truth.json"), panoptic_root="x", thing_classes=[]
    )
    evaluators = EVALUATORS["cityscapes_panoptic_seg"](get_cfg(), "town", str(tmp_path))
    kinds = [type(one) for one in evaluators._evaluators]
    assert kinds == [CityscapesInstanceEvaluator, CityscapesSemSegEvaluator, COCOPanopticEvaluator]


def test_segments_alone_have_no_objects_to_evaluate(shared_data, monkeypatch, tmp_path):
    monkeypatch.setattr(MetadataCatalog, "_metadata", {})
    monkeypatch.setattr(DatasetCatalog, "_loaders", {})
    folder = shared_data / "camvid_small/annotations"
    places = {"panoptic_json": str(folder / "panoptic_val.json"), "panoptic_root": "x"}
    DatasetCatalog.register("segments", lambda: [{"file_name": "a.jpg"}])
    MetadataCatalog.get("segments").set(**places)
    evaluators = EVALUATORS["coco_panoptic_seg"](get_cfg(), "segments", str(tmp_path))
    assert [type(one) for one in evaluators._evaluators] == [COCOPanopticEvaluator]
