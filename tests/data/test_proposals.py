from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segdet.config.node import CfgNode
from segdet.data import (
    DatasetCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from segdet.data import transforms as T
from segdet.data.datasets import register_coco_instances
from segdet.data.detection_utils import transform_proposals
from segdet.data.proposals import load_proposals_into_dataset
from segdet.errors import CheckpointError, ConfigError, DataError
from segdet.structures import BoxMode

from .conftest import CocoFolder, a_config


def content(**changes: Any) -> dict[str, Any]:
    boxes = np.array([[0, 0, 20, 10], [10, 10, 30, 30], [5, 5, 5, 9]], np.float32)
    logits = np.array([0.1, 0.9, 0.5], np.float32)
    whole = {"ids": [2, 1], "boxes": [boxes, boxes[:1]], "objectness_logits": [logits, logits[:1]]}
    return {key: value for key, value in {**whole, **changes}.items() if value is not ...}


def write(folder: Path, value: Any) -> str:
    file = folder / "proposals.pkl"
    file.write_bytes(pickle.dumps(value))
    return str(file)


def test_records_get_the_best_first(tmp_path: Path):
    records = [{"image_id": 1}, {"image_id": "2"}]
    assert load_proposals_into_dataset(records, write(tmp_path, content())) is records
    assert records[1]["proposal_objectness_logits"].tolist() == pytest.approx([0.9, 0.5, 0.1])
    assert records[1]["proposal_boxes"][0].tolist() == [10, 10, 30, 30]
    assert records[0]["proposal_bbox_mode"] == BoxMode.XYXY_ABS
    old = content(ids=..., objectness_logits=..., bbox_mode=1)
    old |= {"indexes": np.array([2, 1]), "scores": content()["objectness_logits"]}
    load_proposals_into_dataset(records, write(tmp_path, old))
    assert records[0]["proposal_bbox_mode"] == BoxMode.XYWH_ABS


NAN = np.array([np.nan, 0, 0, 0], np.float32)


@pytest.mark.parametrize(
    "value, message",
    [
        ([1], "must hold a dict, holds a list"),
        (content(boxes=...), r"has no boxes \(it has ids, objectness_logits\)"),
        (content(boxes=3), "boxes must be a list, is a int"),
        (content(ids=[2]), "has 1 ids but 2 boxes"),
        (content(ids=[2, 5]), r"has no proposals of the image 1 \(a.jpg\)"),
        (content(bbox_mode=4), r"bbox_mode must be one of 0 \(XYXY_ABS\), 1 .*, is 4"),
        (content(boxes=[[], np.zeros(3)]), "boxes of image 1 are no array of numbers"),
        (content(boxes=[[], NAN]), "boxes of image 1 hold NaN or Infinity"),
        (content(boxes=[[], np.zeros((2, 4))]), "image 1 has 2 boxes but 1 objectness_logits"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, value: Any, message: str):
    file = write(tmp_path, value)
    with pytest.raises(DataError, match=f"proposal file {file}: {message}"):
        load_proposals_into_dataset([{"image_id": 1, "file_name": "a.jpg"}], file)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("made_by_a_pickle",)


def test_a_hostile_file_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path, content(ids=Harmful()))
    with pytest.raises(
        CheckpointError, match=r"proposals\.pkl: refers to the Python object \w+\.mk"
    ):
        load_proposals_into_dataset([], file)
    assert not (tmp_path / "made_by_a_pickle").exists()
    Path(file).write_bytes(b"\x80\x04]")
    with pytest.raises(CheckpointError, match=r"proposals\.pkl: cannot be read"):
        load_proposals_into_dataset([], file)
    with pytest.raises(CheckpointError, match="none: no such file"):
        load_proposals_into_dataset([], "none")


def test_proposals_move_along_with_the_image():
    record = {
        "proposal_boxes": np.array([[0, 0, 40, 10], [50, 0, 70, 10], [-5, 0, 20, 60]], np.float32),
        "proposal_objectness_logits": np.array([3, 2, 1], np.float32),
        "proposal_bbox_mode": BoxMode.XYXY_ABS,
    }
    moves = T.TransformList([T.CropTransform(0, 0, 40, 30), T.HFlipTransform(40)])
    transform_proposals(record, (30, 40), moves, proposal_topk=5)
    (proposals,) = record.values()
    assert proposals.proposal_boxes.tensor.tolist() == [[0, 0, 40, 10], [20, 0, 40, 30]]
    assert proposals.objectness_logits.tolist() == [3, 1] and proposals.image_size == (30, 40)
    record = {"x": 1}
    transform_proposals(record, (30, 40), moves, proposal_topk=5)
    assert record == {"x": 1}


@pytest.fixture
def cfg(coco_folder: CocoFolder) -> CfgNode:
    register_coco_instances("mine", {}, *coco_folder.write())
    register_coco_instances("other", {}, *coco_folder.write())
    cfg = a_config()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("mine",), ("other", "mine")
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.MODEL.LOAD_PROPOSALS = True
    return cfg


def test_loaders_bring_them(cfg: CfgNode, coco_folder: CocoFolder):
    file = write(coco_folder.images, content())
    cfg.DATASETS.PROPOSAL_FILES_TRAIN = (file,)
    cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN = 1
    samples = next(iter(build_detection_train_loader(cfg)))
    assert [len(s["proposals"]) for s in samples] == [1, 1]
    cfg.DATASETS.PROPOSAL_FILES_TEST = ("none", file)
    samples = [batch[0] for batch in build_detection_test_loader(cfg, "mine")]
    assert [len(s["proposals"]) for s in samples] == [1, 2]  # one has no width
    boxes = samples[1]["proposals"].proposal_boxes.tensor
    assert boxes[0].tolist() == pytest.approx([10 * 800 / 60, 10 * 800 / 60, 400, 400], abs=0.3)
    with pytest.raises(CheckpointError, match="none: no such file"):
        build_detection_test_loader(cfg, "other")
    cfg.MODEL.LOAD_PROPOSALS = False
    assert "proposals" not in next(iter(build_detection_test_loader(cfg, "mine")))[0]


def test_files_and_data_sets_must_agree(cfg: CfgNode):
    with pytest.raises(ConfigError, match=r"DATASETS\.PROPOSAL_FILES_TRAIN has 0 for 1"):
        build_detection_train_loader(cfg)
    cfg.DATASETS.PROPOSAL_FILES_TEST = ("a", "b")
    with pytest.raises(ConfigError, match=r"third is none of DATASETS\.TEST"):
        build_detection_test_loader(cfg, "third")
    DatasetCatalog.register("third", list)
    with pytest.raises(ConfigError, match="1 data sets need as many files of proposals"):
        get_detection_dataset_dicts("third", proposal_files=["a", "b"])
