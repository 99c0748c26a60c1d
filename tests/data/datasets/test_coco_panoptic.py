from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdet.data import DatasetCatalog, MetadataCatalog
from segdet.data.datasets import (
    load_coco_panoptic_json,
    load_sem_seg,
    register_coco_panoptic,
    register_coco_panoptic_separated,
)
from segdet.data.sem_seg import read_sem_seg
from segdet.errors import DataError

from ..conftest import PanopticFolder

BOX = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 40, 20, 10], "iscrowd": 0}


def write_instances(folder: PanopticFolder, **changes) -> Path:
    things = [row for row in folder.tree["categories"] if row["isthing"]]
    tree = {"images": folder.tree["images"], "categories": things, "annotations": [BOX]} | changes
    file = folder.json.with_name("instances.json")
    file.write_text(json.dumps(tree))
    return file


def write_maps(folder: PanopticFolder, *names: str) -> Path:
    root = folder.json.with_name("stuff")
    root.mkdir()
    for name in names:
        Image.fromarray(np.full((60, 80), 2, np.uint8)).save(root / f"{name}.png")
    return root


def test_standard(panoptic_folder: PanopticFolder):
    json_file, images, pngs = panoptic_folder.write()
    register_coco_panoptic("pan", {"colour": "grey"}, images, pngs, json_file, "some.json")
    metadata = MetadataCatalog.get("pan")
    assert metadata.evaluator_type == "coco_panoptic_seg" and metadata.label_divisor == 1000
    assert metadata.panoptic_root == str(pngs) and metadata.json_file == "some.json"
    assert metadata.ignore_label == 255 and metadata.colour == "grey"
    segments = DatasetCatalog.get("pan")[0]["segments_info"]
    assert [s["category_id"] for s in segments] == [0, 1, 3]
    assert metadata.thing_classes == ["sky-other-merged", "dog", "grass", "cat"]


def test_the_numbers_of_given_metadata_count(panoptic_folder: PanopticFolder):
    json_file, images, pngs = panoptic_folder.write()
    meta = {
        "thing_dataset_id_to_contiguous_id": {1: 0, 3: 2},
        "stuff_dataset_id_to_contiguous_id": {9: 1},
    }
    segments = load_coco_panoptic_json(json_file, images, pngs, meta)[0]["segments_info"]
    assert [(s["category_id"], s["isthing"]) for s in segments] == [
        (1, False),
        (2, True),
        (0, True),
    ]
    assert len(load_coco_panoptic_json(json_file, images, pngs, {})) == 2
    del meta["stuff_dataset_id_to_contiguous_id"]
    with pytest.raises(DataError, match="image 1: segment 300 is of category 9, which"):
        load_coco_panoptic_json(json_file, images, pngs, meta)
    register_coco_panoptic("own", meta | {"thing_classes": ["a"]}, images, pngs, json_file)
    with pytest.raises(DataError, match="segment 300 is of category 9"):
        DatasetCatalog.get("own")
    assert MetadataCatalog.get("own").thing_classes == ["a"]


def test_separated_with_instances_and_label_maps(panoptic_folder: PanopticFolder):
    json_file, images, pngs = panoptic_folder.write()
    places = images, pngs, json_file, write_maps(panoptic_folder, "a", "b")
    register_coco_panoptic_separated("x", {}, *places, write_instances(panoptic_folder))
    records = DatasetCatalog.get("x_separated")
    assert [len(r["annotations"]) for r in records] == [1, 0]
    assert "pan_seg_file_name" not in records[0] and (read_sem_seg(records[0]) == 2).all()
    metadata = MetadataCatalog.get("x_separated")
    assert metadata.evaluator_type == "coco_panoptic_seg" and metadata.thing_classes == [
        *("cat", "dog")
    ]
    assert metadata.sem_seg_root.endswith("stuff") and metadata.json_file.endswith("instances.json")
    stuff = DatasetCatalog.get("x_stuffonly")
    assert len(stuff) == 2 and stuff[0].keys() == {"file_name", "sem_seg_file_name"}
    for name in ("x_separated", "x_stuffonly"):
        metadata = MetadataCatalog.get(name)
        assert metadata.stuff_classes == ["things", "sky", "grass"]
        assert metadata.stuff_dataset_id_to_contiguous_id == {0: 0, 9: 1, 5: 2}
        assert metadata.stuff_colors[1:] == [[1, 2, 3], [7, 8, 9]]
    assert MetadataCatalog.get("x_stuffonly").evaluator_type == "sem_seg"


CLASSES = {
    "thing_classes": ["cat", "dog"],
    "thing_dataset_id_to_contiguous_id": {1: 0, 3: 1},
    "stuff_classes": ["things", "grass", "sky"],
    "stuff_dataset_id_to_contiguous_id": {5: 1, 9: 2},  # not the file's order
}


def test_known_classes_are_not_read_again(panoptic_folder: PanopticFolder):
    _, images, pngs = panoptic_folder.write()
    places = images, pngs, "absent.json", write_maps(panoptic_folder, "a", "b")
    register_coco_panoptic_separated("x", CLASSES, *places, write_instances(panoptic_folder))
    for name in ("x_separated", "x_stuffonly"):
        assert len(DatasetCatalog.get(name)) == 2
        assert MetadataCatalog.get(name).stuff_classes == ["things", "grass", "sky"]
    register_coco_panoptic_separated("y", {}, *places, write_instances(panoptic_folder))
    for name in ("y_separated", "y_stuffonly"):
        with pytest.raises(DataError, match=r"absent\.json: cannot be read"):
            DatasetCatalog.get(name)


@pytest.mark.parametrize("form", ["separated", "stuffonly"])
def test_numbers_that_label_maps_would_not_have_are_refused(
    panoptic_folder: PanopticFolder, form: str
):
    json_file, images, pngs = panoptic_folder.write()
    places = images, pngs, json_file, "", write_instances(panoptic_folder)
    register_coco_panoptic_separated("x", CLASSES, *places)
    with pytest.raises(DataError, match=r"gives category 9 the number 2 in stuff_\w+, its"):
        DatasetCatalog.get(f"x_{form}")
    numbers = {"stuff_dataset_id_to_contiguous_id": {9: 1, 5: 2}}
    register_coco_panoptic_separated("y", CLASSES | numbers, *places)
    assert len(DatasetCatalog.get(f"y_{form}")) == 2


def test_metadata_that_is_set_after_registering_counts(panoptic_folder: PanopticFolder):
    json_file, images, pngs = panoptic_folder.write()
    register_coco_panoptic_separated("x", {}, images, pngs, json_file, "", "")
    MetadataCatalog.get("x_separated").set(stuff_classes=["things", "Himmel", "Gras"])
    register_coco_panoptic("y", {}, images, pngs, json_file)
    MetadataCatalog.get("y").set(
        thing_dataset_id_to_contiguous_id={3: 0, 1: 1},
        stuff_dataset_id_to_contiguous_id={9: 2, 5: 3},
    )
    for _ in range(2):
        assert len(DatasetCatalog.get("x_separated")) == 2
        assert MetadataCatalog.get("x_separated").stuff_classes == ["things", "Himmel", "Gras"]
        segments = DatasetCatalog.get("y")[0]["segments_info"]
        assert [s["category_id"] for s in segments] == [2, 0, 1]


def test_separated_without_label_maps(panoptic_folder: PanopticFolder):
    json_file, images, pngs = panoptic_folder.write()
    places = images, pngs, json_file, "/nowhere"
    register_coco_panoptic_separated("x", {}, *places, write_instances(panoptic_folder))
    register_coco_panoptic_separated("y", {}, *places, "")
    for name, counts in (("x", [1, 0]), ("y", [2, 0])):
        records = DatasetCatalog.get(f"{name}_separated")
        assert [len(r["annotations"]) for r in records] == counts
        assert set(np.unique(read_sem_seg(records[0]))) == {0, 1, 255}
        assert MetadataCatalog.get(f"{name}_separated").stuff_classes == ["things", "sky", "grass"]
        stuff = DatasetCatalog.get(f"{name}_stuffonly")
        assert (read_sem_seg(stuff[0]) == read_sem_seg(records[0])).all()
        assert "annotations" not in stuff[0]
    assert not hasattr(MetadataCatalog.get("y_separated"), "json_file")


def test_label_maps_beside_segments_count(panoptic_folder: PanopticFolder):
    json_file, images, pngs = panoptic_folder.write()
    maps = write_maps(panoptic_folder, "a", "b")
    register_coco_panoptic_separated("x", {}, images, pngs, json_file, maps, "")
    records = DatasetCatalog.get("x_separated")
    assert (read_sem_seg(records[0]) == 2).all() and len(records[0]["annotations"]) == 2


def test_what_does_not_belong_together_is_refused(panoptic_folder: PanopticFolder):
    json_file, images, pngs = panoptic_folder.write()
    maps = write_maps(panoptic_folder, "a")
    instances = write_instances(panoptic_folder)
    register_coco_panoptic_separated("x", {}, images, pngs, json_file, maps, instances)
    with pytest.raises(DataError, match=r"b\.jpg has no label map in .*stuff"):
        DatasetCatalog.get("x_separated")
    register_coco_panoptic_separated("y", {}, images, pngs, json_file, "", instances)
    write_instances(panoptic_folder, categories=[{"id": 3, "name": "dog"}])
    with pytest.raises(DataError, match=r"has the categories \[3\], the things of .* are \[1, 3\]"):
        DatasetCatalog.get("y_separated")
    more = [*panoptic_folder.tree["images"], panoptic_folder.tree["images"][0] | {"id": 9}]
    write_instances(panoptic_folder, images=more)
    with pytest.raises(DataError, match=r"pan\.json: image 9 of .* has no annotation"):
        DatasetCatalog.get("y_separated")


def test_load_sem_seg(panoptic_folder: PanopticFolder):
    maps = write_maps(panoptic_folder, "a", "b")
    assert len(load_sem_seg(maps, panoptic_folder.images)) == 2
    with pytest.raises(DataError, match="no label map"):
        load_sem_seg(maps, panoptic_folder.images, image_ext="png")
