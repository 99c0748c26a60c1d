"""A COCO json of instances, and LVIS's: every row of it, and what only all together show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from segdet.data.check.annotations import Context, Outcome, check_part
from segdet.data.check.findings import Checked, Findings
from segdet.data.check.json_parts import BrokenPartError, in_parts, whole
from segdet.data.check.tables import Tables
from segdet.data.check.work import spread
from segdet.data.defects import Defect
from segdet.data.readers.coco_json import id_twice, may_repeat_ids, paused_gc


def check_coco(
    json_file: Path,
    image_root: str | None,
    *,
    is_lvis: bool = False,
    open_images: bool = True,
    workers: int = 1,
) -> Checked:
    """Check a json of instances; its pictures are listed, not opened.

    Args:
        json_file: the annotations.
        image_root: the folder of its images; None where that is not known.
        is_lvis: read names and places of files as LVIS has them.
        open_images: read sizes that the json lacks from the pictures.
        workers: processes.
    """
    with paused_gc():
        for opened in (in_parts, whole):
            try:
                parts = opened(json_file)
                if parts is not None:
                    tables = Tables(json_file, image_root, parts, is_lvis, open_images)
                    if tables.read():
                        _check_annotations(tables, workers)
                    return tables.checked()
            except BrokenPartError:  # the file as a whole says what is wrong with it
                continue
            except Defect as error:
                findings = Findings(json_file)
                findings.take(error)
                return Checked(str(json_file), findings)
    raise AssertionError("a whole file has no broken part")


def _check_annotations(tables: Tables, workers: int) -> None:
    try:
        parts = tables.parts_of("annotations")
    except Defect as error:
        if error.kind == "key-missing":
            message = "has no key 'annotations': a file for evaluation or prediction"
            tables.findings.add("no-annotations", "", message, "annotations")
        else:
            tables.findings.take(error)
        return
    context = Context(tables.file, tables.images, tables.category_ids, tables.keypoints)
    what = f"{tables.file.name}: rows"
    outcomes = list(spread(check_part, context, parts, workers=workers, what=what))
    of_rows = [finding for outcome in outcomes for finding in outcome.findings]
    tables.findings.extend(sorted(of_rows, key=lambda one: one.row or 0))
    names: list[str] = [name for outcome in outcomes for name in outcome.names]
    if not may_repeat_ids(tables.file):
        _check_ids(tables, names, [one for outcome in outcomes for one in outcome.ids])
    columns = Columns.of(outcomes)
    _check_same_objects(tables, names, columns)
    _check_absent_classes(tables, names, columns)
    _count(tables, names, columns)
    _check_use(tables, columns, {one for outcome in outcomes for one in outcome.used})


@dataclass(frozen=True)
class Columns:
    """The annotations that a reader takes, N of them; see `Outcome`."""

    row: np.ndarray
    image: np.ndarray
    category: np.ndarray
    crowd: np.ndarray
    has_mask: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Columns:
        """Those of all parts."""
        every = [*outcomes, Outcome(Findings(""))]
        names = [one.name for one in fields(cls)]
        return cls(**{name: np.concatenate([getattr(o, name) for o in every]) for name in names})

    def select(self, which: np.ndarray) -> Columns:
        """Those where `which`, (N,) bool, holds."""
        return Columns(**{one.name: getattr(self, one.name)[which] for one in fields(self)})


def _check_ids(tables: Tables, names: list[str], ids: Sequence[int | None]) -> None:
    seen: set[int] = set()
    for row, one in enumerate(ids):
        if one in seen:
            tables.findings.take(id_twice(), names[row], row)
        elif one is not None:
            seen.add(one)


def _check_same_objects(tables: Tables, names: list[str], columns: Columns) -> None:
    keys = np.column_stack([columns.image, columns.category, columns.boxes])
    order = np.lexsort(keys.T)
    same = (keys[order][1:] == keys[order][:-1]).all(1)
    for place in np.flatnonzero(same).tolist():
        one, other = columns.row[order[[place, place + 1]]]
        message = f"image, category and bbox are those of {names[one]}"
        tables.findings.add("annotation-twice", names[other], message, "", int(other))


def _check_absent_classes(tables: Tables, names: list[str], columns: Columns) -> None:
    if not tables.absent:
        return
    triples = np.stack([columns.row, columns.image, columns.category], axis=1)
    for row, image, category in triples.tolist():
        if category in tables.absent.get(image, ()):
            message = "its image lists the category in neg_category_ids, as seen to be absent"
            tables.findings.add("absent-class-annotated", names[row], message, "category_id", row)


def _count(tables: Tables, names: list[str], columns: Columns) -> None:
    """The summary; and objects without a mask beside others that have one."""
    objects = columns.select(~columns.crowd)
    tables.summary.crowds = int(columns.crowd.sum())
    tables.summary.with_mask = int(objects.has_mask.sum())
    tables.summary.count_objects(objects.image, objects.category, objects.areas)
    if tables.summary.with_mask:
        for row in objects.row[~objects.has_mask].tolist():
            message = "has no segmentation, other annotations have"
            tables.findings.add("mask-missing", names[row], message, "segmentation", row)


def _check_use(tables: Tables, columns: Columns, used: set[int | str]) -> None:
    """Images and categories without an object."""
    if not used:
        message = "no image has an object (an annotation with iscrowd 0)"
        tables.findings.add("nothing-to-train-on", "", message)
    for image_id, image in tables.images.items():
        if image_id not in used:
            message = "no annotation with iscrowd 0"
            tables.findings.add("image-without-objects", image["record"], message)
    categories = {*columns.category.tolist()}
    for category_id, k in tables.category_ids.items():
        if k not in categories:
            message = f"no annotation is of the category {tables.summary.classes[k]!r}"
            tables.findings.add("category-unused", f"category {category_id}", message)
