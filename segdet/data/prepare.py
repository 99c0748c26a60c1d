"""Makes files of annotation that others are derived from once, instead of on the way each time.

A file that is there is kept if it holds the same, and refused otherwise: nothing is overwritten.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from segdet.data.image_io import read_labels
from segdet.data.readers.cityscapes import CityscapesFiles, cityscapes_files
from segdet.data.readers.cityscapes_labels import BY_ID, LABELS
from segdet.data.readers.cityscapes_panoptic import cityscapes_categories
from segdet.data.readers.coco_json import file_below, parse_json
from segdet.data.readers.panoptic_json import read_panoptic_json
from segdet.data.rle import tight_box
from segdet.data.segment_ids import id2rgb, read_segment_ids
from segdet.data.sem_seg import IGNORE_LABEL, read_sem_seg
from segdet.errors import DataError
from segdet.utils.writing import write_atomically, write_text_atomically


def write_label_maps(
    panoptic_json: str | os.PathLike[str],
    panoptic_root: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    workers: int = 0,
) -> int:
    """Write the label maps of Panoptic FPN: 0 for things, i + 1 for the i-th stuff, 255 for none.

    Args:
        panoptic_json: COCO panoptic annotation.
        panoptic_root: its folder of segment pictures.
        output: folder of the maps, which have the images' names and folders.
        workers: processes; 0 is one for each core.

    Returns:
        How many maps are there.

    Raises:
        DataError: the annotation cannot be used, two maps would be one file, or another file is in
            the way.
    """
    records = read_panoptic_json(panoptic_json, "", panoptic_root).records
    for record in records:
        name = file_below(os.fspath(output), record["file_name"])
        record["sem_seg_file_name"] = str(Path(name).with_suffix(".png"))
    count = Counter(record["sem_seg_file_name"] for record in records)
    if count and (most := count.most_common(1)[0])[1] > 1:
        raise DataError(f"{panoptic_json}: {most[1]} images would have the label map {most[0]}")
    Path(output).mkdir(parents=True, exist_ok=True)
    _for_each(_write_label_map, records, workers)
    return len(records)


def _write_label_map(record: dict[str, Any]) -> None:
    file = Path(record.pop("sem_seg_file_name"))
    file.parent.mkdir(parents=True, exist_ok=True)
    _write_picture(file, read_sem_seg(record), read_labels)


def write_cityscapes(
    image_dir: str | os.PathLike[str], gt_dir: str | os.PathLike[str], *, workers: int = 0
) -> int:
    """Write the files that cityscapesscripts makes of Cityscapes' annotation.

    labelTrainIds.png beside each labelIds.png; and beside the split's folder
    cityscapes_panoptic_SPLIT.json and the folder of its pictures.

    Args:
        image_dir: such as leftImg8bit/train.
        gt_dir: such as gtFine/train.
        workers: processes; 0 is one for each core.

    Returns:
        How many pictures have them.

    Raises:
        DataError: the annotation cannot be used, or another file is in the way.
    """
    split, root = Path(gt_dir).name, Path(gt_dir).parent
    folder = root / f"cityscapes_panoptic_{split}"
    folder.mkdir(exist_ok=True)
    files = cityscapes_files(image_dir, gt_dir)
    annotations = _for_each(partial(_write_cityscapes_picture, folder), files, workers)
    stems = [row["image_id"] for row in annotations]
    tree = {
        "images": [
            {"id": stem, "file_name": f"{stem}_gtFine_leftImg8bit.png", "width": w, "height": h}
            for stem, (h, w) in zip(stems, (row.pop("size") for row in annotations), strict=True)
        ],
        "annotations": annotations,
        "categories": cityscapes_categories(),
    }
    _write_json(folder.with_suffix(".json"), tree)
    return len(files)


def _write_cityscapes_picture(folder: Path, files: CityscapesFiles) -> dict[str, Any]:
    """The pictures of one photo; its annotation, with the `size` besides."""
    train_ids = np.full(256, IGNORE_LABEL, np.uint8)
    train_ids[[label.id for label in LABELS]] = [label.train_id for label in LABELS]
    labels = str(files.label_ids).replace("labelIds.png", "labelTrainIds.png")
    _write_picture(Path(labels), train_ids[read_labels(files.label_ids)], read_labels)
    ids = read_labels(files.instance_ids).astype(np.int64)
    segments = []
    for value in np.unique(ids).tolist():
        label = BY_ID.get(value // 1000 if value >= 1000 else value)
        if label is None:
            raise DataError(f"{files.instance_ids}: has the id {value}, of no class of Cityscapes")
        if label.is_ignored:
            ids[ids == value] = 0
            continue
        box = tight_box(ids == value)
        assert box is not None, "the value occurs"
        x0, y0, x1, y1 = box
        segments.append(
            {
                "id": value,
                "category_id": label.id,
                "area": int((ids == value).sum()),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "iscrowd": int(label.has_instances and value < 1000),  # a group
            }
        )
    stem = files.instance_ids.name.removesuffix("_gtFine_instanceIds.png")
    name = f"{stem}_gtFine_panoptic.png"
    _write_picture(folder / name, ids, read_segment_ids, as_pixels=id2rgb)
    return {
        "image_id": stem,
        "file_name": name,
        "segments_info": segments,
        "size": ids.shape,
    }


def _for_each(function: Callable[[Any], Any], items: Iterable[Any], workers: int) -> list[Any]:
    items = list(items)
    with ProcessPoolExecutor(workers or None) as pool:
        return list(tqdm(pool.map(function, items, chunksize=8), total=len(items), unit="map"))


def _write_picture(
    file: Path,
    values: np.ndarray,
    read: Callable[[Path], np.ndarray],
    as_pixels: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> None:
    if file.exists():
        _refuse_unless(np.array_equal(read(file), values), file)
        return
    picture = Image.fromarray(as_pixels(values))
    write_atomically(file, lambda stream: picture.save(stream, format="png"))


def _write_json(file: Path, tree: dict[str, Any]) -> None:
    if file.exists():
        _refuse_unless(parse_json(file) == json.loads(json.dumps(tree)), file)
        return
    write_text_atomically(file, json.dumps(tree))


def _refuse_unless(is_same: bool, file: Path) -> None:
    if not is_same:
        raise DataError(f"{file} exists and holds something else; move it away first")
