from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdet.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from segdet.data.demo import CATEGORIES, make_demo_dataset
from segdet.data.demo_scene import STUFF, THINGS
from segdet.data.image_io import read_labels
from segdet.data.rle import decode_rle
from segdet.data.sem_seg import read_sem_seg
from segdet.structures import polygons_to_bitmask

COUNTS = {"train": 10, "val": 2}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("datasets") / "demo"
    return make_demo_dataset(folder, num_train=10, num_val=2, seed=3)


def read(demo: Path, name: str) -> dict:
    return json.loads((demo / "annotations" / name).read_text())


def files_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_same_seed_same_files(demo: Path, tmp_path: Path):
    again = make_demo_dataset(tmp_path / "again", num_train=10, num_val=2, seed=3)
    assert files_of(again) == files_of(demo)
    other = files_of(make_demo_dataset(tmp_path / "other", num_train=2, num_val=0, seed=4))
    assert other["train/000001.jpg"] != files_of(demo)["train/000001.jpg"]
    fewer = files_of(make_demo_dataset(tmp_path / "fewer", num_train=1, num_val=1, seed=3))
    for name in ("train/000001.jpg", "val/000001.jpg"):
        assert fewer[name] == files_of(demo)[name]


def test_built_in_names_read_it(demo: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    monkeypatch.setenv("SEGDET_DATASETS", str(demo.parent))
    for split, count in COUNTS.items():
        records = DatasetCatalog.get(f"demo_{split}")
        assert len(records) == count and caplog.records == []
        assert MetadataCatalog.get(f"demo_{split}").thing_classes == list(THINGS)
        mapper = DatasetMapper(True, augmentations=[], image_format="RGB", use_instance_mask=True)
        for record in records:
            assert len(mapper(record)["instances"]) == sum(
                not a["iscrowd"] for a in record["annotations"]
            )


def test_built_in_panoptic_and_semantic_names_read_it(demo: Path, monkeypatch, caplog):
    monkeypatch.setenv("SEGDET_DATASETS", str(demo.parent))
    for split, count in COUNTS.items():
        annotations = demo / "annotations"
        by_path = f"{annotations}/panoptic_{split}.json:{demo}/{split}"
        records = DatasetCatalog.get(f"demo_panoptic_{split}")
        segments = DatasetCatalog.get(by_path)
        semantic = DatasetCatalog.get(f"demo_sem_seg_{split}")
        assert len(records) == len(segments) == len(semantic) == count and caplog.records == []
        assert MetadataCatalog.get(f"demo_panoptic_{split}").stuff_classes == ["things", *STUFF]
        assert MetadataCatalog.get(by_path).thing_classes == list(THINGS)
        assert MetadataCatalog.get(f"demo_sem_seg_{split}").stuff_classes == [*THINGS, *STUFF]
        for record, other, labelled in zip(records, segments, semantic, strict=True):
            stem = Path(record["file_name"]).stem
            prepared = read_labels(annotations / f"stuff_{split}" / f"{stem}.png")
            assert (read_sem_seg(record) == prepared).all()
            assert (read_sem_seg(other) == prepared).all()
            found = read_sem_seg(labelled)
            assert ((found < len(THINGS)) == (prepared == 0)).all()
            kinds = [
                sorted((a["category_id"], a["iscrowd"]) for a in one["annotations"])
                for one in (record, other)
            ]
            assert kinds[0] == kinds[1], "objects from the instance json and from segments"


def test_has_every_kind_of_annotation(demo: Path):
    rows = read(demo, "instances_train.json")["annotations"]
    assert {row["category_id"] for row in rows} == set(range(1, len(THINGS) + 1))
    kinds = {type(row["segmentation"]) for row in rows if not row["iscrowd"]}
    assert kinds == {list, dict}
    assert any(row["iscrowd"] and isinstance(row["segmentation"]["counts"], list) for row in rows)
    with_objects = {row["image_id"] for row in rows}
    assert len(with_objects) == 9, "one image is a negative"


def mask_of(row: dict, height: int, width: int) -> np.ndarray:
    segmentation = row["segmentation"]
    if isinstance(segmentation, dict):
        return decode_rle(segmentation).astype(bool)
    return polygons_to_bitmask([np.array(p) for p in segmentation], height, width)


def test_annotations_agree_with_each_other(demo: Path):
    instances, panoptic = (read(demo, f"{k}_train.json") for k in ("instances", "panoptic"))
    assert panoptic["categories"] == CATEGORIES and len(CATEGORIES) == len(THINGS) + len(STUFF)
    for image, row in zip(panoptic["images"], panoptic["annotations"], strict=True):
        height, width = image["height"], image["width"]
        picture = Image.open(demo / "train" / image["file_name"])
        assert picture.size == (width, height)

        folder = demo / "annotations"
        rgb = np.asarray(Image.open(folder / "panoptic_train" / row["file_name"]), np.int64)
        ids = rgb @ [1, 256, 65536]
        segments = {segment["id"]: segment for segment in row["segments_info"]}
        assert set(np.unique(ids)) == set(segments)
        semantic = np.asarray(Image.open(folder / "semantic_train" / row["file_name"]))
        stuff = np.asarray(Image.open(folder / "stuff_train" / row["file_name"]))
        for one in segments.values():
            mask = ids == one["id"]
            assert one["area"] == mask.sum()
            assert (semantic[mask] == one["category_id"] - 1).all()
            assert (stuff[mask] == max(one["category_id"] - len(THINGS), 0)).all()

        things = [s for s in segments.values() if s["category_id"] <= len(THINGS)]
        rows = [a for a in instances["annotations"] if a["image_id"] == image["id"]]
        assert len(things) == len(rows)
        for thing, one in zip(sorted(things, key=lambda s: s["id"] % 1000), rows, strict=True):
            assert thing["category_id"] == one["category_id"]
            assert thing["iscrowd"] == one["iscrowd"] and thing["bbox"] == one["bbox"]
            a, b = ids == thing["id"], mask_of(one, height, width)
            assert (a & b).sum() / (a | b).sum() > 0.93
