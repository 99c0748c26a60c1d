from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segdet.config.node import CfgNode
from segdet.config.reader import defaults_of
from segdet.data.build import DataLoaderConfig, DatasetsConfig
from segdet.data.catalog import DatasetCatalog, MetadataCatalog
from segdet.data.mapper import InputConfig
from segdet.data.segment_ids import write_segment_ids


@pytest.fixture(autouse=True)
def _own_catalogs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone afterwards."""
    monkeypatch.setattr(DatasetCatalog, "_loaders", {})
    monkeypatch.setattr(MetadataCatalog, "_metadata", {})


@pytest.fixture
def nasty(shared_data: Path) -> Path:
    return shared_data / "nasty"


SQUARE = [20, 10, 60, 10, 60, 40, 20, 40]  # 40 wide, 30 high


def annotation(**changes: Any) -> dict[str, Any]:
    row = {"id": 1, "image_id": 1, "category_id": 3, "iscrowd": 0}
    row |= {"bbox": [20, 10, 40, 30], "area": 1200, "segmentation": [SQUARE]}
    row |= changes
    return {key: value for key, value in row.items() if value is not ...}


class CocoFolder:
    """A small COCO data set on disk: `image_count` grey images of 80 x 60, their annotations."""

    def __init__(self, root: Path, image_count: int = 2) -> None:
        self.json, self.images = root / "instances.json", root / "images"
        self.images.mkdir()
        self.tree: dict[str, Any] = {
            "images": [
                {"id": i + 1, "file_name": f"{i}.png", "width": 80, "height": 60}
                for i in range(image_count)
            ],
            "categories": [{"id": 3, "name": "cat"}, {"id": 1, "name": "dog"}],
            "annotations": [annotation()],
        }
        for i in range(image_count):
            grey = np.full((60, 80, 3), 10 * i, np.uint8)
            Image.fromarray(grey).save(self.images / f"{i}.png")

    def write(self) -> tuple[Path, Path]:
        self.json.write_text(json.dumps(self.tree))
        return self.json, self.images


@pytest.fixture
def coco_folder(tmp_path: Path) -> CocoFolder:
    return CocoFolder(tmp_path)


def a_config() -> CfgNode:
    """The keys that the data part reads, with small values."""
    cfg = CfgNode(
        {
            "INPUT": defaults_of(InputConfig),
            "DATASETS": defaults_of(DatasetsConfig),
            "DATALOADER": defaults_of(DataLoaderConfig),
            "MODEL": {
                "MASK_ON": False,
                "KEYPOINT_ON": False,
                "LOAD_PROPOSALS": False,
                "META_ARCHITECTURE": "GeneralizedRCNN",
                "RETINANET": {"NUM_CLASSES": 80},
                "FCOS": {"NUM_CLASSES": 80},
                "BASIS_MODULE": {"LOSS_ON": False},
                "PANOPTIC_FPN": {"COMBINE": {"ENABLED": False}},
                "YOLACT": {"NUM_CLASSES": 80},
                "ROI_HEADS": {"NAME": "StandardROIHeads", "NUM_CLASSES": 80},
                "SEM_SEG_HEAD": {"NUM_CLASSES": 54, "IGNORE_VALUE": 255},
                "ROI_KEYPOINT_HEAD": {"MIN_KEYPOINTS_PER_IMAGE": 1},
            },
            "SOLVER": {"IMS_PER_BATCH": 2},
            "SEED": 5,
        }
    )
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg


class PanopticFolder:
    """A small COCO panoptic data set, 80 x 60: sky, a dog and a crowd of cats; and all void."""

    def __init__(self, root: Path) -> None:
        self.json, self.images, self.pngs = root / "pan.json", root / "images", root / "pan"
        for folder in (self.images, self.pngs):
            folder.mkdir()
        ids = np.zeros((60, 80), np.int64)
        ids[:30], ids[40:50, 10:30], ids[50:, 60:] = 300, 70_000, 7
        rows = [
            {"id": 300, "category_id": 9, "iscrowd": 0, "bbox": [0, 0, 80, 30], "area": 2400},
            {"id": 70_000, "category_id": 3, "iscrowd": 0, "bbox": [10, 40, 20, 10], "area": 200},
            {"id": 7, "category_id": 1, "iscrowd": 1, "bbox": [60, 50, 20, 10], "area": 200},
        ]
        names = ["a", "b"]
        self.tree: dict[str, Any] = {
            "images": [
                {"id": i, "file_name": f"{name}.jpg", "width": 80, "height": 60}
                for i, name in enumerate(names, 1)
            ],
            "categories": [
                {"id": 9, "name": "sky-other-merged", "isthing": 0, "color": [1, 2, 3]},
                {"id": 3, "name": "dog", "isthing": 1, "color": [4, 5, 6]},
                {"id": 5, "name": "grass", "isthing": 0, "color": [7, 8, 9]},
                {"id": 1, "name": "cat", "isthing": 1, "color": [10, 11, 12]},
            ],
            "annotations": [
                {"image_id": 1, "file_name": "a.png", "segments_info": rows},
                {"image_id": 2, "file_name": "b.png", "segments_info": []},
            ],
        }
        for name, one in zip(names, (ids, np.zeros_like(ids)), strict=True):
            Image.new("RGB", (80, 60)).save(self.images / f"{name}.jpg")
            write_segment_ids(self.pngs / f"{name}.png", one)
        self.ids = ids

    def write(self) -> tuple[Path, Path, Path]:
        """The three places, as `read_panoptic_json` takes them."""
        self.json.write_text(json.dumps(self.tree))
        return self.json, self.images, self.pngs

    @property
    def segments(self) -> list[dict[str, Any]]:
        """The first image's `segments_info` in the file."""
        return self.tree["annotations"][0]["segments_info"]


@pytest.fixture
def panoptic_folder(tmp_path: Path) -> PanopticFolder:
    return PanopticFolder(tmp_path)
