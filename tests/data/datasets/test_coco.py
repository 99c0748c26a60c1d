from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest

from segdet.data import DatasetCatalog, MetadataCatalog
from segdet.data.datasets import convert_to_coco_json, load_coco_json, register_coco_instances
from segdet.data.datasets.coco import convert_to_coco_dict
from segdet.errors import DataError
from segdet.evaluation import COCOEvaluator
from segdet.structures import BoxMode

from ..conftest import SQUARE, CocoFolder


def test_register(coco_folder: CocoFolder):
    json_file, images = coco_folder.write()
    register_coco_instances("animals", {"colour": "grey"}, json_file, images)
    metadata = MetadataCatalog.get("animals")
    assert metadata.json_file == str(json_file) and metadata.image_root == str(images)
    assert metadata.evaluator_type == "coco" and metadata.colour == "grey"
    assert len(DatasetCatalog.get("animals")) == 2
    assert metadata.thing_classes == ["dog", "cat"]
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 3: 1}
    with pytest.raises(DataError, match="registered already"):
        register_coco_instances("animals", {}, json_file, images)


def test_load_without_a_name_sets_no_metadata(coco_folder: CocoFolder):
    records = load_coco_json(*coco_folder.write(), extra_annotation_keys=["area"])
    assert records[0]["annotations"][0]["area"] == 1200
    assert MetadataCatalog.list() == []


def by_hand() -> list[dict]:
    mask = np.zeros((60, 80), np.uint8)
    mask[5:15, 10:30] = 1
    rle = mask_util.encode(np.asfortranarray(mask))
    box = {"bbox": np.array([20.0, 10, 60, 40]), "bbox_mode": BoxMode.XYXY_ABS}
    return [
        {
            "file_name": "a.jpg",
            "height": 60,
            "width": 80,
            "image_id": "a",
            "annotations": [
                box | {"category_id": 1, "segmentation": [np.array(SQUARE)]},
                box | {"category_id": 0, "segmentation": rle, "iscrowd": 1},
                {"bbox": (1, 2, 3, 4), "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}
                | {"keypoints": [1.5, 2.5, 2, 0.5, 0.5, 0]},
            ],
        },
        {"file_name": "b.jpg", "height": 60, "width": 80, "image_id": "b"},
    ]


def test_convert_hand_registered_data(tmp_path: Path):
    DatasetCatalog.register("hand", by_hand)
    MetadataCatalog.get("hand").thing_classes = ["dog", "cat"]
    file = tmp_path / "sub" / "hand.json"
    convert_to_coco_json("hand", file)
    tree = json.loads(file.read_text())
    assert [image["id"] for image in tree["images"]] == ["a", "b"]
    assert tree["categories"] == [{"id": 0, "name": "dog"}, {"id": 1, "name": "cat"}]
    polygon, rle, points = tree["annotations"]
    assert polygon["bbox"] == [20, 10, 40, 30] and polygon["area"] == 1200
    assert polygon["segmentation"] == [SQUARE] and polygon["id"] == 1
    assert rle["area"] == 200 and rle["iscrowd"] == 1 and isinstance(rle["segmentation"], dict)
    assert points["keypoints"] == [1, 2, 2, 0, 0, 0] and points["num_keypoints"] == 1
    assert points["area"] == 12 and points["category_id"] == 1
    again = load_coco_json(file, "")
    assert [len(record["annotations"]) for record in again] == [3, 0]
    assert list(file.parent.iterdir()) == [file], "no partial file is left"


def test_convert_keeps_or_replaces_a_file(tmp_path: Path):
    DatasetCatalog.register("hand", by_hand)
    MetadataCatalog.get("hand").thing_classes = ["dog", "cat"]
    file = tmp_path / "hand.json"
    file.write_text("old")
    convert_to_coco_json("hand", file)
    assert file.read_text() == "old"
    convert_to_coco_json("hand", file, allow_cached=False)
    assert len(json.loads(file.read_text())["images"]) == 2


def test_round_trip_keeps_ids_and_objects(coco_folder: CocoFolder, tmp_path: Path):
    json_file, images = coco_folder.write()
    register_coco_instances("animals", {}, json_file, images)
    convert_to_coco_json("animals", tmp_path / "copy.json")
    tree = json.loads((tmp_path / "copy.json").read_text())
    assert {c["id"]: c["name"] for c in tree["categories"]} == {1: "dog", 3: "cat"}
    (row,) = tree["annotations"]
    assert row == coco_folder.tree["annotations"][0]


def test_rotated_boxes_keep_their_angle(tmp_path: Path):
    one = {"bbox": [1, 2, 3, 4, 5], "bbox_mode": BoxMode.XYWHA_ABS, "category_id": 0}
    record = {"file_name": "a", "height": 9, "width": 9, "annotations": [one]}
    DatasetCatalog.register("rotated", lambda: [record])
    MetadataCatalog.get("rotated").thing_classes = ["a"]
    convert_to_coco_json("rotated", tmp_path / "a.json")
    (row,) = json.loads((tmp_path / "a.json").read_text())["annotations"]
    assert row["bbox"] == [1, 2, 3, 4, 5] and row["area"] == 12
    (again,) = load_coco_json(tmp_path / "a.json", "")
    assert again["annotations"] == [{**one, "iscrowd": 0}]


def test_an_object_without_a_box_mode_is_named():
    row = {"bbox": [1, 2, 3, 4], "category_id": 0}
    record = {"file_name": "a.png", "width": 9, "height": 9, "image_id": 5, "annotations": [row]}
    DatasetCatalog.register("boxless", lambda: [record])
    MetadataCatalog.get("boxless").thing_classes = ["a"]
    with pytest.raises(DataError, match="image id 5, annotation 0: has no bbox_mode; it has bbox"):
        convert_to_coco_dict("boxless")


@pytest.mark.parametrize(
    "lacking, metadata, says",
    [
        ("width", {"thing_classes": ["a"]}, "image id 5: the record has no width; it has file_na"),
        ("", {}, r"has no thing_classes, .* set MetadataCatalog.get\('hand'\).thing_classes"),
        (
            "",
            {"thing_classes": ["z"]},
            r"image id 5, annotation 0: category_id is 1, must be in \[",
        ),
        (
            "",
            {"thing_classes": ["a", "b"], "thing_dataset_id_to_contiguous_id": {7: 1}},
            "leads to no class 0, 'a'",
        ),
    ],
)
def test_what_hand_registered_data_lacks_is_named(tmp_path: Path, lacking, metadata, says):
    one = {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}
    record = {"file_name": "a.png", "width": 9, "height": 9, "image_id": 5, "annotations": [one]}
    record.pop(lacking, None)
    DatasetCatalog.register("hand", lambda: [record])
    MetadataCatalog.get("hand").set(**metadata)
    with pytest.raises(DataError, match=f"data set 'hand'.*{says}"):
        COCOEvaluator("hand", output_dir=str(tmp_path))
