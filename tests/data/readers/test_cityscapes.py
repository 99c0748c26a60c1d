from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdet.data import DatasetCatalog
from segdet.data.datasets import load_cityscapes_instances, load_cityscapes_semantic
from segdet.data.readers.cityscapes_labels import LABELS, THINGS, TRAINED
from segdet.data.rle import decode_rle
from segdet.errors import DataError
from segdet.structures import BoxMode, polygon_area


def rectangle(x0: int, y0: int, x1: int, y1: int) -> list[list[int]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def write_city(root: Path, objects: list[dict], ids: np.ndarray | None = None) -> tuple[str, str]:
    """One picture of 60 x 40 with its annotation; the two folders."""
    images, truth = root / "leftImg8bit/val/x", root / "gtFine/val/x"
    images.mkdir(parents=True)
    truth.mkdir(parents=True)
    Image.new("RGB", (60, 40)).save(images / "x_0_leftImg8bit.png")
    tree = {"imgHeight": 40, "imgWidth": 60, "objects": objects}
    (truth / "x_0_gtFine_polygons.json").write_text(json.dumps(tree))
    if ids is not None:
        Image.fromarray(ids).save(truth / "x_0_gtFine_instanceIds.png")
    return str(images.parent), str(truth.parent)


def test_labels_are_consistent():
    assert [label.id for label in LABELS] == list(range(34))
    assert [label.train_id for label in TRAINED] == list(range(19))
    assert [label.name for label in THINGS] == [
        *("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
    ]


def test_polygons_show_what_is_visible(tmp_path: Path):
    objects = [
        {"label": "road", "polygon": rectangle(0, 0, 59, 39)},
        {"label": "car", "polygon": rectangle(10, 10, 29, 19)},  # 20 x 10 pixels
        {"label": "persongroup", "polygon": rectangle(40, 10, 44, 14)},
        {"label": "bicycle", "polygon": rectangle(1, 1, 2, 2), "deleted": 1},
        {"label": "license plate", "polygon": rectangle(11, 11, 12, 12)},
        {"label": "pole", "polygon": rectangle(20, 0, 21, 30)},  # two columns, cuts the car
        {"label": "trailer", "polygon": rectangle(41, 11, 42, 12)},  # ignored, but in front
    ]
    record = load_cityscapes_instances(*write_city(tmp_path, objects))[0]
    assert record["image_id"] == "x_0_leftImg8bit.png"
    assert (record["height"], record["width"]) == (40, 60)
    group, car = record["annotations"]
    assert group["category_id"] == 0 and group["iscrowd"] == 1
    assert car["category_id"] == 2 and car["iscrowd"] == 0
    assert car["bbox"] == [10, 10, 30, 20] and car["bbox_mode"] == BoxMode.XYXY_ABS
    areas = sorted(polygon_area(np.array(part)) for part in car["segmentation"])
    # Corners are round: each loses less than 0.06 pixel.
    assert areas == pytest.approx([80, 100], abs=0.25)
    assert len(group["segmentation"]) == 1  # the hole is lost


def test_pictures_of_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ids = np.full((40, 60), 7, np.int32)
    ids[10:20, 10:30] = 26_000
    ids[30:35, 5:9] = 26_001
    ids[0:4, 40:50] = 24  # a group of people
    ids[5, 40:50] = 33_000  # a line
    ids[20:25, 40:45] = 29_000  # a caravan, which is not evaluated
    folders = write_city(tmp_path, [], ids.astype(np.uint16))
    rows = load_cityscapes_instances(*folders, from_json=False, to_polygons=False)[0]["annotations"]
    assert [(r["category_id"], r["iscrowd"]) for r in rows] == [(0, 1), (2, 0), (2, 0)]
    assert rows[1]["bbox"] == [10, 10, 29, 19]
    assert (decode_rle(rows[1]["segmentation"]) == (ids == 26_000)).all()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DataError, match="need OpenCV"):
        load_cityscapes_instances(*folders, from_json=False)
    monkeypatch.undo()
    pytest.importorskip("cv2")
    rows = load_cityscapes_instances(*folders, from_json=False)[0]["annotations"]
    assert polygon_area(np.array(rows[2]["segmentation"][0], float)) == 3 * 4  # between centres


@pytest.mark.parametrize(
    "row, message",
    [
        ({"label": "cart", "polygon": rectangle(0, 0, 3, 3)}, "label 'cart' is no class"),
        ({"label": "car", "polygon": [[1, 2]]}, "polygon must be points"),
        ({"label": "car"}, "polygon must be points"),
        ({"polygon": rectangle(0, 0, 3, 3)}, "label must be text, is None"),
    ],
)
def test_broken_objects_are_named(tmp_path: Path, row: dict, message: str):
    with pytest.raises(DataError, match=rf"polygons\.json: objects\[0\]: {message}"):
        load_cityscapes_instances(*write_city(tmp_path, [row]))


def test_missing_files_are_named(tmp_path: Path):
    with pytest.raises(DataError, match="has no CITY/"):
        load_cityscapes_instances(tmp_path, tmp_path)
    images, truth = write_city(tmp_path, [])
    with pytest.raises(DataError, match=r"labelTrainIds\.png does not exist; make these files"):
        load_cityscapes_semantic(images, truth)
    with pytest.raises(DataError, match=r"instanceIds\.png does not exist"):
        load_cityscapes_instances(images, truth, from_json=False)
    Path(truth, "x/x_0_gtFine_polygons.json").write_text("{}")
    with pytest.raises(DataError, match="imgHeight is not so"):
        load_cityscapes_instances(images, truth)
    Path(truth, "x/x_0_gtFine_labelTrainIds.png").touch()
    record = load_cityscapes_semantic(images, truth)[0]
    assert record["sem_seg_file_name"].endswith("x_0_gtFine_labelTrainIds.png")
    assert (record["height"], record["width"]) == (40, 60)


def test_the_sample_layout(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "cityscapes").symlink_to(shared_data / "cityscapes_layout")
    monkeypatch.setenv("SEGDET_DATASETS", str(tmp_path))
    train = DatasetCatalog.get("cityscapes_fine_instance_seg_train")
    val = DatasetCatalog.get("cityscapes_fine_instance_seg_val")
    assert [len(r["annotations"]) for r in val] == [8, 5] and len(train) == 3
    assert all(Path(r["file_name"]).is_file() for r in train + val)
