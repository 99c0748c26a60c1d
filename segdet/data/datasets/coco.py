"""COCO json in and out: detectron2's functions."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from segdet.data.annotations import box_mode_of, category_of
from segdet.data.catalog import DatasetCatalog, MetadataCatalog
from segdet.data.defects import located
from segdet.data.readers.coco_json import read_coco_json
from segdet.data.readers.sem_seg_folder import read_sem_seg_folder
from segdet.data.rle import rle_runs
from segdet.errors import DataError
from segdet.structures import BoxMode, polygon_area
from segdet.utils.writing import write_text_atomically

logger = logging.getLogger("segdet.data")


def load_coco_json(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    dataset_name: str | None = None,
    extra_annotation_keys: list[str] | None = None,
) -> list[dict[str, Any]]:
    """Load a COCO json of instances as standard dicts, sorted by image id.

    Args:
        json_file: the annotations.
        image_root: the folder that `file_name` is relative to.
        dataset_name: set `thing_classes` and `thing_dataset_id_to_contiguous_id` of this name's
            metadata; None sets nothing (class ids are contiguous all the same).
        extra_annotation_keys: further keys of annotations to keep.

    Raises:
        DataError: see docs/data.md for what is refused and what is dropped with a warning.
    """
    data = read_coco_json(json_file, image_root, extra_annotation_keys=extra_annotation_keys or ())
    if dataset_name is not None:
        MetadataCatalog.get(dataset_name).set(**data.metadata)
    return data.records


def load_sem_seg(
    gt_root: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    gt_ext: str = "png",
    image_ext: str = "jpg",
) -> list[dict[str, Any]]:
    """Load a folder of label maps as standard dicts with `file_name` and `sem_seg_file_name`.

    Args:
        gt_root: the label maps.
        image_root: the images; files of the same path below the folders belong together.
        gt_ext: the label maps' suffix.
        image_ext: the images' suffix.

    Raises:
        DataError: a folder is absent, or nothing belongs together.
    """
    return read_sem_seg_folder(gt_root, image_root, gt_ext=gt_ext, image_ext=image_ext)


def register_coco_instances(
    name: str,
    metadata: dict[str, Any],
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
) -> None:
    """Name a COCO json so that configs can use it.

    Args:
        name: the new name.
        metadata: further facts for `MetadataCatalog.get(name)`; may be {}.
        json_file: the annotations; read when the data set is first asked for.
        image_root: the folder of the images.
    """
    json_file, image_root = os.fspath(json_file), os.fspath(image_root)
    DatasetCatalog.register(name, lambda: load_coco_json(json_file, image_root, name))
    MetadataCatalog.get(name).set(
        json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata
    )


def convert_to_coco_dict(dataset_name: str) -> dict[str, Any]:
    """A registered data set as a COCO json's content.

    Args:
        dataset_name: of instances; its metadata needs `thing_classes`. Classes get the ids of
            `thing_dataset_id_to_contiguous_id`, or 0, 1, 2, ... without it.

    Returns:
        `images`, `categories` and `annotations`, with ids from 1 for annotations, and for
        images whose records have no `image_id`.

    Raises:
        DataError: a record lacks what the json needs, or the metadata lacks an object's class.
    """
    records = DatasetCatalog.get(dataset_name)
    names, dataset_ids = _classes_of(dataset_name)
    images, annotations = [], []
    for number, record in enumerate(records, 1):
        image_id = record.get("image_id", number)
        where = f"data set {dataset_name!r}, image id {image_id}"
        images.append({"id": image_id, **_to_coco_image(record, where)})
        for i, annotation in enumerate(record.get("annotations", ())):
            try:
                row = _to_coco_annotation(annotation)
                row["category_id"] = _dataset_id(annotation, dataset_ids)
            except DataError as error:
                raise located(f"{where}, annotation {i}", error) from None
            row["id"], row["image_id"] = len(annotations) + 1, image_id
            annotations.append(row)
    categories = [{"id": dataset_ids[k], "name": name} for k, name in enumerate(names)]
    info = {"description": f"{dataset_name}, converted by segdet"}
    return {
        "info": info,
        "licenses": [],
        "images": images,
        "categories": categories,
        "annotations": annotations,
    }


def _classes_of(dataset_name: str) -> tuple[list[str], dict[int, int]]:
    """The names of a data set's classes, and by the places in them the ids that a json gets."""
    metadata = MetadataCatalog.get(dataset_name)
    names = metadata.get("thing_classes")
    if names is None:
        raise DataError(
            f"data set {dataset_name!r} has no thing_classes, which name the categories of its "
            f"COCO json; set MetadataCatalog.get({dataset_name!r}).thing_classes"
        )
    id_map = metadata.get("thing_dataset_id_to_contiguous_id") or {k: k for k in range(len(names))}
    dataset_ids = {contiguous: dataset for dataset, contiguous in id_map.items()}
    if lacking := sorted({*range(len(names))} - dataset_ids.keys()):
        raise DataError(
            f"data set {dataset_name!r}: thing_dataset_id_to_contiguous_id leads to no class "
            f"{lacking[0]}, {names[lacking[0]]!r} of its thing_classes"
        )
    return names, dataset_ids


def _to_coco_image(record: dict[str, Any], where: str) -> dict[str, Any]:
    if lacking := [key for key in ("file_name", "height", "width") if record.get(key) is None]:
        raise DataError(
            f"{where}: the record has no {', '.join(lacking)}; it has {', '.join(record)}"
        )
    size = {"width": int(record["width"]), "height": int(record["height"])}
    return {**size, "file_name": str(record["file_name"])}


def _dataset_id(annotation: dict[str, Any], dataset_ids: dict[int, int]) -> int:
    """The id of an annotation's class in the json."""
    category = category_of(annotation)
    if category not in dataset_ids:
        raise DataError(f"category_id is {category}, must be in [0, {len(dataset_ids)})")
    return dataset_ids[category]


def _to_coco_annotation(annotation: dict[str, Any]) -> dict[str, Any]:
    mode = box_mode_of(annotation)
    written = mode if mode == BoxMode.XYWHA_ABS else BoxMode.XYWH_ABS
    box = BoxMode.convert([float(v) for v in annotation["bbox"]], mode, written)
    row: dict[str, Any] = {"bbox": box, "iscrowd": int(annotation.get("iscrowd", 0))}
    row["area"] = box[2] * box[3]
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list):
        polygons = [np.asarray(part, np.float64) for part in segmentation]
        row["segmentation"] = [polygon.tolist() for polygon in polygons]
        row["area"] = sum(polygon_area(polygon) for polygon in polygons)
    elif isinstance(segmentation, dict):
        row["segmentation"] = {
            "size": [int(side) for side in segmentation["size"]],
            "counts": _counts_as_json(segmentation["counts"]),
        }
        row["area"] = int(rle_runs(segmentation)[1::2].sum())
    if "keypoints" in annotation:
        points = np.array(annotation["keypoints"], np.float64).reshape(-1, 3)
        points[:, :2] -= 0.5  # standard dicts hold pixel centres, COCO pixel indices
        row["keypoints"] = points.reshape(-1).tolist()
        row["num_keypoints"] = int((points[:, 2] > 0).sum())
    return row


def _counts_as_json(counts: Any) -> str | list[int]:
    if isinstance(counts, bytes):
        return counts.decode("ascii")
    return counts if isinstance(counts, str) else [int(run) for run in counts]


def convert_to_coco_json(
    dataset_name: str, output_file: str | os.PathLike[str], allow_cached: bool = True
) -> None:
    """Write a registered data set as a COCO json, for evaluators that read one.

    Args:
        dataset_name: as for `convert_to_coco_dict`.
        output_file: where to; its folder is made.
        allow_cached: keep a file that is there already.
    """
    file = Path(output_file)
    if allow_cached and file.exists():
        logger.info(
            "Using %s as the COCO json of %s; remove it if data changed", file, dataset_name
        )
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(file, json.dumps(convert_to_coco_dict(dataset_name)))
