from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdet.data.readers.sem_seg_folder import read_class_names, read_sem_seg_folder
from segdet.errors import DataError


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 6), np.uint8)).save(folder / name)
    return folder


def test_pairs_by_path_without_suffix(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    images = write(tmp_path / "images", "x/1.jpg", "y/1.JPG", "2.png", "lone.jpg")
    labels = write(tmp_path / "labels", "x/1.png", "y/1.png", "2.png")
    (images / "readme.txt").write_text("")
    with caplog.at_level(logging.WARNING, "segdet.data"):
        records = read_sem_seg_folder(labels, images)
    assert records == [
        {"file_name": str(images / one), "sem_seg_file_name": str(labels / other)}
        for one, other in (("2.png", "2.png"), ("x/1.jpg", "x/1.png"), ("y/1.JPG", "y/1.png"))
    ]
    assert "images: left out 1 files without a label map: lone" in caplog.text


def test_suffixes_choose(tmp_path: Path):
    images = write(tmp_path / "images", "1.jpg", "1.png")
    labels = write(tmp_path / "labels", "1_gt.png")
    assert len(read_sem_seg_folder(images, images, image_ext="jpg", gt_ext="png")) == 1
    with pytest.raises(DataError, match=r"1\.jpg and .*1\.png have the same name"):
        read_sem_seg_folder(labels, images)
    with pytest.raises(DataError, match=r"no label map in .* \(1 and 1 files\)"):
        read_sem_seg_folder(labels, images, image_ext="jpg")
    with pytest.raises(DataError, match="nowhere is no folder"):
        read_sem_seg_folder(tmp_path / "nowhere", images, image_ext="jpg")


def test_class_names(tmp_path: Path):
    text = tmp_path / "classes.txt"
    text.write_text("road\n größe \n\n", "utf-8")
    assert read_class_names(text) == {"stuff_classes": ["road", "größe"]}
    rows = [{"id": 4, "name": "b", "color": [1, 2, 3]}, {"id": 2, "name": "a", "color": [4, 5, 6]}]
    tree = tmp_path / "some.json"
    tree.write_text(json.dumps({"categories": rows}))
    assert read_class_names(tree) == {
        "stuff_classes": ["a", "b"],
        "stuff_colors": [[4, 5, 6], [1, 2, 3]],
    }
    text.write_text("\n")
    with pytest.raises(DataError, match=r"classes\.txt: holds no names"):
        read_class_names(text)
    with pytest.raises(DataError, match=r"absent\.txt: cannot be read .*; it names the classes"):
        read_class_names(tmp_path / "absent.txt")
    tree.write_text(json.dumps({"categories": [{"id": 1}]}))
    with pytest.raises(DataError, match=r"some\.json: category 1: name must be text, is None"):
        read_class_names(tree)
