"""Reads semantic annotation: a folder of pictures and one of label maps with the same names."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from segdet.data.defects import Defect
from segdet.data.readers.coco_json import parse_json, read_categories, rows_of

logger = logging.getLogger("segdet.data")

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def read_sem_seg_folder(
    gt_root: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    *,
    gt_ext: str = "",
    image_ext: str = "",
) -> list[dict[str, Any]]:
    """Pair pictures with label maps by their paths below the two folders, without suffix.

    Args:
        gt_root: folder of label maps; folders in it are searched.
        image_root: folder of pictures, likewise.
        gt_ext: what the files of label maps end with; "" takes all pictures.
        image_ext: likewise for pictures.

    Returns:
        Records of `file_name` and `sem_seg_file_name`, by name. Files without a partner are left
        out with a counted warning.

    Raises:
        DataError: a folder is absent, two files have the same name, or nothing pairs.
    """
    labels, images = files_below(gt_root, gt_ext), files_below(image_root, image_ext)
    pairs = sorted(labels.keys() & images.keys())
    if not pairs:
        raise Defect(
            "nothing-pairs",
            f"no label map in {gt_root} has the name of a picture in {image_root} "
            f"({len(labels)} and {len(images)} files)",
        )
    for root, files, partner in ((gt_root, labels, "picture"), (image_root, images, "label map")):
        if lone := sorted(files.keys() - set(pairs)):
            shown = ", ".join(lone[:5]) + (", ..." if len(lone) > 5 else "")
            logger.warning(
                "%s: left out %d files without a %s: %s", root, len(lone), partner, shown
            )
    return [{"file_name": images[stem], "sem_seg_file_name": labels[stem]} for stem in pairs]


def files_below(root: str | os.PathLike[str], ext: str = "") -> dict[str, str]:
    """Path below the folder, without suffix -> path; `ext` as for `read_sem_seg_folder`."""
    suffixes = (f".{ext.lstrip('.')}",) if ext else PICTURES
    if not os.path.isdir(root):
        raise Defect("file-missing", f"{root} is no folder")
    files: dict[str, str] = {}
    for path in sorted(Path(root).rglob("*")):
        suffix = next((one for one in suffixes if path.name.lower().endswith(one.lower())), None)
        if suffix is None:
            continue
        stem = str(path.relative_to(root))[: -len(suffix)]
        if stem in files:
            message = f"{files[stem]} and {path} have the same name; keep one of them"
            raise Defect("name-twice", message)
        files[stem] = str(path)
    return files


def read_class_names(file: str | os.PathLike[str]) -> dict[str, Any]:
    """The classes of label maps, in the order of their labels.

    Args:
        file: a text file with one name a line; or a COCO json, whose categories are labelled 0, 1,
            ... in the order of their ids.

    Returns:
        `stuff_classes`, and `stuff_colors` where a json has them.

    Raises:
        DataError: the file cannot be read, or holds no names.
    """
    path = Path(file)
    if path.suffix == ".json":
        rows = rows_of(path, parse_json(path), "categories")
        read_categories(path, rows)  # checks them
        rows = sorted(rows, key=lambda row: row["id"])
        known: dict[str, Any] = {"stuff_classes": [row["name"] for row in rows]}
        if all("color" in row for row in rows):
            known["stuff_colors"] = [list(row["color"]) for row in rows]
        return known
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise Defect(
            "file-unreadable",
            f"{path}: cannot be read ({error}); it names the classes of the label maps, one a line",
        ) from None
    if not any(lines):
        raise Defect("file-unreadable", f"{path}: holds no names of classes")
    return {"stuff_classes": [line.strip() for line in lines if line.strip()]}
