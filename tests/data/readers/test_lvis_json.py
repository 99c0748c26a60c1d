from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segdet.data import DatasetCatalog, MetadataCatalog
from segdet.data.datasets import get_lvis_instances_meta, load_lvis_json, register_lvis_instances
from segdet.errors import DataError


def lvis_tree() -> dict[str, Any]:
    url = "http://images.cocodataset.org/{}/00000{}.jpg"
    size = {"height": 60, "width": 80}
    return {
        "images": [
            {"id": 9, "coco_url": url.format("val2017", 9), **size}
            | {"neg_category_ids": [3], "not_exhaustive_category_ids": [1]},
            {"id": 4, "coco_url": url.format("train2017", 4), **size}
            | {"neg_category_ids": [], "not_exhaustive_category_ids": []},
        ],
        "categories": [
            {"id": 2, "name": "b", "synonyms": ["bee", "b"], "frequency": "c", "image_count": 20},
            {"id": 1, "name": "a", "synonyms": ["ant"], "frequency": "r", "image_count": 1},
            {"id": 3, "name": "c", "synonyms": ["cat"], "frequency": "f", "image_count": 300},
        ],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 2, "bbox": [1, 2, 10, 10], "area": 100}
            | {"segmentation": [[1, 2, 11, 2, 11, 12, 1, 12]]},
        ],
    }


def write(folder: Path, tree: dict[str, Any]) -> Path:
    file = folder / "lvis.json"
    file.write_text(json.dumps(tree))
    return file


def test_records_and_metadata(tmp_path: Path):
    register_lvis_instances("mine", {"x": 1}, write(tmp_path, lvis_tree()), "coco")
    records = DatasetCatalog.get("mine")
    assert [r["file_name"] for r in records] == [
        "coco/train2017/000004.jpg",
        "coco/val2017/000009.jpg",
    ]
    assert records[1]["neg_category_ids"] == [3]
    assert records[1]["not_exhaustive_category_ids"] == [1]
    annotation = records[1]["annotations"][0]
    assert annotation["category_id"] == 1 and annotation["bbox"] == [1, 2, 10, 10]
    metadata = MetadataCatalog.get("mine")
    assert metadata.thing_classes == ["ant", "bee", "cat"] and metadata.x == 1
    assert metadata.class_frequency == ["r", "c", "f"] and metadata.evaluator_type == "lvis"
    assert [row["image_count"] for row in metadata.class_image_count] == [1, 20, 300]


def test_images_without_an_address_and_lists(tmp_path: Path):
    tree = lvis_tree()
    tree["images"] = [{"id": 9, "file_name": "x/y.jpg", "height": 60, "width": 80}]
    for row in tree["categories"]:
        del row["frequency"], row["image_count"]
    record = load_lvis_json(write(tmp_path, tree), "coco")[0]
    assert record["file_name"] == "coco/x/y.jpg" and record["neg_category_ids"] == []


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda t: t["images"][0].update(neg_category_ids=[7]),
            "image 9: neg_category_ids holds 7",
        ),
        (
            lambda t: t["images"][0].update(not_exhaustive_category_ids=2),
            "image 9: not_exhaustive_category_ids must be a list of category ids, is 2",
        ),
        (
            lambda t: t["categories"][0].update(frequency="x"),
            "category 2: frequency must be one of",
        ),
        (lambda t: t["images"][0].update(coco_url="a/../b"), "leaves the image folder"),
        (lambda t: t["annotations"][0].update(category_id=5), "annotation 1: category_id 5 is no"),
    ],
)
def test_defects_are_named(tmp_path: Path, change, message: str):
    tree = lvis_tree()
    change(tree)
    with pytest.raises(DataError, match=rf"lvis\.json: .*{message}"):
        load_lvis_json(write(tmp_path, tree), "coco")


def test_classes_of_a_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SEGDET_DATASETS", str(tmp_path))
    with pytest.raises(DataError, match="stand in its files, and none is at"):
        get_lvis_instances_meta("lvis_v1")
    with pytest.raises(DataError, match="names no version"):
        get_lvis_instances_meta("lvis_v2")
    (tmp_path / "lvis").mkdir()
    write(tmp_path, lvis_tree()).rename(tmp_path / "lvis/lvis_v1_val.json")
    meta = get_lvis_instances_meta("lvis_v1_train")
    assert meta["thing_classes"] == ["ant", "bee", "cat"]
    assert meta["class_image_count"][2] == {"id": 3, "image_count": 300}
    assert len(get_lvis_instances_meta("lvis_v0.5_val_cocofied")["thing_classes"]) == 80
    assert len(DatasetCatalog.get("lvis_v1_val")) == 2
