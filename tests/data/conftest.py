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
                "ROI_HEADS": {"NUM_CLASSES": 80},
                "SEM_SEG_HEAD": {"NUM_CLASSES": 54, "IGNORE_VALUE": 255},
                "ROI_KEYPOINT_HEAD": {"MIN_KEYPOINTS_PER_IMAGE": 1},
            },
            "SOLVER": {"IMS_PER_BATCH": 2},
            "SEED": 5,
        }
    )
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg
