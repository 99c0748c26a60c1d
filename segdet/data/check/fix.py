"""A cleaned copy of a COCO json: what can be mended is mended, what cannot be used is left out."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segdet.data.check.coco import check_coco
from segdet.data.check.findings import Checked, Finding
from segdet.data.defects import Defect, Severity
from segdet.data.image_io import image_size_of
from segdet.data.readers.coco_annotation import MAX_COORDINATE, read_segmentation
from segdet.data.readers.coco_json import name_of, parse_json, paused_gc
from segdet.data.rle import rle_runs
from segdet.errors import DataError
from segdet.structures import polygon_area
from segdet.utils.writing import write_text_atomically

Row = dict[str, Any]


class NotMendableError(Exception):
    """A record is left out; the argument says why."""


def write_fixed(checked: Checked, output: Path) -> str:
    """Write a copy of a COCO json that is free of what was found, as far as that goes.

    Args:
        checked: its check.
        output: the copy; beside it, `changes_of(output)` names each change and what is left.

    Returns:
        A line that says how much was done.

    Raises:
        DataError: it is no COCO json of instances, or cannot be parsed.
    """
    file = Path(checked.name)
    log, found, left = [], checked, [one for one in checked.findings if one.kind in _OF_PICTURES]
    for _ in range(ROUNDS):
        with paused_gc():
            tree = parse_json(file)
            if not all(isinstance(tree.get(key), list) for key in _TABLES):
                tables = ", ".join(_TABLES)
                raise DataError(f"{file}: --fix mends COCO jsons of instances, with {tables}")
            fixer = Fixer(tree, found)
            fixer.run()
            write_text_atomically(output, fixer.as_json())
        log += fixer.log
        # What was changed may bring new things to light, as an image's size does.
        file, found = output, check_coco(output, None, open_images=False)
        if not fixer.log:
            break
    left += [one for one in found.findings if one.severity != Severity.NOTE]
    log_file = changes_of(output)
    lines = [*log, *(f"left: {one.record}: {one.message} ({one.kind})" for one in left)]
    write_text_atomically(log_file, "".join(f"{line}\n" for line in lines))
    return f"{output}: {len(log)} changes, {len(left)} findings are left; see {log_file}"


def changes_of(output: Path) -> Path:
    """The list of changes, beside the copy."""
    return output.with_suffix(".changes.txt")


ROUNDS = 3
_OF_PICTURES = {"image-twice", "image-in-two-sets"}  # kinds that no change of the json mends
_TABLES = ("categories", "images", "annotations")
_NO_PICTURE = {  # kinds after which an image cannot be used
    *("file-name-invalid", "file-name-outside", "image-missing", "image-unreadable"),
    *("image-too-large", "wrong-type"),
}
_SIZE = {"size-missing", "size-invalid", "size-differs"}


@dataclass
class Fixer:
    """Mends a parsed json in place, and writes down each change."""

    tree: dict[str, Any]
    checked: Checked
    log: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Mend all tables."""
        by_record: defaultdict[str, list[Finding]] = defaultdict(list)
        by_row: defaultdict[int, list[Finding]] = defaultdict(list)
        for one in self.checked.findings:
            if one.row is None:
                by_record[one.record].append(one)
            else:
                by_row[one.row].append(one)
        self._mend_categories(by_record)
        images = self._mend_images(by_record)
        self._mend_annotations(by_row, images)

    def as_json(self) -> str:
        """The json, without the fields that it cannot hold."""
        try:
            return json.dumps(self.tree, allow_nan=False)
        except ValueError:  # in a field that nobody reads: of the others it is a finding
            for table in _TABLES:
                for i, row in enumerate(self.tree[table]):
                    self._leave_out_nan(name_of(row, table, i), row)
            self._leave_out_nan("the file", self.tree)
            return json.dumps(self.tree, allow_nan=False)

    def _leave_out_nan(self, record: str, row: Row) -> None:
        for key in [key for key, value in row.items() if not _is_finite(value)]:
            del row[key]
            self._change(record, f"{key} left out: it holds NaN or Infinity, which no json can")

    def _change(self, record: str, what: str, found: Sequence[Finding] = ()) -> None:
        kinds = ", ".join(sorted({one.kind for one in found}))
        self.log.append(f"{record}: {what}" + (f" ({kinds})" if kinds else ""))

    def _mend_categories(self, findings: dict[str, list[Finding]]) -> None:
        kept: dict[Any, Row] = {}
        rows = []
        for i, row in enumerate(self.tree["categories"]):
            record = name_of(row, "categories", i) if isinstance(row, dict) else f"categories[{i}]"
            found = findings[record]
            kinds = {one.kind for one in found}
            if kinds & {"wrong-type", "not-a-whole-number"}:
                self._change(record, f"left out: {found[0].message}", found)
                continue
            if "name-invalid" in kinds and not isinstance(row.get("name"), str):
                row["name"] = record
                self._change(record, f"name set to {record!r}", found)
            first = kept.setdefault(row["id"], row)
            if first is not row and first.get("name") == row.get("name"):
                self._change(record, "its second row is left out", found)
                continue
            rows.append(row)
        self.tree["categories"] = rows

    def _mend_images(self, findings: dict[str, list[Finding]]) -> dict[Any, Row]:
        """The images that are kept, by id."""
        paths = {picture.record: picture.path for picture in self.checked.pictures}
        kept: dict[Any, Row] = {}
        for i, row in enumerate(self.tree["images"]):
            record = name_of(row, "images", i) if isinstance(row, dict) else f"images[{i}]"
            found = [f for f in findings[record] if f.kind in _NO_PICTURE]
            if found:
                self._change(record, f"left out: {found[0].message}", found)
                continue
            twice = [f for f in findings[record] if f.kind == "id-twice"]
            if twice and row["id"] in kept:
                self._change(record, f"its second row is left out, {row.get('file_name')!r}", twice)
                continue
            unread = [f for f in findings[record] if f.kind == "not-a-whole-number"]
            sizes = [f for f in findings[record] if f.kind in _SIZE] + [
                f for f in unread if f.field in ("width", "height")
            ]
            if sizes and not self._mend_size(record, row, paths.get(record), sizes):
                continue
            if any(f.field == "id" for f in unread):
                self._change(record, "left out: its id is no whole number", unread)
                continue
            kept[row["id"]] = row
        self.tree["images"] = list(kept.values())
        return kept

    def _mend_size(self, record: str, row: Row, path: str | None, found: list[Finding]) -> bool:
        """Whether the image has a size now."""
        try:
            if path is None:
                raise DataError("its picture is not known")
            height, width = image_size_of(path)
        except DataError as error:
            if all(one.kind == "size-missing" for one in found):
                return True
            self._change(record, f"left out: it has no size, and {error}", found)
            return False
        if any(one.kind == "size-differs" for one in found) and (
            (row.get("width"), row.get("height")) != (height, width)
        ):
            message = "is left out: nobody knows which size its objects are of"
            self._change(record, f"{message}; {found[0].message}", found)
            return False
        row["height"], row["width"] = height, width
        self._change(record, f"width and height set to {width} and {height}", found)
        return True

    def _mend_annotations(self, findings: dict[int, list[Finding]], images: dict[Any, Row]) -> None:
        ids = [row.get("id") for row in self.tree["annotations"] if isinstance(row, dict)]
        numbers = [one for one in ids if isinstance(one, int | float) and math.isfinite(one)]
        next_id = int(max(numbers, default=0)) + 1
        rows = []
        for i, row in enumerate(self.tree["annotations"]):
            found = findings.get(i, [])
            record = (
                name_of(row, "annotations", i) if isinstance(row, dict) else f"annotations[{i}]"
            )
            if not isinstance(row, dict):
                self._change(record, "left out: it is no object", found)
                continue
            if not found and row.get("image_id") in images:
                rows.append(row)
                continue
            mended = Annotation(row, images.get(row.get("image_id")), next_id)
            try:
                for one in found:
                    mended.mend(one)
            except NotMendableError as reason:
                self._change(record, f"left out: {reason}", found)
                continue
            if mended.image is None:
                self._change(record, f"left out with image {row.get('image_id')}")
                continue
            if mended.said:
                next_id = mended.next_id
                self._change(record, ", ".join(mended.said), mended.done)
            rows.append(row)
        self.tree["annotations"] = rows


@dataclass
class Annotation:
    """One annotation, mended in place."""

    row: Row
    image: Row | None
    next_id: int
    said: list[str] = field(default_factory=list)
    done: list[Finding] = field(default_factory=list)

    def mend(self, finding: Finding) -> None:
        """Do what helps against a finding; maybe nothing does.

        Raises:
            NotMendableError: the annotation cannot be used.
        """
        by_field: dict[str, Callable[[Finding], str | None]] = {
            "id": self._number,
            "bbox": self._mend_box,
            "segmentation": self._mend_mask,
            "area": self._mend_area,
            "keypoints": self._mend_keypoints,
            "iscrowd": self._mend_crowd,
            "ignore": self._mend_crowd,
        }
        if finding.kind in ("mask-missing", "absent-class-annotated"):
            return
        action = by_field.get(finding.field)
        if action is None or self.image is None:
            raise NotMendableError(finding.message)
        what = action(finding)
        self.done.append(finding)
        if what is not None and what not in self.said:
            self.said.append(what)

    def _number(self, _: Finding) -> str:
        self.row["id"] = self.next_id
        self.next_id += 1
        return f"id set to {self.row['id']}"

    def _mend_crowd(self, _: Finding) -> str:
        crowd = self.row.pop("ignore", 0) != 0 or str(self.row.get("iscrowd")).lower() in _TRUE
        self.row["iscrowd"] = int(crowd)
        return f"iscrowd set to {int(crowd)}"

    def _mend_keypoints(self, finding: Finding) -> str | None:
        points: Any = self.row.get("keypoints")
        if finding.kind not in ("keypoint-visibility", "keypoint-outside"):
            if points is None:
                return None
            del self.row["keypoints"]
            self.row.pop("num_keypoints", None)
            return "keypoints left out"
        size = self._size()
        for k in range(0, len(points), 3):
            x, y, visibility = points[k : k + 3]
            if visibility not in (0, 1, 2) or not (0 <= x <= size[0] and 0 <= y <= size[1]):
                points[k : k + 3] = [0, 0, 0]
        if "num_keypoints" in self.row:
            self.row["num_keypoints"] = sum(v > 0 for v in points[2::3])
        return "keypoints that cannot be used set to 0, 0, 0"

    def _size(self) -> tuple[float, float]:
        image = self.image or {}
        return image.get("width", math.inf), image.get("height", math.inf)

    def _extent(self) -> Any:
        """Of the mask; None where it has none that can be read."""
        width, height = self._size()
        segmentation = self.row.get("segmentation")
        try:
            place = {"width": width, "height": height}
            _, extent = read_segmentation(segmentation, place, [])
        except Defect:
            return None
        if extent is None:
            return None
        x0, y0 = max(extent[0], 0), max(extent[1], 0)
        x1, y1 = min(extent[2], width), min(extent[3], height)
        return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None

    def _mend_box(self, _: Finding) -> str:
        old = self.row.get("bbox")
        extent = self._extent()
        if extent is None:
            values = _numbers(old) if isinstance(old, list) and len(old) == 4 else None
            if values is None:
                raise NotMendableError(f"bbox is {old!r:.80}, and there is no mask to take it from")
            width, height = self._size()
            x0, y0 = max(values[0], 0), max(values[1], 0)
            x1, y1 = min(values[0] + values[2], width), min(values[1] + values[3], height)
            if x0 >= x1 or y0 >= y1:
                raise NotMendableError(f"nothing of bbox {old!r:.80} is in the image")
            extent = (x0, y0, x1, y1)
        x0, y0, x1, y1 = extent
        self.row["bbox"] = [x0, y0, x1 - x0, y1 - y0]
        return f"bbox {old!r:.80} set to {self.row['bbox']}"

    def _mend_mask(self, finding: Finding) -> str:
        segmentation = self.row.get("segmentation")
        if not isinstance(segmentation, list):
            raise NotMendableError(finding.message)
        if segmentation and not isinstance(segmentation[0], list):
            segmentation = [segmentation]
        parts = [part for one in segmentation for part in _usable(one, self._size())]
        if not parts:
            raise NotMendableError("nothing of its polygons can be used")
        self.row["segmentation"] = parts
        if self.row.get("bbox") is not None:
            self._mend_box(finding)
        self.row["area"] = self._area()
        return "polygons cut to the image and made simple; bbox and area set to theirs"

    def _mend_area(self, _: Finding) -> str:
        old = self.row.get("area")
        self.row["area"] = self._area()
        return f"area {old!r:.80} set to {self.row['area']:g}"

    def _area(self) -> float:
        segmentation = self.row.get("segmentation")
        try:
            if isinstance(segmentation, dict):
                return float(rle_runs(segmentation)[1::2].sum())
            if segmentation:
                return sum(polygon_area(np.asarray(part, np.float64)) for part in segmentation)
        except (Defect, ValueError, TypeError, IndexError):
            return 0.0  # another finding leaves the annotation out
        values = _numbers(self.row.get("bbox") or []) or [0, 0, 0, 0]
        return max(values[2], 0) * max(values[3], 0)


_TRUE = ("1", "1.0", "true")


def _is_finite(value: Any) -> bool:
    """Whether all numbers in a json's value are."""
    if isinstance(value, dict | list):
        return all(map(_is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def _numbers(values: Sequence[Any]) -> Sequence[float] | None:
    """The values as numbers, texts too; None where one is none or is out of all bounds."""
    try:
        numbers = [v if isinstance(v, int | float) else float(v) for v in values]
    except (TypeError, ValueError):
        return None
    return numbers if all(abs(v) <= MAX_COORDINATE for v in numbers) else None


def _usable(part: Any, size: tuple[float, float]) -> list[list[float]]:
    """What a polygon leaves that is simple and in the image; the polygon itself, if it is."""
    import shapely

    points = _numbers(part) if isinstance(part, list) else None
    if points is None or len(points) % 2 or len(points) < 6:
        return []
    corners = np.reshape(points, (-1, 2))
    polygon = shapely.Polygon(corners)
    inside = (corners >= 0).all() and (corners <= size).all()
    if inside and polygon.is_valid:
        return [list(points)] if polygon.area > 0 else []
    limit = np.minimum(size, MAX_COORDINATE)
    cut = shapely.make_valid(polygon).intersection(shapely.box(0, 0, *limit))
    shapes = [one for one in _polygons_in(cut) if one.area >= 1]
    return [np.asarray(one.exterior.coords)[:-1].reshape(-1).tolist() for one in shapes]


def _polygons_in(shape: Any) -> list[Any]:
    import shapely

    parts = shapely.get_parts(shape)
    nested = [one for one in parts if one.geom_type in ("MultiPolygon", "GeometryCollection")]
    return [one for one in parts if one.geom_type == "Polygon"] + [
        polygon for one in nested for polygon in _polygons_in(one)
    ]
