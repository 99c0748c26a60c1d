"""One COCO annotation, checked: a standard dict's annotation, a reason to drop it, or an error."""

from __future__ import annotations

from typing import Any

from segdet.data.defects import Defect, Drop
from segdet.data.rle import decode_rle, tight_box
from segdet.structures import BoxMode

MAX_COORDINATE = 1e5  # pixels; larger than any image, small enough for every rasteriser

XYXY = tuple[float, float, float, float]


def whole_number(value: Any, what: str) -> int:
    """An int, also from a float like 1.0.

    Raises:
        Defect: anything else; the message begins with `what`.
    """
    if type(value) is int:
        return value
    if type(value) is float and value.is_integer():
        return int(value)
    raise Defect("not-a-whole-number", f"{what} must be a whole number, is {value!r}", what)


def read_annotation(
    row: dict[str, Any],
    image: dict[str, Any],
    category_ids: dict[int, int],
    remarks: list[Defect],
) -> dict[str, Any]:
    """Check one annotation and convert it.

    Args:
        row: the annotation as in the file.
        image: the record of its image.
        category_ids: the file's category ids -> contiguous ids.
        remarks: gets a defect for each thing put right, so that it can be counted.

    Returns:
        `iscrowd`, `bbox` (XYWH as in the file, or derived from the mask; XYWHA where the file has
        five numbers), `bbox_mode`, `category_id` (contiguous), and where the file has them
        `segmentation` (polygons, or a checked RLE) and `keypoints` (x and y moved to the pixel's
        centre, +0.5).

    Raises:
        Drop: nothing of it can be seen in the image.
        Defect: it breaks a rule; the message names the field.
    """
    result: dict[str, Any] = {"category_id": read_category(row, category_ids)}
    result["iscrowd"] = read_iscrowd(row)
    segmentation, extent = read_segmentation(row.get("segmentation"), image, remarks)
    result["bbox"] = read_box(row.get("bbox"), extent, image, remarks)
    rotated = len(result["bbox"]) == 5
    result["bbox_mode"] = BoxMode.XYWHA_ABS if rotated else BoxMode.XYWH_ABS
    if extent is not None:
        check_extent(extent, image)
        result["segmentation"] = segmentation
    if row.get("keypoints"):
        result["keypoints"] = read_keypoints(row["keypoints"])
    return result


def read_category(row: dict[str, Any], category_ids: dict[int, int]) -> int:
    """The contiguous id of an annotation's category."""
    category_id = whole_number(row.get("category_id"), "category_id")
    if category_id not in category_ids:
        raise Defect(
            "category-unknown",
            f"category_id {category_id!r} is no category of this file",
            "category_id",
        )
    return category_ids[category_id]


def read_iscrowd(row: dict[str, Any]) -> int:
    """Whether an annotation is a crowd, 0 or 1."""
    iscrowd = row.get("iscrowd", 0)
    if iscrowd not in (0, 1):
        raise Defect("iscrowd-invalid", f"iscrowd must be 0 or 1, is {iscrowd!r}", "iscrowd")
    if row.get("ignore", 0) != 0:
        raise Defect(
            "ignore-set", "'ignore' is set; mark the region with iscrowd instead", "ignore"
        )
    return int(iscrowd)


def read_box(
    box: Any, extent: XYXY | None, image: dict[str, Any], remarks: list[Defect]
) -> list[float]:
    """The box of an annotation, XYWH or XYWHA.

    Args:
        box: as in the file.
        extent: of the annotation's mask; None without one.
        image: the record of its image.
        remarks: as for `read_annotation`.
    """
    if box is None:
        if extent is None:
            raise Defect(
                "box-underivable", "bbox is missing, and no segmentation to derive it from", "bbox"
            )
        remarks.append(Defect("box-missing", "bbox missing, derived from the mask", "bbox"))
        x0, y0, x1, y1 = extent
        box = [x0, y0, x1 - x0, y1 - y0]
    if not isinstance(box, list) or len(box) not in (4, 5):
        raise Defect(
            "box-malformed",
            "bbox must be four numbers [x, y, width, height], or five of a rotated box "
            f"[centre x, centre y, width, height, degrees], is {box!r:.80}",
            "bbox",
        )
    check_numbers(box, "bbox")
    if box[2] <= 0 or box[3] <= 0:
        raise Drop("box-empty", "box without area, annotation dropped", "bbox")
    around = BoxMode.convert(box, BoxMode.XYWHA_ABS, BoxMode.XYWH_ABS) if len(box) == 5 else box
    x, y, w, h = around
    if x >= image["width"] or y >= image["height"] or x + w <= 0 or y + h <= 0:
        raise Drop("box-outside", "box outside the image, annotation dropped", "bbox")
    return box


def check_extent(extent: XYXY, image: dict[str, Any]) -> None:
    """Whether anything of a mask is in its image; a Drop if not."""
    if extent[0] >= image["width"] or extent[1] >= image["height"] or min(extent[2:]) <= 0:
        raise Drop("mask-outside", "mask outside the image, annotation dropped", "segmentation")


def check_numbers(values: list, what: str) -> None:
    """All real numbers, finite and bounded; in plain Python, which is fastest for short lists."""
    try:
        total = sum(values, 0.0)  # a text or null among them is a TypeError, NaN makes it NaN
        low, high = min(values), max(values)
    except TypeError:
        odd = next(v for v in values if not isinstance(v, int | float))
        raise Defect("not-a-number", f"{what} must hold numbers, holds {odd!r:.80}", what) from None
    except OverflowError:
        raise Defect(
            "too-large", f"{what} holds a number beyond {MAX_COORDINATE:g} pixels", what
        ) from None
    if total - total != 0:
        raise Defect("not-finite", f"{what} holds NaN or Infinity", what)
    if low < -MAX_COORDINATE or high > MAX_COORDINATE:
        worst = max(high, -low)
        raise Defect("too-large", f"{what} holds {worst:g}, beyond {MAX_COORDINATE:g} pixels", what)


def read_segmentation(
    segmentation: Any, image: dict[str, Any], remarks: list[Defect]
) -> tuple[list | dict | None, XYXY | None]:
    """The segmentation to keep and its extent; (None, None) where the file has none."""
    if segmentation is None or segmentation == []:
        return None, None
    if isinstance(segmentation, dict):
        return _read_rle(segmentation, image)
    what = "segmentation"
    if not isinstance(segmentation, list):
        message = f"segmentation must be polygons or an RLE, is {segmentation!r:.80}"
        raise Defect("segmentation-malformed", message, what)
    if not isinstance(segmentation[0], list):
        message = "segmentation is a flat list, taken as one polygon"
        remarks.append(Defect("polygon-flat", message, what))
        segmentation = [segmentation]
    parts = []
    extents = []
    for part in segmentation:
        if not isinstance(part, list):
            message = f"segmentation: a polygon must be a list of numbers, is {part!r:.80}"
            raise Defect("segmentation-malformed", message, what)
        if len(part) % 2:
            message = f"segmentation: a polygon has an odd count of numbers ({len(part)})"
            raise Defect("polygon-odd", message, what)
        if len(part) < 6:
            message = "polygon of fewer than 3 points, left out"
            remarks.append(Defect("polygon-short", message, what))
            continue
        check_numbers(part, what)
        xs, ys = part[0::2], part[1::2]
        parts.append(part)
        extents.append((min(xs), min(ys), max(xs), max(ys)))
    if not parts:
        message = "segmentation without a polygon, annotation dropped"
        raise Drop("polygons-all-short", message, what)
    x0, y0, x1, y1 = zip(*extents, strict=True)
    return parts, (min(x0), min(y0), max(x1), max(y1))


def _read_rle(rle: dict[str, Any], image: dict[str, Any]) -> tuple[dict, XYXY]:
    if rle.get("size") != [image["height"], image["width"]]:
        raise Defect(
            "rle-size",
            f"RLE size [height, width] is {rle.get('size')!r:.80}, the image is "
            f"[{image['height']}, {image['width']}]",
            "segmentation",
        )
    box = tight_box(decode_rle(rle))
    if box is None:
        raise Drop("mask-empty", "empty mask, annotation dropped", "segmentation")
    x0, y0, x1, y1 = box
    return rle, (float(x0), float(y0), float(x1), float(y1))


def read_keypoints(keypoints: Any) -> list[float]:
    """Keypoints at the pixels' centres."""
    if not isinstance(keypoints, list) or len(keypoints) % 3:
        message = "keypoints must be a list of x, y, visibility triples"
        raise Defect("keypoints-malformed", message, "keypoints")
    check_numbers(keypoints, "keypoints")
    return [v + 0.5 if i % 3 != 2 else v for i, v in enumerate(keypoints)]
