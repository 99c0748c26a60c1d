"""The tables of images and categories of a COCO json, by the readers' rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from segdet.data.check.findings import Checked, Findings, Picture, Summary
from segdet.data.check.json_parts import JsonParts, Part
from segdet.data.defects import Defect
from segdet.data.image_io import image_size_of
from segdet.data.readers.coco_json import (
    check_row,
    file_below,
    name_of,
    read_category_row,
    read_image_id,
    read_size,
    rows_of,
)
from segdet.data.readers.lvis_json import (
    FEDERATED_KEYS,
    check_frequency,
    name_categories,
    name_image,
    read_class_ids,
)

NamedRow = tuple[str, dict[str, Any]]  # "image 7", and the row


@dataclass
class Tables:
    """What a json says of its images and categories, and what is wrong with that.

    Args:
        file: the json.
        image_root: the folder of its images; None where that is not known.
        parts: what the file holds.
        is_lvis: read names and places of files as LVIS has them.
        sizes_from_files: read sizes that the json lacks from the pictures, as training does.
    """

    file: Path
    image_root: str | None
    parts: JsonParts
    is_lvis: bool = False
    sizes_from_files: bool = True
    findings: Findings = field(init=False)
    summary: Summary = field(default_factory=Summary)
    pictures: list[Picture] = field(default_factory=list)
    categories: list[NamedRow] = field(default_factory=list)  # that a reader takes
    # Id -> "width" and "height" (infinite where unknown), "number" by the order in the file,
    # "record", "path" (None where there is none).
    images: dict[int | str, dict[str, Any]] = field(default_factory=dict)
    category_ids: dict[int, int] = field(default_factory=dict)  # id -> contiguous id
    keypoints: dict[int, int] = field(default_factory=dict)  # contiguous id -> number of names
    absent: dict[int, set[int]] = field(default_factory=dict)  # image number -> absent classes

    def __post_init__(self) -> None:
        self.findings = Findings(self.file)

    def read(self) -> bool:
        """Check both tables; False where one of them is no table."""
        try:
            categories, images = self.table("categories"), self.table("images")
        except Defect as error:
            self.findings.take(error)
            return False
        self._check_categories(categories)
        self._check_images(images)
        return True

    def checked(self) -> Checked:
        """What has been found."""
        return Checked(str(self.file), list(self.findings), self.summary, self.pictures)

    def parts_of(self, key: str) -> list[Part]:
        """A table in parts.

        Raises:
            Defect: it is missing, or no list.
        """
        rows_of(self.file, self.parts.tree, key)  # says what is wrong with a table as a whole
        return self.parts.lists[key]

    def table(self, key: str) -> list[NamedRow]:
        """Names and rows of a table; what is no row is named and left out."""
        rows = [row for part in self.parts_of(key) for row in part.read()]
        table = []
        for i, row in enumerate(rows):
            try:
                check_row(row)
                table.append((name_of(row, key, i), row))
            except Defect as error:
                self.findings.take(error, f"{key}[{i}]")
        return table

    def _check_categories(self, table: Sequence[NamedRow]) -> None:
        if self.is_lvis:
            name_categories([row for _, row in table])
        names: dict[int, str] = {}
        for record, row in table:
            try:
                if self.is_lvis and "frequency" in row:
                    check_frequency(row)
                category_id, names[category_id] = read_category_row(row, names)
                self.categories.append((record, row))
            except Defect as error:
                self.findings.take(error, record)
        order = sorted(names)
        self.category_ids = {category_id: k for k, category_id in enumerate(order)}
        self.summary.classes = [names[category_id] for category_id in order]
        self._check_names(names)
        positive = [0, *(category_id for category_id in order if category_id > 0)]
        # By their ends: an id may be so large that there is no listing what it leaves out.
        gaps = [(a + 1, b - 1) for a, b in pairwise(positive) if b - a > 1]
        if gaps:
            without = _some([str(a) if a == b else f"{a} to {b}" for a, b in gaps])
            message = f"ids go to {order[-1]}, without {without}"
            self.findings.add("category-ids-with-gaps", "", message, "categories")
        for _, row in table:
            if isinstance(row.get("keypoints"), list) and row.get("id") in self.category_ids:
                self.keypoints[self.category_ids[row["id"]]] = len(row["keypoints"])

    def _check_names(self, names: dict[int, str]) -> None:
        equal: dict[str, int] = {}
        alike: dict[str, int] = {}
        for category_id, name in names.items():
            like = "".join(name.casefold().replace("_", " ").replace("-", " ").split())
            record = f"category {category_id}"
            if name in equal:
                message = f"has the name {name!r} of category {equal[name]}"
                self.findings.add("category-names-equal", record, message, "name")
            elif like in alike:
                other = alike[like]
                message = f"its name {name!r} is almost category {other}'s, {names[other]!r}"
                self.findings.add("category-names-alike", record, message, "name")
            equal.setdefault(name, category_id)
            alike.setdefault(like, category_id)

    def _check_images(self, table: Sequence[NamedRow]) -> None:
        record_of: dict[str, str] = {}
        for record, row in table:
            if self.is_lvis:
                name_image(row)
            path = self.attempt(record, file_below, self.image_root or "", row.get("file_name"))
            size = self._size_of(record, row, path)
            image_id = self.attempt(record, read_image_id, row, self.images)
            self._check_classes(record, row)
            if image_id is None:
                continue
            if path is not None:
                if path in record_of:
                    message = f"its file is that of {record_of[path]}: {row['file_name']!r}"
                    self.findings.add("file-name-twice", record, message, "file_name")
                else:
                    self.pictures.append(Picture(record, path, size))
                record_of.setdefault(path, record)
            if size is not None:
                self.summary.image_sizes[size[1], size[0]] += 1
            height, width = size or (math.inf, math.inf)
            number = len(self.images)
            place = {"number": number, "record": record, "path": path}
            self.images[image_id] = {"width": width, "height": height, **place}
        self.summary.images = len(table)
        if len({type(image_id) for image_id in self.images}) > 1:
            message = "image ids are partly numbers, partly text; use one"
            self.findings.add("ids-of-two-kinds", "", message, "images")

    def attempt(self, record: str, function: Callable[..., Any], *args: Any) -> Any:
        """What a reader's function gives; None, and a finding, where it refuses."""
        try:
            return function(*args)
        except Defect as error:
            self.findings.take(error, record)
            return None

    def _size_of(self, record: str, row: dict[str, Any], path: str | None) -> Any:
        """(height, width), or None where it is not known."""
        known = len(self.findings)
        size = self.attempt(record, read_size, row, path or "")
        if size is None and len(self.findings) == known:
            message = "width and height are missing"
            self.findings.add("size-missing", record, message, "width, height")
            if path is not None and self.sizes_from_files:
                size = self.attempt(record, image_size_of, path)
        return size

    def _check_classes(self, record: str, row: dict[str, Any]) -> None:
        """LVIS's lists of classes; an image's number is the next one."""
        for key in FEDERATED_KEYS:
            if key in row:
                ids = self.attempt(record, read_class_ids, row, key, self.category_ids)
                if key == "neg_category_ids" and ids:
                    self.absent[len(self.images)] = {self.category_ids[one] for one in ids}


def _some(values: Sequence[Any], limit: int = 10) -> str:
    return ", ".join(map(str, values[:limit])) + (", ..." if len(values) > limit else "")
