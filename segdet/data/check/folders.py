"""Pascal VOC's, SBD's and Cityscapes' layouts: a file for each picture."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segdet.data.check.findings import Checked, Findings, Picture
from segdet.data.check.work import spread
from segdet.data.defects import Defect
from segdet.data.image_io import read_labels
from segdet.data.readers.cityscapes import (
    CityscapesFiles,
    cityscapes_files,
    label_of,
    read_json,
    shape_of,
    train_ids_file,
)
from segdet.data.readers.cityscapes_labels import THINGS, TRAINED
from segdet.data.readers.pascal_voc import (
    annotation_file,
    class_of,
    parse_xml,
    read_names,
    read_object,
    read_size,
    read_split,
)
from segdet.data.readers.sbd import (
    read_sbd_objects,
    sbd_class,
    sbd_file,
    sbd_image,
    sbd_list,
)
from segdet.data.sem_seg import IGNORE_LABEL


class Outcome(NamedTuple):
    """What a file gave."""

    findings: Findings
    size: tuple[int, int] | None  # (height, width) that it says
    objects: list[tuple[int, float]]  # class and area


def _attempt(findings: Findings, record: str, function: Any, *args: Any) -> Any:
    """What a reader's function gives; None, and a finding, where it refuses."""
    try:
        return function(*args)
    except Defect as error:
        findings.take(error, record)
        return None


def _gather(
    checked: Checked, findings: Findings, pictures: Sequence[Picture], outcomes: Sequence[Outcome]
) -> Checked:
    """The findings and the summary of all files."""
    rows = []
    for number, (picture, outcome) in enumerate(zip(pictures, outcomes, strict=True)):
        findings += outcome.findings
        checked.pictures.append(picture._replace(size=outcome.size))
        if outcome.size is not None:
            checked.summary.image_sizes[outcome.size[1], outcome.size[0]] += 1
        if not outcome.objects:
            findings.add("image-without-objects", picture.record, "no object")
        rows += [(number, k, area) for k, area in outcome.objects]
    checked.summary.images = len(pictures)
    if rows:
        image, classes, areas = (np.array(column) for column in zip(*rows, strict=True))
        checked.summary.count_objects(image, classes, areas)
    else:
        findings.add("nothing-to-train-on", "", "no image has an object")
    checked.findings = list(findings)
    return checked


def _listed(findings: Findings, read: Any, *args: Any) -> list[str]:
    """The names of a list, each once."""
    names = _attempt(findings, "", read, *args) or []
    for name in sorted({name for name in names if names.count(name) > 1}):
        findings.add("file-name-twice", name, f"{name} is listed twice")
    return list(dict.fromkeys(names))


def check_sbd(dirname: str, split: str, class_names: Sequence[str], *, workers: int = 1) -> Checked:
    """Check a split of the Semantic Boundaries Dataset; its pictures are listed.

    Args:
        dirname: holds `img`, `inst` and the lists.
        split: names a list.
        class_names: of its objects.
        workers: processes.
    """
    checked = Checked(f"{dirname}:{split}")
    checked.summary.classes = list(class_names)
    findings = Findings(sbd_list(dirname, split))
    names = _listed(findings, read_names, sbd_list(dirname, split))
    files = [(name, sbd_file(dirname, name)) for name in names]
    what = f"{split}: annotations"
    outcomes = spread(_check_mat, len(class_names), files, workers=workers, what=what)
    pictures = [Picture(name, sbd_image(dirname, name), None) for name in names]
    return _gather(checked, findings, pictures, list(outcomes))


def _check_mat(num_classes: int, task: tuple[str, Path]) -> Outcome:
    name, file = task
    findings = Findings(file)
    read = _attempt(findings, name, read_sbd_objects, file)
    if read is None:
        return Outcome(findings, None, [])
    segments, categories = read
    objects = []
    for number, category in enumerate(categories.tolist(), start=1):
        record = f"{name}, object {number}"
        place = _attempt(findings, record, sbd_class, category, num_classes)
        area = int((segments == number).sum())
        if area == 0:
            findings.add("mask-empty", record, f"no pixel of Segmentation is {number}")
        elif place is not None:
            objects.append((place, area))
    return Outcome(findings, segments.shape, objects)


def check_voc(dirname: str, split: str, class_names: Sequence[str], *, workers: int = 1) -> Checked:
    """Check a split of Pascal VOC's layout; its pictures are listed.

    Args:
        dirname: holds `Annotations`, `ImageSets/Main` and `JPEGImages`.
        split: names a list in `ImageSets/Main`.
        class_names: of its objects.
        workers: processes.
    """
    checked = Checked(f"{dirname}:{split}")
    checked.summary.classes = list(class_names)
    findings = Findings(os.path.join(dirname, "ImageSets", "Main", f"{split}.txt"))
    names = _listed(findings, read_split, dirname, split)
    files = [(name, annotation_file(dirname, name)) for name in names]
    classes = {name: k for k, name in enumerate(class_names)}
    outcomes = spread(_check_xml, classes, files, workers=workers, what=f"{split}: annotations")
    pictures = [
        Picture(name, os.path.join(dirname, "JPEGImages", f"{name}.jpg"), None) for name in names
    ]
    return _gather(checked, findings, pictures, list(outcomes))


def _check_xml(classes: dict[str, int], task: tuple[str, Path]) -> Outcome:
    name, file = task
    findings = Findings(file)
    tree: ElementTree.Element | None = _attempt(findings, name, parse_xml, file)
    if tree is None:
        return Outcome(findings, None, [])
    size = _attempt(findings, name, read_size, tree)
    objects = []
    for i, node in enumerate(tree.findall("object")):
        record = f"{name}, object {i}"
        one = _attempt(findings, record, read_object, node)
        category = None if one is None else _attempt(findings, record, class_of, one, classes)
        if one is None or category is None:
            continue
        x0, y0, x1, y1 = one.box
        if size is not None and (x0 < 1 or y0 < 1 or x1 > size[1] or y1 > size[0]):
            message = f"bndbox {list(one.box)} leaves the image of {size[1]} x {size[0]}"
            findings.add("box-past-border", record, message, "bndbox")
        objects.append((category, (x1 - x0 + 1) * (y1 - y0 + 1)))
    return Outcome(findings, size, objects)


def check_cityscapes(image_dir: str, gt_dir: str, task: str, *, workers: int = 1) -> Checked:
    """Check a split of Cityscapes; its pictures are listed.

    Args:
        image_dir: such as leftImg8bit/train.
        gt_dir: such as gtFine/train.
        task: "instance" reads the polygons, "sem_seg" the label maps.
        workers: processes.
    """
    checked = Checked(f"{image_dir}:{gt_dir}")
    findings = Findings(image_dir)
    files = _attempt(findings, "", cityscapes_files, image_dir, gt_dir) or []
    pictures = [Picture(one.image.name, str(one.image), None) for one in files]
    reads = {"instance": _check_polygons, "sem_seg": _check_labels}[task]
    labels = THINGS if task == "instance" else TRAINED
    checked.summary.classes = [label.name for label in labels]
    outcomes = spread(reads, gt_dir, files, workers=workers, what=f"{gt_dir}: annotations")
    return _gather(checked, findings, pictures, list(outcomes))


def _check_polygons(_: str, files: CityscapesFiles) -> Outcome:
    findings, name = Findings(files.polygons), files.image.name
    tree = _attempt(findings, name, read_json, files.polygons)
    if tree is None:
        return Outcome(findings, None, [])
    size = tree["imgHeight"], tree["imgWidth"]
    objects = []
    for i, row in enumerate(tree["objects"]):
        record = f"{name}, objects[{i}]"
        found = _attempt(findings, record, label_of, row)
        if found is None or row.get("deleted"):
            continue
        label, is_group = found
        shape = _attempt(findings, record, shape_of, row)
        if shape is None:
            continue
        for kind, message in _odd_shapes(row["polygon"], size):
            findings.add(kind, record, message, "polygon")
        if label in THINGS and not is_group:
            objects.append((THINGS.index(label), shape.area))
    return Outcome(findings, size, objects)


def _odd_shapes(polygon: Any, size: tuple[int, int]) -> Iterator[tuple[str, str]]:
    points = np.asarray(polygon, np.float64)
    if (points < -1).any() or (points > (size[1], size[0])).any():
        yield "polygon-past-border", "the polygon leaves the image"


def _check_labels(_: str, files: CityscapesFiles) -> Outcome:
    findings, name = Findings(files.label_ids), files.image.name
    file = _attempt(findings, name, train_ids_file, files)
    labels = None if file is None else _attempt(findings, name, read_labels, file)
    if labels is None:
        return Outcome(findings, None, [])
    values, counts = np.unique(labels, return_counts=True)
    for value in values[(values >= len(TRAINED)) & (values != IGNORE_LABEL)].tolist():
        findings.add("label-unknown", name, f"{file}: label {value} is no train id")
    inside = values < len(TRAINED)
    pairs = zip(values[inside].tolist(), counts[inside].tolist(), strict=True)
    return Outcome(findings, labels.shape, list(pairs))
