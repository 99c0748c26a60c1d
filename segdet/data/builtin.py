"""The names that need no registration: official and sample data sets, and files by their paths.

Files are looked for under the folder that the environment variable SEGDET_DATASETS names, else
DETECTRON2_DATASETS, else ./datasets.
"""

from __future__ import annotations

import mmap
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from segdet.data.coco_classes import (
    coco_instances_metadata,
    coco_keypoints_metadata,
    coco_panoptic_categories,
)
from segdet.data.readers.cityscapes import load_cityscapes_instances, load_cityscapes_semantic
from segdet.data.readers.cityscapes_labels import THINGS, TRAINED
from segdet.data.readers.cityscapes_panoptic import (
    cityscapes_categories,
    load_cityscapes_panoptic,
)
from segdet.data.readers.coco_json import CocoFile, read_coco_json
from segdet.data.readers.lvis_json import read_lvis_json
from segdet.data.readers.panoptic_json import (
    read_panoptic_json,
    separated_metadata,
    standard_metadata,
)
from segdet.data.readers.panoptic_separated import read_panoptic_separated, read_stuff_only
from segdet.data.readers.pascal_voc import CLASS_NAMES, load_voc_instances
from segdet.data.readers.sbd import load_sbd_instances
from segdet.data.readers.sem_seg_folder import read_class_names, read_sem_seg_folder
from segdet.data.sem_seg import IGNORE_LABEL
from segdet.data.tar_shards import is_address


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
        return read_coco_json(below_root(self.json_file), below_root(self.image_root))


@dataclass(frozen=True)
class PanopticFiles:
    """COCO panoptic files, relative to `datasets_root()` unless absolute."""

    image_root: str
    panoptic_json: str
    panoptic_root: str
    instances_json: str = ""  # "": objects come from the segments
    sem_seg_root: str = ""  # where there is no such folder, label maps come from the segments
    form: str = "separated"  # or "stuffonly" (no objects), or "standard" (one numbering for all)
    is_coco: bool = False  # then the classes are known without the file

    def metadata(self) -> dict[str, Any]:
        """What is known before a file is read."""
        known: dict[str, Any] = dict(self._places())
        known["evaluator_type"] = "sem_seg" if self.form == "stuffonly" else "coco_panoptic_seg"
        known["ignore_label"] = IGNORE_LABEL
        if self.form == "standard":
            known["label_divisor"] = 1000
        if self.is_coco:
            number = standard_metadata if self.form == "standard" else separated_metadata
            known |= number(coco_panoptic_categories())
        return known

    def read(self) -> CocoFile:
        """The records, and the classes where a file says them."""
        places = self._places()
        files = places["image_root"], places["panoptic_json"], places["panoptic_root"]
        if self.form == "standard":
            return read_panoptic_json(files[1], files[0], files[2], separated=False)
        sem_seg_root = places.get("sem_seg_root", "")
        if self.form == "stuffonly":
            return read_stuff_only(*files, sem_seg_root=sem_seg_root, with_classes=not self.is_coco)
        return read_panoptic_separated(
            *files,
            instances_json=places.get("json_file", ""),
            sem_seg_root=sem_seg_root,
            with_classes=not self.is_coco,
        )

    def _places(self) -> dict[str, str]:
        optional = {"json_file": self.instances_json, "sem_seg_root": self.sem_seg_root}
        return _places(
            image_root=self.image_root,
            panoptic_json=self.panoptic_json,
            panoptic_root=self.panoptic_root,
            **{key: path for key, path in optional.items() if path},
        )


@dataclass(frozen=True)
class SemSegFolder:
    """Pictures and label maps, relative to `datasets_root()` unless absolute."""

    sem_seg_root: str
    image_root: str
    classes: str  # file of their names, see `read_class_names`

    def metadata(self) -> dict[str, Any]:
        """What is known before a file is read."""
        places = _places(sem_seg_root=self.sem_seg_root, image_root=self.image_root)
        return {**places, "evaluator_type": "sem_seg", "ignore_label": IGNORE_LABEL}

    def read(self) -> CocoFile:
        """The records and classes."""
        root = datasets_root()
        records = read_sem_seg_folder(root / self.sem_seg_root, root / self.image_root)
        return CocoFile(records=records, metadata=read_class_names(root / self.classes))


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
class SbdFolder:
    """A split of the Semantic Boundaries Dataset; `dirname` is relative to `datasets_root()`."""

    split: str
    dirname: str = "sbd"

    def metadata(self) -> dict[str, Any]:
        """All that is known."""
        known: dict[str, Any] = _places(dirname=self.dirname)
        return {
            **known,
            "split": self.split,
            "thing_classes": list(CLASS_NAMES),
            "evaluator_type": "coco",
        }

    def read(self) -> CocoFile:
        """The records."""
        records = load_sbd_instances(datasets_root() / self.dirname, self.split)
        return CocoFile(records=records, metadata={})


@dataclass(frozen=True)
class CityscapesFolder:
    """A split of Cityscapes, relative to `datasets_root()`."""

    split: str
    task: str  # "instance", "sem_seg" or "panoptic_seg"

    def metadata(self) -> dict[str, Any]:
        """All that is known."""
        known: dict[str, Any] = _places(
            image_dir=f"cityscapes/leftImg8bit/{self.split}",
            gt_dir=f"cityscapes/gtFine/{self.split}",
        )
        known["evaluator_type"] = f"cityscapes_{self.task}"
        if self.task != "instance":
            known["ignore_label"] = 255
        if self.task == "panoptic_seg":
            return known | self._panoptic()
        known["thing_classes"] = [label.name for label in THINGS]
        known["stuff_classes"] = [label.name for label in TRAINED]
        return known

    def _panoptic(self) -> dict[str, Any]:
        root = f"cityscapes/gtFine/cityscapes_panoptic_{self.split}"
        places = {"panoptic_root": root, "panoptic_json": f"{root}.json"}
        places["image_root"] = f"cityscapes/leftImg8bit/{self.split}"
        return {
            **_places(**places),
            **standard_metadata(cityscapes_categories()),
            "label_divisor": 1000,
        }

    def read(self) -> CocoFile:
        """The records."""
        known = self.metadata()
        images, truth = known["image_dir"], known["gt_dir"]
        if self.task == "instance":
            records = load_cityscapes_instances(images, truth)
        elif self.task == "sem_seg":
            records = load_cityscapes_semantic(images, truth)
        else:
            places = known["panoptic_root"], known["panoptic_json"]
            records = load_cityscapes_panoptic(images, *places)
        return CocoFile(records=records, metadata={})


def datasets_root() -> Path:
    """The folder that built-in data sets are under."""
    variables = ("SEGDET_DATASETS", "DETECTRON2_DATASETS")
    named = (os.environ[name] for name in variables if os.environ.get(name))
    return Path(next(named, "datasets")).expanduser()


def below_root(path: str) -> str:
    """A path of a data set: below `datasets_root()`, unless it is absolute or an address."""
    return path if is_address(path) else str(datasets_root() / path)


def _places(**paths: str) -> dict[str, str]:
    return {key: below_root(path) for key, path in paths.items()}


def find_builtin(name: str) -> BuiltinFiles | None:
    """The files of a built-in name, or of a name made of paths; None for any other name.

    Such names are `FILE.json:IMAGES` (a folder, or tar files: see `tar_shards`),
    `FILE.json:IMAGES:PNGS` for panoptic annotation (PNGS is by default the folder of the file's
    name, as COCO has it), `LABELS:IMAGES:CLASSES` for label maps (CLASSES is by default
    `classes.txt` in LABELS).
    """
    if name in BUILTIN:
        return BUILTIN[name]
    file, separator, rest = name.partition(".json:")
    if separator:
        json_file, (images, *others) = f"{file}.json", re.split(r":(?!//)", rest, maxsplit=1)
        pngs = others[0] if others else ""
        if not pngs and not _has_segments(json_file):
            images = images if is_address(images) else os.path.abspath(images)
            return CocoFiles(os.path.abspath(json_file), images)
        return PanopticFiles(
            os.path.abspath(images), os.path.abspath(json_file), os.path.abspath(pngs or file)
        )
    labels, separator, rest = name.partition(":")
    if not separator or not os.path.isdir(labels):
        return None
    images, _, classes = rest.partition(":")
    classes = classes or os.path.join(labels, "classes.txt")
    return SemSegFolder(*(os.path.abspath(path) for path in (labels, images, classes)))


def _has_segments(json_file: str) -> bool:
    """Whether a COCO json is panoptic; a look at its bytes, since instance files are large."""
    try:
        with (
            open(json_file, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as m,
        ):
            return m.find(b'"segments_info"') >= 0
    except (OSError, ValueError):  # absent, or empty: its reader says so
        return False


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
_PANOPTIC_FORMS = {"": "standard", "_separated": "separated", "_stuffonly": "stuffonly"}


def _coco_panoptic(split: str, images: str, form: str) -> PanopticFiles:
    return PanopticFiles(
        f"coco/{images}",
        f"coco/annotations/panoptic_{split}.json",
        f"coco/panoptic_{split}",
        instances_json=f"coco/annotations/instances_{split}.json",
        sem_seg_root=f"coco/panoptic_stuff_{split}",
        form=form,
        is_coco=True,
    )


_COCO_PANOPTIC_SPLITS = {
    "train": ("train2017", "train2017"),
    "val": ("val2017", "val2017"),
    "val_100": ("val2017_100", "val2017"),
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
        f"coco_2017_{split}_panoptic{suffix}": _coco_panoptic(*files, form)
        for split, files in _COCO_PANOPTIC_SPLITS.items()
        for suffix, form in _PANOPTIC_FORMS.items()
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
    **{f"sbd_{split}": SbdFolder(split) for split in ("train", "val")},
    **{
        f"cityscapes_fine_{task}_{split}": CityscapesFolder(split, kind)
        for task, kind in (("instance_seg", "instance"), ("sem_seg", "sem_seg"))
        for split in ("train", "val", "test")
    },
    **{
        f"cityscapes_fine_panoptic_{split}": CityscapesFolder(split, "panoptic_seg")
        for split in ("train", "val")
    },
}
_SPLITS = ("train", "val")
SAMPLES: dict[str, BuiltinFiles] = {
    **{
        f"{name}_{split}": CocoFiles(
            f"{name}/annotations/instances_{split}.json", f"{name}/{split}"
        )
        for name in ("demo", "fruits_nuts", "nuclei", "coco_mini", "camvid_small")
        for split in _SPLITS
    },
    **{
        f"{name}_panoptic_{split}": PanopticFiles(
            f"{name}/{split}",
            f"{name}/annotations/panoptic_{split}.json",
            f"{name}/annotations/panoptic_{split}",
            instances_json=f"{name}/annotations/instances_{split}.json",
        )
        for name in ("demo", "camvid_small")
        for split in _SPLITS
    },
    **{
        f"{name}_sem_seg_{split}": SemSegFolder(
            f"{name}/annotations/semantic_{split}",
            f"{name}/{split}",
            f"{name}/annotations/panoptic_{split}.json",
        )
        for name in ("demo", "camvid_small")
        for split in _SPLITS
    },
}
BUILTIN |= SAMPLES
