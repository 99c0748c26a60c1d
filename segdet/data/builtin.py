"""The names that need no registration: official COCO splits, the sample sets, `JSON:FOLDER`.

Files are looked for under the folder that the environment variable SEGDET_DATASETS names, else
DETECTRON2_DATASETS, else ./datasets.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class CocoFiles:
    """Where a data set lies, relative to `datasets_root()` unless absolute."""

    json_file: str
    image_root: str
    is_coco: bool = False  # has COCO's 80 classes, which are then known without the file

    def metadata(self) -> dict[str, Any]:
        """What is known before the file is read."""
        root = datasets_root()
        known: dict[str, Any] = {
            "json_file": str(root / self.json_file),
            "image_root": str(root / self.image_root),
            "evaluator_type": "coco",
        }
        if self.is_coco:
            known["thing_dataset_id_to_contiguous_id"] = {
                row[0]: k for k, row in enumerate(COCO_THINGS)
            }
            known["thing_classes"] = [row[1] for row in COCO_THINGS]
            known["thing_colors"] = [list(row[2]) for row in COCO_THINGS]
        return known


def datasets_root() -> Path:
    """The folder that built-in data sets are under."""
    variables = ("SEGDET_DATASETS", "DETECTRON2_DATASETS")
    named = (os.environ[name] for name in variables if os.environ.get(name))
    return Path(next(named, "datasets")).expanduser()


def find_builtin(name: str) -> CocoFiles | None:
    """The files of a built-in name or of `FILE.json:IMAGE_FOLDER`; None for any other name."""
    if name in BUILTIN:
        return BUILTIN[name]
    file, separator, folder = name.partition(".json:")
    if not separator:
        return None
    return CocoFiles(os.path.abspath(f"{file}.json"), os.path.abspath(folder))


def _coco(year: int, split: str, images: str, kind: str = "instances") -> CocoFiles:
    return CocoFiles(f"coco/annotations/{kind}_{split}.json", f"coco/{images}{year}", True)


def _sample(name: str, split: str) -> CocoFiles:
    return CocoFiles(f"{name}/annotations/instances_{split}.json", f"{name}/{split}")


BUILTIN: dict[str, CocoFiles] = {
    "coco_2014_train": _coco(2014, "train2014", "train"),
    "coco_2014_val": _coco(2014, "val2014", "val"),
    "coco_2014_minival": _coco(2014, "minival2014", "val"),
    "coco_2014_valminusminival": _coco(2014, "valminusminival2014", "val"),
    "coco_2017_train": _coco(2017, "train2017", "train"),
    "coco_2017_val": _coco(2017, "val2017", "val"),
    "coco_2017_val_100": _coco(2017, "val2017_100", "val"),
    "coco_2017_test": _coco(2017, "test2017", "test", "image_info"),
    "coco_2017_test-dev": _coco(2017, "test-dev2017", "test", "image_info"),
    **{
        f"{name}_{split}": _sample(name, split)
        for name in ("demo", "fruits_nuts", "nuclei", "coco_mini")
        for split in ("train", "val")
    },
}

# Source: cocodataset/panopticapi, panoptic_coco_categories.json (the things): id, name, RGB.
COCO_THINGS: tuple[tuple[int, str, tuple[int, int, int]], ...] = (
    (1, "person", (220, 20, 60)),
    (2, "bicycle", (119, 11, 32)),
    (3, "car", (0, 0, 142)),
    (4, "motorcycle", (0, 0, 230)),
    (5, "airplane", (106, 0, 228)),
    (6, "bus", (0, 60, 100)),
    (7, "train", (0, 80, 100)),
    (8, "truck", (0, 0, 70)),
    (9, "boat", (0, 0, 192)),
    (10, "traffic light", (250, 170, 30)),
    (11, "fire hydrant", (100, 170, 30)),
    (13, "stop sign", (220, 220, 0)),
    (14, "parking meter", (175, 116, 175)),
    (15, "bench", (250, 0, 30)),
    (16, "bird", (165, 42, 42)),
    (17, "cat", (255, 77, 255)),
    (18, "dog", (0, 226, 252)),
    (19, "horse", (182, 182, 255)),
    (20, "sheep", (0, 82, 0)),
    (21, "cow", (120, 166, 157)),
    (22, "elephant", (110, 76, 0)),
    (23, "bear", (174, 57, 255)),
    (24, "zebra", (199, 100, 0)),
    (25, "giraffe", (72, 0, 118)),
    (27, "backpack", (255, 179, 240)),
    (28, "umbrella", (0, 125, 92)),
    (31, "handbag", (209, 0, 151)),
    (32, "tie", (188, 208, 182)),
    (33, "suitcase", (0, 220, 176)),
    (34, "frisbee", (255, 99, 164)),
    (35, "skis", (92, 0, 73)),
    (36, "snowboard", (133, 129, 255)),
    (37, "sports ball", (78, 180, 255)),
    (38, "kite", (0, 228, 0)),
    (39, "baseball bat", (174, 255, 243)),
    (40, "baseball glove", (45, 89, 255)),
    (41, "skateboard", (134, 134, 103)),
    (42, "surfboard", (145, 148, 174)),
    (43, "tennis racket", (255, 208, 186)),
    (44, "bottle", (197, 226, 255)),
    (46, "wine glass", (171, 134, 1)),
    (47, "cup", (109, 63, 54)),
    (48, "fork", (207, 138, 255)),
    (49, "knife", (151, 0, 95)),
    (50, "spoon", (9, 80, 61)),
    (51, "bowl", (84, 105, 51)),
    (52, "banana", (74, 65, 105)),
    (53, "apple", (166, 196, 102)),
    (54, "sandwich", (208, 195, 210)),
    (55, "orange", (255, 109, 65)),
    (56, "broccoli", (0, 143, 149)),
    (57, "carrot", (179, 0, 194)),
    (58, "hot dog", (209, 99, 106)),
    (59, "pizza", (5, 121, 0)),
    (60, "donut", (227, 255, 205)),
    (61, "cake", (147, 186, 208)),
    (62, "chair", (153, 69, 1)),
    (63, "couch", (3, 95, 161)),
    (64, "potted plant", (163, 255, 0)),
    (65, "bed", (119, 0, 170)),
    (67, "dining table", (0, 182, 199)),
    (70, "toilet", (0, 165, 120)),
    (72, "tv", (183, 130, 88)),
    (73, "laptop", (95, 32, 0)),
    (74, "mouse", (130, 114, 135)),
    (75, "remote", (110, 129, 133)),
    (76, "keyboard", (166, 74, 118)),
    (77, "cell phone", (219, 142, 185)),
    (78, "microwave", (79, 210, 114)),
    (79, "oven", (178, 90, 62)),
    (80, "toaster", (65, 70, 15)),
    (81, "sink", (127, 167, 115)),
    (82, "refrigerator", (59, 105, 106)),
    (84, "book", (142, 108, 45)),
    (85, "clock", (196, 172, 0)),
    (86, "vase", (95, 54, 80)),
    (87, "scissors", (128, 76, 255)),
    (88, "teddy bear", (201, 57, 1)),
    (89, "hair drier", (246, 0, 122)),
    (90, "toothbrush", (191, 162, 208)),
)
