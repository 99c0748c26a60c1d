"""Reads Cityscapes' layout: a folder of pictures and one of annotations, by city."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segdet.data.defects import Defect, located
from segdet.data.image_io import image_size_of, read_labels
from segdet.data.limits import check_file
from segdet.data.readers.cityscapes_labels import BY_ID, BY_NAME, THINGS, Label
from segdet.data.rle import encode_rle, tight_box
from segdet.errors import DataError
from segdet.structures import BoxMode

IMAGE_SUFFIX = "leftImg8bit.png"
_FIRST_THING = min(label.id for label in BY_ID.values() if label.has_instances)
_CLASS_OF_ID = {label.id: k for k, label in enumerate(THINGS)}


class CityscapesFiles(NamedTuple):
    """What belongs to one picture."""

    image: Path
    instance_ids: Path  # 16-bit png
    label_ids: Path  # 8-bit png
    polygons: Path  # json


def cityscapes_files(
    image_dir: str | os.PathLike[str], gt_dir: str | os.PathLike[str]
) -> list[CityscapesFiles]:
    """The files of a split, sorted by city and name.

    Args:
        image_dir: such as leftImg8bit/train.
        gt_dir: such as gtFine/train.

    Raises:
        DataError: there are no pictures.
    """
    files = []
    for image in sorted(Path(image_dir).glob(f"*/*{IMAGE_SUFFIX}")):
        stem = f"{gt_dir}/{image.parent.name}/{image.name.removesuffix(IMAGE_SUFFIX)}gtFine_"
        names = ("instanceIds.png", "labelIds.png", "polygons.json")
        files.append(CityscapesFiles(image, *(Path(stem + name) for name in names)))
    if not files:
        message = f"{image_dir} has no CITY/*{IMAGE_SUFFIX}; is it a split of Cityscapes?"
        raise Defect("nothing-pairs", message)
    return files


def load_cityscapes_instances(
    image_dir: str | os.PathLike[str],
    gt_dir: str | os.PathLike[str],
    from_json: bool = True,
    to_polygons: bool = True,
) -> list[dict[str, Any]]:
    """Read the objects of a split as standard dicts; classes are the 8 evaluated ones.

    Args:
        image_dir: such as leftImg8bit/train.
        gt_dir: such as gtFine/train.
        from_json: read the polygons and cut away what is hidden; otherwise read instanceIds.png.
        to_polygons: segmentations are polygons (from pictures this needs OpenCV), otherwise RLE.

    Raises:
        DataError: a file is missing or broken.
    """
    if from_json and not to_polygons:
        raise DataError("Cityscapes' json files give polygons; for RLE read with from_json=False")
    records = []
    for files in cityscapes_files(image_dir, gt_dir):
        record: dict[str, Any] = {"file_name": str(files.image), "image_id": files.image.name}
        if from_json:
            tree = read_json(files.polygons)
            record |= {"height": tree["imgHeight"], "width": tree["imgWidth"]}
            record["annotations"] = _from_polygons(tree["objects"], files.polygons)
        else:
            ids = read_labels(files.instance_ids)
            record |= {"height": ids.shape[0], "width": ids.shape[1]}
            record["annotations"] = list(_from_ids(ids, to_polygons))
        records.append(record)
    return records


def load_cityscapes_semantic(
    image_dir: str | os.PathLike[str], gt_dir: str | os.PathLike[str]
) -> list[dict[str, Any]]:
    """Read a split as standard dicts with label maps of train ids.

    Args:
        image_dir: such as leftImg8bit/train.
        gt_dir: such as gtFine/train; labelTrainIds.png lie beside the original files.

    Raises:
        DataError: a label map is missing.
    """
    records = []
    for files in cityscapes_files(image_dir, gt_dir):
        labels = train_ids_file(files)
        height, width = image_size_of(files.image)
        size = {"height": height, "width": width}
        records.append({"file_name": str(files.image), "sem_seg_file_name": labels, **size})
    return records


def train_ids_file(files: CityscapesFiles) -> str:
    """The label map of train ids beside the original files."""
    labels = str(files.label_ids).replace("labelIds.png", "labelTrainIds.png")
    if not os.path.isfile(labels):
        raise Defect(
            "file-missing",
            f"{labels} does not exist; make these files with tools/prepare_cityscapes.py, or "
            "with cityscapesscripts' csCreateTrainIdLabelImgs",
        )
    return labels


def read_json(file: Path) -> dict[str, Any]:
    """The content of a polygons.json."""
    try:
        check_file(file)
        tree = json.loads(file.read_bytes())
    except OSError as error:
        message = f"{file}: cannot be read ({error.strerror or error})"
        raise Defect("file-unreadable", message) from None
    except Defect as error:
        raise located(file, error) from None
    except (ValueError, RecursionError) as error:
        raise Defect("json-invalid", f"{file}: is not valid JSON ({error})") from None
    keys = {"imgHeight": int, "imgWidth": int, "objects": list}
    for key, kind in keys.items():
        if not isinstance(tree, dict) or type(tree.get(key)) is not kind:
            message = f"{file}: must be an object with {', '.join(keys)}; {key} is not so"
            raise Defect("wrong-type", message, key)
    return tree


def _from_polygons(objects: list[dict[str, Any]], file: Path) -> list[dict[str, Any]]:
    """The visible parts of the objects, front to back."""
    import shapely

    annotations: list[dict[str, Any]] = []
    in_front: list[Any] = []
    for number, row in reversed(list(enumerate(objects))):  # the last one is nearest
        try:
            label, is_group = label_of(row)
            if label.id < 0 or row.get("deleted"):
                continue
            shape = shape_of(row)
        except DataError as error:
            raise located(f"{file}: objects[{number}]", error) from None
        if label in THINGS:
            near = [other for other in in_front if other.intersects(shape)]
            visible = shape.difference(shapely.union_all(near)) if near else shape
            if not visible.is_empty:
                annotations.append(_annotation(visible, label, is_group))
        in_front.append(shape)
    return annotations


def label_of(row: Any) -> tuple[Label, bool]:
    """The class of an object, and whether it is a group of such objects."""
    name = row.get("label") if isinstance(row, dict) else None
    if not isinstance(name, str):
        raise Defect("name-invalid", f"label must be text, is {name!r}", "label")
    if name in BY_NAME:
        return BY_NAME[name], name.endswith("group")
    if name.endswith("group") and name.removesuffix("group") in BY_NAME:
        return BY_NAME[name.removesuffix("group")], True
    raise Defect("class-unknown", f"label {name!r} is no class of Cityscapes", "label")


def shape_of(row: dict[str, Any]) -> Any:
    """The polygon, from the middles of its pixels out to their borders."""
    import shapely

    try:
        points = np.asarray(row.get("polygon"), np.float32) + 0.5
        if points.ndim == 2 and np.isfinite(points).all():
            return shapely.Polygon(points).buffer(0.5, quad_segs=4)
    except (TypeError, ValueError, shapely.errors.ShapelyError):
        pass
    message = f"polygon must be points [x, y], at least 3; is {row.get('polygon')!r:.80}"
    raise Defect("segmentation-malformed", message, "polygon")


def _annotation(visible: Any, label: Label, is_group: bool) -> dict[str, Any]:
    import shapely

    parts = [part for part in shapely.get_parts(visible) if part.geom_type == "Polygon"]
    return {
        "iscrowd": int(is_group),
        "category_id": _CLASS_OF_ID[label.id],
        # Only the outer borders: COCO's polygons know no holes.
        "segmentation": [np.asarray(part.exterior.coords).reshape(-1).tolist() for part in parts],
        "bbox": list(visible.bounds),
        "bbox_mode": BoxMode.XYXY_ABS,
    }


def _from_ids(ids: np.ndarray, to_polygons: bool) -> Iterator[dict[str, Any]]:
    """The objects of an instanceIds picture, (H, W)."""
    for value in np.unique(ids[ids >= _FIRST_THING]).tolist():
        label_id, is_group = (value // 1000, False) if value >= 1000 else (value, True)
        if label_id not in _CLASS_OF_ID:
            continue
        mask = ids == value
        box = tight_box(mask)
        assert box is not None, "the value occurs"
        x0, y0, x1, y1 = box
        if x1 - x0 < 2 or y1 - y0 < 2:  # a line of pixels, which detectron2 drops
            continue
        segmentation = _contours(mask) if to_polygons else encode_rle(mask)
        if segmentation:
            yield {
                "iscrowd": int(is_group),
                "category_id": _CLASS_OF_ID[label_id],
                "segmentation": segmentation,
                # The last pixel's index, not its far border, as in detectron2.
                "bbox": [float(x0), float(y0), float(x1 - 1), float(y1 - 1)],
                "bbox_mode": BoxMode.XYXY_ABS,
            }


def _contours(mask: np.ndarray) -> list[list[float]]:
    """Outer borders as polygons through the middles of border pixels."""
    try:
        import cv2  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DataError(
            "polygons from instanceIds.png need OpenCV: pip install opencv-python-headless, or "
            "read with to_polygons=False"
        ) from None
    found = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[-2]
    return [contour.reshape(-1).tolist() for contour in found if len(contour) >= 3]
