"""Reads Cityscapes' panoptic annotation: a json of segments, and pictures of their ids."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from segdet.data.defects import Defect, located
from segdet.data.image_io import image_size_of
from segdet.data.readers.cityscapes import IMAGE_SUFFIX, CityscapesFiles, cityscapes_files
from segdet.data.readers.cityscapes_labels import COLORS, TRAINED
from segdet.data.readers.coco_json import parse_json, rows_of
from segdet.data.readers.panoptic_json import read_segments, standard_metadata
from segdet.data.sem_seg import IGNORE_LABEL
from segdet.errors import DataError


def cityscapes_categories() -> list[dict[str, Any]]:
    """The 19 evaluated classes, as the categories of a panoptic json."""
    return [
        {
            "id": label.id,
            "name": label.name,
            "color": list(COLORS[label.train_id]),
            "supercategory": label.category,
            "isthing": int(label.has_instances),
        }
        for label in TRAINED
    ]


def photos_by_id(
    image_dir: str | os.PathLike[str], gt_json: str | os.PathLike[str]
) -> dict[str, CityscapesFiles]:
    """The files of a split by their ids in its panoptic json, whose own file names are of none."""
    gt_dir = Path(gt_json).parent / Path(image_dir).name
    return {
        one.image.name.removesuffix(f"_{IMAGE_SUFFIX}"): one
        for one in cityscapes_files(image_dir, gt_dir)
    }


def load_cityscapes_panoptic(
    image_dir: str | os.PathLike[str],
    gt_dir: str | os.PathLike[str],
    gt_json: str | os.PathLike[str],
    meta: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Read a split as standard dicts; classes are the train ids.

    Args:
        image_dir: such as leftImg8bit/train.
        gt_dir: such as gtFine/cityscapes_panoptic_train, the pictures of segments.
        gt_json: such as gtFine/cityscapes_panoptic_train.json.
        meta: of other numbers of classes, `thing_dataset_id_to_contiguous_id` and
            `stuff_dataset_id_to_contiguous_id`.

    Returns:
        Records with `pan_seg_file_name` and `segments_info`, as `read_panoptic_json` gives them,
        and with `sem_seg_file_name` where there is a labelTrainIds.png.

    Raises:
        DataError: a file is missing or broken.
    """
    file, metadata = Path(gt_json), meta or standard_metadata(cityscapes_categories())
    photos = photos_by_id(image_dir, file)
    if not file.is_file():
        raise Defect(
            "file-missing",
            f"{file} does not exist; make it with tools/prepare_cityscapes.py, or with "
            "cityscapesscripts' csCreatePanopticImgs",
        )
    records = []
    for i, row in enumerate(rows_of(file, parse_json(file), "annotations")):
        image_id = row.get("image_id")
        if image_id not in photos:
            message = f"{file}: annotations[{i}]: {image_dir} has no picture {image_id!r}"
            raise Defect("image-unknown", message, "image_id")
        picture = os.path.join(gt_dir, str(row.get("file_name")))
        if not os.path.isfile(picture):
            message = f"{file}: image {image_id}: {picture} does not exist"
            raise Defect("file-missing", message, "file_name")
        try:
            segments = read_segments(row.get("segments_info"), metadata, separated=False)
        except DataError as error:
            raise located(f"{file}: image {image_id}", error) from None
        photo = photos[image_id]
        height, width = image_size_of(photo.image)
        record = {"file_name": str(photo.image), "image_id": image_id}
        record |= {"height": height, "width": width}
        labels = str(photo.label_ids).replace("labelIds.png", "labelTrainIds.png")
        if os.path.isfile(labels):
            record["sem_seg_file_name"] = labels
        records.append(record | {"pan_seg_file_name": picture, "segments_info": segments})
        if not segments:
            records[-1]["sem_seg_label"] = IGNORE_LABEL
    return records
