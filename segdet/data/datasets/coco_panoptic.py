"""COCO panoptic annotation under a name: detectron2's functions."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from segdet.data.catalog import DatasetCatalog, MetadataCatalog
from segdet.data.readers.coco_json import CocoFile
from segdet.data.readers.panoptic_json import read_panoptic_json
from segdet.data.readers.panoptic_separated import read_panoptic_separated, read_stuff_only
from segdet.data.sem_seg import IGNORE_LABEL
from segdet.errors import DataError

__all__ = [
    "load_coco_panoptic_json",
    "register_coco_panoptic",
    "register_coco_panoptic_separated",
]

Path = str | os.PathLike[str]

_NUMBERS = ("thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id")
_CLASSES = {*_NUMBERS, "thing_classes", "stuff_classes"}


def load_coco_panoptic_json(
    json_file: Path, image_dir: Path, gt_dir: Path, meta: dict[str, Any]
) -> list[dict[str, Any]]:
    """Load a COCO panoptic json as standard dicts, all classes in one numbering.

    Args:
        json_file: the annotations.
        image_dir: the folder of the images.
        gt_dir: the folder of the pictures of segments.
        meta: its `thing_dataset_id_to_contiguous_id` and `stuff_dataset_id_to_contiguous_id`
            decide the classes; without them, the order of the file's categories does.

    Raises:
        DataError: see docs/data.md.
    """
    data = read_panoptic_json(json_file, image_dir, gt_dir, separated=False)
    _renumber(data, meta)
    return data.records


def _renumber(data: CocoFile, meta: dict[str, Any]) -> None:
    """Give the segments the classes that the metadata says, in place."""
    if not any(key in meta for key in _NUMBERS):
        return
    wanted = {True: meta.get(_NUMBERS[0], {}), False: meta.get(_NUMBERS[1], {})}
    dataset_id = {k: i for key in _NUMBERS for i, k in data.metadata[key].items()}
    for record in data.records:
        for segment in record["segments_info"]:
            category_id = dataset_id[segment["category_id"]]
            isthing = category_id in wanted[True]
            if category_id not in wanted[isthing]:
                raise DataError(
                    f"image {record['image_id']}: segment {segment['id']} is of category "
                    f"{category_id}, which the metadata has neither as a thing nor as stuff"
                )
            number = wanted[isthing][category_id]
            segment |= {"category_id": number, "isthing": isthing, "sem_seg_label": number}


def register_coco_panoptic(
    name: str,
    metadata: dict[str, Any],
    image_root: Path,
    panoptic_root: Path,
    panoptic_json: Path,
    instances_json: Path | None = None,
) -> None:
    """Name COCO panoptic annotation, all classes in one numbering.

    Args:
        name: the new name.
        metadata: further facts for `MetadataCatalog.get(name)`; may be {}: the file has classes.
        image_root: the folder of the images.
        panoptic_root: the folder of the pictures of segments.
        panoptic_json: the annotations.
        instances_json: a COCO json of the things, for evaluators.
    """
    image_root, panoptic_root = os.fspath(image_root), os.fspath(panoptic_root)
    panoptic_json = os.fspath(panoptic_json)

    def read(known: dict[str, Any]) -> CocoFile:
        data = read_panoptic_json(panoptic_json, image_root, panoptic_root, separated=False)
        _renumber(data, known)
        return data

    _register(name, read, metadata)
    MetadataCatalog.get(name).set(
        panoptic_root=panoptic_root,
        image_root=image_root,
        panoptic_json=panoptic_json,
        evaluator_type="coco_panoptic_seg",
        ignore_label=IGNORE_LABEL,
        label_divisor=1000,
    )
    if instances_json is not None:
        MetadataCatalog.get(name).set(json_file=os.fspath(instances_json))


def register_coco_panoptic_separated(
    name: str,
    metadata: dict[str, Any],
    image_root: Path,
    panoptic_root: Path,
    panoptic_json: Path,
    sem_seg_root: Path,
    instances_json: Path,
) -> None:
    """Name the data of Panoptic FPN: `NAME_separated`, and `NAME_stuffonly` of its label maps.

    Args:
        name: the beginning of the two new names.
        metadata: further facts for both; may be {}: the files have classes.
        image_root: the folder of the images.
        panoptic_root: the folder of the pictures of segments.
        panoptic_json: the panoptic annotations.
        sem_seg_root: the folder of label maps, 0 for all things; where there is none, they are
            made from the segments.
        instances_json: a COCO json of the things; "" takes them from the segments.
    """
    root, pngs, file = (os.fspath(path) for path in (image_root, panoptic_root, panoptic_json))
    maps, objects = os.fspath(sem_seg_root), os.fspath(instances_json)

    def separated(known: dict[str, Any]) -> CocoFile:
        data = read_panoptic_separated(
            root,
            file,
            pngs,
            instances_json=objects,
            sem_seg_root=maps,
            with_classes=not known.keys() >= _CLASSES,
        )
        _check_numbers(name, data, known)
        return data

    def stuff_only(known: dict[str, Any]) -> CocoFile:
        with_classes = not known.keys() >= _CLASSES
        data = read_stuff_only(root, file, pngs, sem_seg_root=maps, with_classes=with_classes)
        _check_numbers(name, data, known)
        return data

    _register(f"{name}_separated", separated, metadata)
    MetadataCatalog.get(f"{name}_separated").set(
        panoptic_root=pngs,
        image_root=root,
        panoptic_json=file,
        sem_seg_root=maps,
        evaluator_type="coco_panoptic_seg",
        ignore_label=IGNORE_LABEL,
    )
    if objects:
        MetadataCatalog.get(f"{name}_separated").set(json_file=objects)
    _register(f"{name}_stuffonly", stuff_only, metadata)
    MetadataCatalog.get(f"{name}_stuffonly").set(
        sem_seg_root=maps, image_root=root, evaluator_type="sem_seg", ignore_label=IGNORE_LABEL
    )


def _check_numbers(name: str, data: CocoFile, known: dict[str, Any]) -> None:
    """Refuse metadata that numbers classes otherwise than the records do."""
    for key in _NUMBERS:
        given, own = known.get(key, {}), data.metadata.get(key, {})
        for category_id, number in own.items() if given else ():
            # Number 0 of stuff are things as a whole, which need no id.
            if given.get(category_id, 0) != number:
                raise DataError(
                    f"the metadata of {name} gives category {category_id} the number "
                    f"{given.get(category_id)} in {key}, its files {number}; leave {key} and the "
                    "class names out, or write label maps in your order and give sem_seg_root"
                )


def _register(
    name: str, read: Callable[[dict[str, Any]], CocoFile], metadata: dict[str, Any]
) -> None:
    """Name a reader, which gets the metadata; its files' counts where that is silent."""

    def load() -> list[dict[str, Any]]:
        facts = MetadataCatalog.get(name)
        known = facts.as_dict()
        data = read(known)
        facts.set(**{key: value for key, value in data.metadata.items() if key not in known})
        return data.records

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(**metadata)
