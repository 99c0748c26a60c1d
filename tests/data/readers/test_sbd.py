from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdet.config import get_cfg
from segdet.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from segdet.data.readers.sbd import load_sbd_instances
from segdet.data.rle import decode_rle
from segdet.errors import DataError
from segdet.evaluation import COCOEvaluator
from segdet.structures import Boxes, BoxMode, Instances
from tests.data.readers.mat_writer import numbers, structure, write_mat

SEGMENTS = np.zeros((60, 80), "u1")
SEGMENTS[10:30, 5:25] = 1
SEGMENTS[20:40, 20:50] = 2  # in front of the first
CATEGORIES = np.array([[15.0], [12.0]])  # a person and a dog


def write_sbd(root: Path, name: str = "2008_000008", **fields: np.ndarray) -> None:
    fields = {"Segmentation": SEGMENTS, "Categories": CATEGORIES} | fields
    struct = structure("GTinst", {key: numbers(one) for key, one in fields.items()})
    write_mat(root / f"inst/{name}.mat", struct)
    (root / "img").mkdir(exist_ok=True)
    Image.new("RGB", (80, 60)).save(root / f"img/{name}.jpg")
    (root / "val.txt").write_text(f"{name}\n")


def test_records(tmp_path: Path):
    write_sbd(tmp_path)
    (record,) = load_sbd_instances(tmp_path, "val")
    first, second = record.pop("annotations")
    assert record == {
        "file_name": str(tmp_path / "img/2008_000008.jpg"),
        "image_id": "2008_000008",
        "height": 60,
        "width": 80,
    }
    assert (decode_rle(first.pop("segmentation")) == (SEGMENTS == 1)).all()
    assert (decode_rle(second.pop("segmentation")) == (SEGMENTS == 2)).all()
    common = {"bbox_mode": BoxMode.XYXY_ABS, "iscrowd": 0}
    assert first == {"category_id": 14, "bbox": [5, 10, 25, 30], **common}
    assert second == {"category_id": 11, "bbox": [20, 20, 50, 40], **common}


def test_an_object_without_pixels_is_left_out(tmp_path: Path):
    write_sbd(tmp_path, Segmentation=np.where(SEGMENTS == 2, 2, 0).astype("u1"))
    (record,) = load_sbd_instances(tmp_path, "val")
    assert [one["category_id"] for one in record["annotations"]] == [11]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"Categories": np.array([[15.0]])}, "holds 0 to 2, must be within 0 and 1, the number of"),
        ({"Categories": np.array([[0.0], [1.0]])}, "object 1: class 0 must be a whole number in"),
        ({"Categories": np.array([[1.0], [2.5]])}, r"object 2: class 2.5 must be .* in \[1, 20\]"),
        ({"Segmentation": np.zeros((0, 0), "u1")}, r"must be a picture, has shape \(0, 0\)"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, fields, message):
    write_sbd(tmp_path, **fields)
    with pytest.raises(DataError, match=rf"2008_000008.mat: .*{message}"):
        load_sbd_instances(tmp_path, "val")


def test_what_is_missing_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"val.txt: the list of images cannot be read"):
        load_sbd_instances(tmp_path, "val")
    write_sbd(tmp_path)
    struct = structure("GTinst", {"Categories": numbers(CATEGORIES)})
    write_mat(tmp_path / "inst/2008_000008.mat", struct)
    with pytest.raises(DataError, match=r"has no numbers Segmentation \(it has Categories\)"):
        load_sbd_instances(tmp_path, "val")


def test_it_trains_and_is_evaluated_under_its_name(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SEGDET_DATASETS", str(tmp_path))
    write_sbd(tmp_path / "sbd")
    (record,) = DatasetCatalog.get("sbd_val")
    assert MetadataCatalog.get("sbd_val").thing_classes[14] == "person"
    cfg = get_cfg()
    cfg.merge_from_list(["INPUT.MASK_FORMAT", "bitmask", "MODEL.MASK_ON", True])
    cfg.merge_from_list(["INPUT.MIN_SIZE_TRAIN", (60,), "INPUT.RANDOM_FLIP", "none"])
    targets = DatasetMapper(cfg, is_train=True)(record)["instances"]
    assert (targets.gt_masks.tensor.numpy() == [SEGMENTS == 1, SEGMENTS == 2]).all()
    found = Instances((60, 80), pred_boxes=Boxes(targets.gt_boxes.tensor))
    found.scores, found.pred_classes = targets.gt_boxes.area() / 1e4, targets.gt_classes
    found.pred_masks = targets.gt_masks.tensor
    evaluator = COCOEvaluator("sbd_val", output_dir=str(tmp_path / "run"))
    evaluator.reset()
    evaluator.process([record], [{"instances": found}])
    assert evaluator.evaluate()["segm"]["AP"] == pytest.approx(100)
