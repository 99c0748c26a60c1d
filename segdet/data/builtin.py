"""The names that need no registration: official data sets, the sample sets, `JSON:FOLDER`.

Files are looked for under the folder that the environment variable SEGDET_DATASETS names, else
DETECTRON2_DATASETS, else ./datasets.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from segdet.data.readers.cityscapes import load_cityscapes_instances, load_cityscapes_semantic
from segdet.data.readers.cityscapes_labels import THINGS, TRAINED
from segdet.data.readers.coco_json import CocoFile, read_coco_json
from segdet.data.readers.lvis_json import read_lvis_json
from segdet.data.readers.pascal_voc import CLASS_NAMES, load_voc_instances


class BuiltinFiles(Protocol):
    """A data set that needs no registration."""

    def metadata(self) -> dict[str, Any]:
        """What is known before a file is read."""
        ...

    def read(self) -> CocoFile:
        """The records, and what only the files tell."""
        ...


@dataclass(frozen=True)
class CocoFiles:
    """A COCO json and its images; relative to `datasets_root()` unless absolute."""

    json_file: str
    image_root: str
    kind: str = ""  # "instances" or "keypoints" of COCO: then known without the file

    def metadata(self) -> dict[str, Any]:
        """What is known before the file is read."""
        known = _places(json_file=self.json_file, image_root=self.image_root)
        return {**known, "evaluator_type": "coco", **_KNOWN_OF_COCO[self.kind]()}

    def read(self) -> CocoFile:
        """The records and classes."""
        return read_coco_json(datasets_root() / self.json_file, datasets_root() / self.image_root)


@dataclass(frozen=True)
class LvisFiles:
    """An LVIS json on COCO's images; relative to `datasets_root()`."""

    json_file: str
    image_root: str = "coco"

    def metadata(self) -> dict[str, Any]:
        """What is known before the file is read."""
        known = _places(json_file=self.json_file, image_root=self.image_root)
        return {**known, "evaluator_type": "lvis"}

    def read(self) -> CocoFile:
        """The records, classes and how often each occurs."""
        return read_lvis_json(datasets_root() / self.json_file, datasets_root() / self.image_root)


@dataclass(frozen=True)
class VocFolder:
    """A split of Pascal VOC; `dirname` is relative to `datasets_root()`."""

    dirname: str
    split: str
    year: int

    def metadata(self) -> dict[str, Any]:
        """All that is known."""
        return {
            **_places(dirname=self.dirname),
            "split": self.split,
            "year": self.year,
            "thing_classes": list(CLASS_NAMES),
            "evaluator_type": "pascal_voc",
        }

    def read(self) -> CocoFile:
        """The records."""
        records = load_voc_instances(datasets_root() / self.dirname, self.split)
        return CocoFile(records=records, metadata={})


@dataclass(frozen=True)
class CityscapesFolder:
    """A split of Cityscapes, relative to `datasets_root()`."""

    split: str
    task: str  # "instance" or "sem_seg"

    def metadata(self) -> dict[str, Any]:
        """All that is known."""
        known = {
            **_places(
                image_dir=f"cityscapes/leftImg8bit/{self.split}",
                gt_dir=f"cityscapes/gtFine/{self.split}",
            ),
            "thing_classes": [label.name for label in THINGS],
            "stuff_classes": [label.name for label in TRAINED],
            "evaluator_type": f"cityscapes_{self.task}",
        }
        return known if self.task == "instance" else {**known, "ignore_label": 255}

    def read(self) -> CocoFile:
        """The records."""
        load = load_cityscapes_instances if self.task == "instance" else load_cityscapes_semantic
        places = self.metadata()
        return CocoFile(records=load(places["image_dir"], places["gt_dir"]), metadata={})


def datasets_root() -> Path:
    """The folder that built-in data sets are under."""
    variables = ("SEGDET_DATASETS", "DETECTRON2_DATASETS")
    named = (os.environ[name] for name in variables if os.environ.get(name))
    return Path(next(named, "datasets")).expanduser()


def _places(**paths: str) -> dict[str, str]:
    return {key: str(datasets_root() / path) for key, path in paths.items()}


def find_builtin(name: str) -> BuiltinFiles | None:
    """The files of a built-in name or of `FILE.json:IMAGE_FOLDER`; None for any other name."""
    if name in BUILTIN:
        return BUILTIN[name]
    file, separator, folder = name.partition(".json:")
    if not separator:
        return None
    return CocoFiles(os.path.abspath(f"{file}.json"), os.path.abspath(folder))


def coco_instances_metadata() -> dict[str, Any]:
    """COCO's 80 classes."""
    return {
        "thing_dataset_id_to_contiguous_id": {row[0]: k for k, row in enumerate(COCO_THINGS)},
        "thing_classes": [row[1] for row in COCO_THINGS],
        "thing_colors": [list(row[2]) for row in COCO_THINGS],
    }


def coco_keypoints_metadata() -> dict[str, Any]:
    """COCO's people and their 17 points."""
    return {
        "thing_classes": ["person"],
        "keypoint_names": list(COCO_KEYPOINTS),
        "keypoint_flip_map": [
            (name, name.replace("left", "right")) for name in COCO_KEYPOINTS if "left" in name
        ],
        "keypoint_connection_rules": [(*pair, _limb_color(pair)) for pair in COCO_LIMBS],
    }


def _limb_color(names: tuple[str, str]) -> tuple[int, int, int]:
    sides = {name.partition("_")[0] for name in names}
    return (255, 214, 90) if len(sides) > 1 else _SIDE_COLORS[sides.pop()]


_SIDE_COLORS = {"left": (64, 196, 255), "right": (255, 112, 67)}
_KNOWN_OF_COCO = {
    "": dict,
    "instances": coco_instances_metadata,
    "keypoints": coco_keypoints_metadata,
}


def _coco(year: int, split: str, images: str, file: str = "instances") -> CocoFiles:
    kind = "keypoints" if file == "person_keypoints" else "instances"
    return CocoFiles(f"coco/annotations/{file}_{split}.json", f"coco/{images}{year}", kind)


_COCO_SPLITS = {
    "2014_train": (2014, "train2014", "train"),
    "2014_val": (2014, "val2014", "val"),
    "2014_minival": (2014, "minival2014", "val"),
    "2014_valminusminival": (2014, "valminusminival2014", "val"),
    "2017_train": (2017, "train2017", "train"),
    "2017_val": (2017, "val2017", "val"),
    "2017_val_100": (2017, "val2017_100", "val"),
}
_LVIS = {
    "lvis_v1": ("train", "val"),
    "lvis_v0.5": ("train", "val", "val_rand_100"),
}
_LVIS_TESTS = {
    "lvis_v1_test_dev": "lvis_v1_image_info_test_dev",
    "lvis_v1_test_challenge": "lvis_v1_image_info_test_challenge",
    "lvis_v0.5_test": "lvis_v0.5_image_info_test",
    "lvis_v0.5_train_cocofied": "lvis_v0.5_train_cocofied",
    "lvis_v0.5_val_cocofied": "lvis_v0.5_val_cocofied",
}

BUILTIN: dict[str, BuiltinFiles] = {
    **{f"coco_{name}": _coco(*parts) for name, parts in _COCO_SPLITS.items()},
    "coco_2017_test": _coco(2017, "test2017", "test", "image_info"),
    "coco_2017_test-dev": _coco(2017, "test-dev2017", "test", "image_info"),
    **{
        f"keypoints_coco_{name}": _coco(*parts, "person_keypoints")
        for name, parts in _COCO_SPLITS.items()
    },
    **{
        f"{version}_{split}": LvisFiles(f"lvis/{version}_{split}.json")
        for version, splits in _LVIS.items()
        for split in splits
    },
    **{name: LvisFiles(f"lvis/{file}.json") for name, file in _LVIS_TESTS.items()},
    **{
        f"voc_{year}_{split}": VocFolder(f"VOC{year}", split, year)
        for year in (2007, 2012)
        for split in ("trainval", "train", "val", "test")
        if (year, split) != (2012, "test")  # whose annotations are not public
    },
    **{
        f"cityscapes_fine_{task}_{split}": CityscapesFolder(split, kind)
        for task, kind in (("instance_seg", "instance"), ("sem_seg", "sem_seg"))
        for split in ("train", "val", "test")
    },
}
SAMPLES: dict[str, BuiltinFiles] = {
    f"{name}_{split}": CocoFiles(f"{name}/annotations/instances_{split}.json", f"{name}/{split}")
    for name in ("demo", "fruits_nuts", "nuclei", "coco_mini")
    for split in ("train", "val")
}
BUILTIN |= SAMPLES

# Source: COCO's person_keypoints files, in their order.
COCO_KEYPOINTS = (
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear"),
    *("left_shoulder", "right_shoulder", "left_elbow", "right_elbow"),
    *("left_wrist", "right_wrist", "left_hip", "right_hip"),
    *("left_knee", "right_knee", "left_ankle", "right_ankle"),
)

COCO_LIMBS = (
    ("left_ear", "left_eye"),
    ("right_ear", "right_eye"),
    ("left_eye", "nose"),
    ("nose", "right_eye"),
    ("left_shoulder", "right_shoulder"),
    ("left_shoulder", "left_elbow"),
    ("right_shoulder", "right_elbow"),
    ("left_elbow", "left_wrist"),
    ("right_elbow", "right_wrist"),
    ("left_hip", "right_hip"),
    ("left_hip", "left_knee"),
    ("right_hip", "right_knee"),
    ("left_knee", "left_ankle"),
    ("right_knee", "right_ankle"),
)

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
