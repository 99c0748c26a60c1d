"""From the name of a data set, as DATASETS.TRAIN takes it, to its checks."""

from __future__ import annotations

import os
from pathlib import Path

from segdet.data.builtin import (
    CityscapesFolder,
    CocoFiles,
    LvisFiles,
    PanopticFiles,
    SbdFolder,
    SemSegFolder,
    VocFolder,
    below_root,
    datasets_root,
    find_builtin,
)
from segdet.data.check.coco import check_coco
from segdet.data.check.findings import Checked
from segdet.data.check.folders import check_cityscapes, check_sbd, check_voc
from segdet.data.check.maps import check_panoptic, check_sem_seg
from segdet.data.readers.cityscapes_panoptic import photos_by_id
from segdet.data.readers.pascal_voc import CLASS_NAMES
from segdet.errors import DataError


def check_dataset(name: str, *, open_images: bool = True, workers: int = 1) -> list[Checked]:
    """Check the files of a data set; pictures of images are listed, not opened.

    Args:
        name: as DATASETS.TRAIN takes it (docs/data.md); or a COCO json alone; or a folder of Pascal
            VOC's layout, `FOLDER:SPLIT`.
        open_images: read what only pictures tell: segments, label maps, sizes that a json lacks.
        workers: processes.

    Returns:
        One of each annotation file or folder that the data set has.

    Raises:
        DataError: there is no such data set.
    """
    root = datasets_root()
    share = {"open_images": open_images, "workers": workers}
    folder, _, split = name.rpartition(":")
    if split and os.path.isdir(os.path.join(folder, "Annotations")):
        return [check_voc(folder, split, CLASS_NAMES, workers=workers)]
    match find_builtin(name):
        case CocoFiles(json_file, image_root):
            return [check_coco(Path(below_root(json_file)), below_root(image_root), **share)]
        case LvisFiles(json_file, image_root):
            return [check_coco(root / json_file, str(root / image_root), is_lvis=True, **share)]
        case PanopticFiles() as files:
            return _check_panoptic(files, **share)
        case SemSegFolder(labels, images, classes):
            paths = (str(root / path) for path in (labels, images, classes))
            return [check_sem_seg(*paths, **share)]
        case VocFolder(dirname, split):
            return [check_voc(str(root / dirname), split, CLASS_NAMES, workers=workers)]
        case SbdFolder(split, dirname):
            return [check_sbd(str(root / dirname), split, CLASS_NAMES, workers=workers)]
        case CityscapesFolder(task="panoptic_seg") as files:
            known = files.metadata()
            file, images = Path(known["panoptic_json"]), known["image_root"]
            photos = {k: str(one.image) for k, one in photos_by_id(images, file).items()}
            how = {"separated": False, "photos": photos, **share}
            return [check_panoptic(file, images, known["panoptic_root"], **how)]
        case CityscapesFolder(task=task) as files:
            known = files.metadata()
            return [check_cityscapes(known["image_dir"], known["gt_dir"], task, workers=workers)]
    if name.endswith(".json"):
        return [check_coco(Path(name), None, open_images=False, workers=workers)]
    raise DataError(
        f"{name!r} is no data set; give FILE.json:IMAGES, FILE.json, LABELS:IMAGES, "
        "VOC_FOLDER:SPLIT or a built-in name (docs/data.md lists them)"
    )


def _check_panoptic(files: PanopticFiles, *, open_images: bool, workers: int) -> list[Checked]:
    root = datasets_root()
    image_root = str(root / files.image_root)
    checks = [
        check_panoptic(
            root / files.panoptic_json,
            image_root,
            str(root / files.panoptic_root),
            separated=files.form != "standard",
            open_images=open_images,
            workers=workers,
        )
    ]
    if files.instances_json and files.form != "stuffonly":
        objects = check_coco(
            root / files.instances_json, image_root, open_images=open_images, workers=workers
        )
        objects.pictures = []  # those of the panoptic json
        checks.append(objects)
    return checks
