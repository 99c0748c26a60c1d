"""One COCO annotation, checked: a standard dict's annotation, a reason to drop it, or an error."""

from __future__ import annotations

from typing import Any

from segdet.data.rle import decode_rle, tight_box
from segdet.errors import DataError
from segdet.structures import BoxMode

MAX_COORDINATE = 1e5  # pixels; larger than any image, small enough for every rasteriser

XYXY = tuple[float, float, float, float]


class Drop(Exception):
    """The annotation is well formed but useless; the argument says why."""


def whole_number(value: Any, what: str) -> int:
    """An int, also from a float like 1.0.

    Raises:
        DataError: anything else; the message begins with `what`.
    """
    if type(value) is int:
        return value
    if type(value) is float and value.is_integer():
        return int(value)
    raise DataError(f"{what} must be a whole number, is {value!r}")


def read_annotation(
    row: dict[str, Any],
    image: dict[str, Any],
    category_ids: dict[int, int],
    remarks: list[str],
) -> dict[str, Any]:
    """Check one annotation and convert it.

    Args:
        row: the annotation as in the file.
        image: the record of its image.
        category_ids: the file's category ids -> contiguous ids.
        remarks: gets a sentence for each thing put right, so that it can be counted.

    Returns:
        `iscrowd`, `bbox` (XYWH as in the file, or derived from the mask; XYWHA where the file has
        five numbers), `bbox_mode`, `category_id` (contiguous), and where the file has them
        `segmentation` (polygons, or a checked RLE) and `keypoints` (x and y moved to the pixel's
        centre, +0.5).

    Raises:
        Drop: nothing of it can be seen in the image.
        DataError: it breaks a rule; the message names the field.
    """
    category_id = whole_number(row.get("category_id"), "category_id")
    if category_id not in category_ids:
        raise DataError(f"category_id {category_id!r} is no category of this file")
    iscrowd = row.get("iscrowd", 0)
    if iscrowd not in (0, 1):
        raise DataError(f"iscrowd must be 0 or 1, is {iscrowd!r}")
    if row.get("ignore", 0) != 0:
        raise DataError("'ignore' is set; mark the region with iscrowd instead")
    result: dict[str, Any] = {"iscrowd": int(iscrowd)}
    result["category_id"] = category_ids[category_id]
    segmentation, extent = _read_segmentation(row.get("segmentation"), image, remarks)
    if row.get("bbox") is None:
        if extent is None:
            raise DataError("bbox is missing, and no segmentation to derive it from")
        remarks.append("bbox missing, derived from the mask")
        x0, y0, x1, y1 = extent
        result["bbox"] = [x0, y0, x1 - x0, y1 - y0]
    else:
        result["bbox"] = row["bbox"]
    _check_box(result["bbox"], image)
    rotated = len(result["bbox"]) == 5
    result["bbox_mode"] = BoxMode.XYWHA_ABS if rotated else BoxMode.XYWH_ABS
    if extent is not None:
        if extent[0] >= image["width"] or extent[1] >= image["height"] or min(extent[2:]) <= 0:
            raise Drop("mask outside the image, annotation dropped")
        result["segmentation"] = segmentation
    if row.get("keypoints"):
        result["keypoints"] = _read_keypoints(row["keypoints"])
    return result


def _check_box(box: Any, image: dict[str, Any]) -> None:
    if not isinstance(box, list) or len(box) not in (4, 5):
        raise DataError(
            "bbox must be four numbers [x, y, width, height], or five of a rotated box "
            f"[centre x, centre y, width, height, degrees], is {box!r}"
        )
    _check_numbers(box, "bbox")
    if box[2] <= 0 or box[3] <= 0:
        raise Drop("box without area, annotation dropped")
    around = BoxMode.convert(box, BoxMode.XYWHA_ABS, BoxMode.XYWH_ABS) if len(box) == 5 else box
    x, y, w, h = around
    if x >= image["width"] or y >= image["height"] or x + w <= 0 or y + h <= 0:
        raise Drop("box outside the image, annotation dropped")


def _check_numbers(values: list, what: str) -> None:
    """All real numbers, finite and bounded; in plain Python, which is fastest for short lists."""
    try:
        total = sum(values, 0.0)  # a text or null among them is a TypeError, NaN makes it NaN
        low, high = min(values), max(values)
    except TypeError:
        odd = next(v for v in values if not isinstance(v, int | float))
        raise DataError(f"{what} must hold numbers, holds {odd!r:.80}") from None
    except OverflowError:
        raise DataError(f"{what} holds a number beyond {MAX_COORDINATE:g} pixels") from None
    if total - total != 0:
        raise DataError(f"{what} holds NaN or Infinity")
    if low < -MAX_COORDINATE or high > MAX_COORDINATE:
        raise DataError(f"{what} holds {max(high, -low):g}, beyond {MAX_COORDINATE:g} pixels")


def _read_segmentation(
    segmentation: Any, image: dict[str, Any], remarks: list[str]
) -> tuple[list | dict | None, XYXY | None]:
    """The segmentation to keep and its extent; (None, None) where the file has none."""
    if segmentation is None or segmentation == []:
        return None, None
    if isinstance(segmentation, dict):
        return _read_rle(segmentation, image)
    if not isinstance(segmentation, list):
        raise DataError(f"segmentation must be polygons or an RLE, is {segmentation!r:.80}")
    if not isinstance(segmentation[0], list):
        remarks.append("segmentation is a flat list, taken as one polygon")
        segmentation = [segmentation]
    parts = []
    extents = []
    for part in segmentation:
        if not isinstance(part, list):
            raise DataError(f"segmentation: a polygon must be a list of numbers, is {part!r:.80}")
        if len(part) % 2:
            raise DataError(f"segmentation: a polygon has an odd count of numbers ({len(part)})")
        if len(part) < 6:
            remarks.append("polygon of fewer than 3 points, left out")
            continue
        _check_numbers(part, "segmentation")
        xs, ys = part[0::2], part[1::2]
        parts.append(part)
        extents.append((min(xs), min(ys), max(xs), max(ys)))
    if not parts:
        raise Drop("segmentation without a polygon, annotation dropped")
    x0, y0, x1, y1 = zip(*extents, strict=True)
    return parts, (min(x0), min(y0), max(x1), max(y1))


def _read_rle(rle: dict[str, Any], image: dict[str, Any]) -> tuple[dict, XYXY]:
    if rle.get("size") != [image["height"], image["width"]]:
        raise DataError(
            f"RLE size [height, width] is {rle.get('size')}, the image is "
            f"[{image['height']}, {image['width']}]"
        )
    box = tight_box(decode_rle(rle))
    if box is None:
        raise Drop("empty mask, annotation dropped")
    x0, y0, x1, y1 = box
    return rle, (float(x0), float(y0), float(x1), float(y1))


def _read_keypoints(keypoints: Any) -> list[float]:
    if not isinstance(keypoints, list) or len(keypoints) % 3:
        raise DataError("keypoints must be a list of x, y, visibility triples")
    _check_numbers(keypoints, "keypoints")
    return [v + 0.5 if i % 3 != 2 else v for i, v in enumerate(keypoints)]
