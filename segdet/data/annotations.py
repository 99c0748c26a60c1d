"""An image's annotations: moved along with its transforms, then turned into `Targets`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from segdet.data.catalog import MetadataCatalog
from segdet.data.readers.coco_annotation import whole_number
from segdet.data.rle import decode_rle
from segdet.data.transforms import (
    CropTransform,
    HFlipTransform,
    Transform,
    TransformList,
    crop_around,
)
from segdet.errors import DataError
from segdet.structures import (
    BitMasks,
    Boxes,
    BoxMode,
    Instances,
    Keypoints,
    PolygonMasks,
    RotatedBoxes,
    Targets,
    polygons_to_bitmask,
)


def transform_instance_annotations(
    annotation: dict[str, Any],
    transforms: Transform | list[Transform],
    image_size: tuple[int, int],
    *,
    keypoint_hflip_indices: np.ndarray | None = None,
) -> dict[str, Any]:
    """Apply transforms to the box, segmentation and keypoints of one annotation, in place.

    The box becomes XYXY, clipped to the image. Polygons are not clipped (a crop does that).

    Args:
        annotation: of a standard dict.
        transforms: what was applied to the image: one, a `TransformList`, or a plain list.
        image_size: (height, width) after the transforms.
        keypoint_hflip_indices: from `create_keypoint_hflip_indices`.

    Returns:
        The same dict; an RLE segmentation is now an (H, W) bool mask.

    Raises:
        DataError: a box, polygon, RLE or keypoint that cannot be used.
    """
    if isinstance(transforms, list):
        transforms = TransformList(transforms)
    moved = transforms.apply_box(read_box(annotation))[0].clip(min=0)
    height, width = image_size
    annotation["bbox"] = np.minimum(moved, [width, height, width, height])
    annotation["bbox_mode"] = BoxMode.XYXY_ABS
    if "segmentation" in annotation:
        annotation["segmentation"] = _transform_segmentation(
            annotation["segmentation"], transforms, image_size
        )
    if "keypoints" in annotation:
        annotation["keypoints"] = transform_keypoint_annotations(
            annotation["keypoints"], transforms, image_size, keypoint_hflip_indices
        )
    return annotation


def category_of(annotation: dict[str, Any]) -> int:
    """The contiguous class of an annotation.

    Raises:
        DataError: it has none, or one that is no whole number from 0 on; crowds may have others,
            since nothing learns their class.
    """
    category = annotation.get("category_id")
    number = category.item() if isinstance(category, np.generic) else category
    found = whole_number(number, "category_id")
    if found < 0 and not annotation.get("iscrowd"):
        raise DataError(f"category_id must be >= 0, is {found}; classes count from 0")
    return found


def box_mode_of(annotation: dict[str, Any]) -> BoxMode:
    """How the box of an annotation is to be read.

    Raises:
        DataError: it lacks `bbox` or `bbox_mode`, or the mode is none in absolute pixels.
    """
    mode = annotation.get("bbox_mode")
    if annotation.get("bbox") is None or mode is None:
        lacking = "bbox_mode" if mode is None else "bbox"
        raise DataError(f"has no {lacking}; it has {', '.join(annotation)}")
    usable = (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS, BoxMode.XYWHA_ABS)
    if mode not in usable:
        known = ", ".join(one.name for one in usable)
        raise DataError(f"bbox_mode must be one of {known}, is {mode!r}")
    return BoxMode(mode)


def read_box(annotation: dict[str, Any]) -> np.ndarray:
    """The box of an annotation, (1, 4) float64 XYXY.

    Raises:
        DataError: it has none, or one that cannot be read.
    """
    mode = box_mode_of(annotation)
    numbers = list(annotation["bbox"])
    try:
        box = np.array([BoxMode.convert(numbers, mode, BoxMode.XYXY_ABS)], np.float64)
    except (TypeError, ValueError):
        raise DataError(f"bbox cannot be read as {mode.name}, is {numbers}") from None
    if box.shape != (1, 4) or not np.isfinite(box).all():
        raise DataError(f"bbox must be finite numbers ({mode.name}), is {numbers}")
    return box


def _transform_segmentation(
    segmentation: Any, transforms: Transform, image_size: tuple[int, int]
) -> list[np.ndarray] | np.ndarray:
    if isinstance(segmentation, list):
        points = [_read_polygon(part) for part in segmentation]
        return [part.reshape(-1) for part in transforms.apply_polygons(points)]
    if isinstance(segmentation, dict):
        mask = decode_rle(segmentation)
        try:
            mask = transforms.apply_segmentation(mask)
        except ValueError as error:
            raise DataError(f"RLE cannot be transformed as its image was: {error}") from None
        if mask.shape[:2] != tuple(image_size):
            raise DataError(
                f"RLE size {segmentation['size']} is not the image's: the transformed mask is "
                f"{mask.shape[:2]}, the image {tuple(image_size)} (height, width)"
            )
        return mask == 1  # padding may have brought in an ignore label
    raise DataError(
        f"segmentation must be a list of polygons or an RLE dict, is {type(segmentation).__name__}"
    )


def _read_polygon(part: Any) -> np.ndarray:
    """(n, 2) float64 points, checked: the rasteriser knows no better."""
    polygon = np.array(part)
    if polygon.ndim != 1 or polygon.dtype.kind not in "iuf":
        raise DataError("a polygon must be a flat list of numbers x, y, x, y, ...")
    if len(polygon) % 2 or len(polygon) < 6:
        raise DataError(f"a polygon must have 6, 8, 10, ... numbers, has {len(polygon)}")
    if not np.isfinite(polygon).all():
        raise DataError("a polygon holds NaN or Infinity")
    return polygon.reshape(-1, 2).astype(np.float64)


def transform_keypoint_annotations(
    keypoints: Any,
    transforms: Transform,
    image_size: tuple[int, int],
    keypoint_hflip_indices: np.ndarray | None = None,
) -> np.ndarray:
    """Apply transforms to the keypoints of one object.

    Args:
        keypoints: 3 * P numbers, x, y and visibility of each of the P points.
        transforms: what was applied to the image.
        image_size: (height, width) after the transforms.
        keypoint_hflip_indices: (P,) from `create_keypoint_hflip_indices`; an odd number of
            horizontal flips reorders the points by it.

    Returns:
        (P, 3) float64; points outside the image and points of visibility 0 are all zero.

    Raises:
        DataError: the keypoints are no finite triples.
    """
    points = _read_keypoints(keypoints)
    xy = transforms.apply_coords(points[:, :2].copy())
    inside = (xy >= 0).all(1) & (xy <= [image_size[1], image_size[0]]).all(1)
    points[:, :2] = xy
    points[~inside, 2] = 0
    if sum(isinstance(t, HFlipTransform) for t in TransformList([transforms]).transforms) % 2:
        if keypoint_hflip_indices is None:
            raise ValueError("flipping keypoints needs keypoint_hflip_indices")
        points = points[np.asarray(keypoint_hflip_indices)]
    points[points[:, 2] == 0] = 0
    return points


def _read_keypoints(keypoints: Any) -> np.ndarray:
    """(P, 3) float64, checked."""
    try:
        points = np.array(keypoints, np.float64).reshape(-1, 3)
    except (TypeError, ValueError):
        raise DataError("keypoints must be triples of numbers x, y, visibility") from None
    if not np.isfinite(points).all():
        raise DataError("keypoints hold NaN or Infinity")
    return points


def create_keypoint_hflip_indices(dataset_names: str | Sequence[str]) -> np.ndarray:
    """For each keypoint, the one that it becomes when the image is mirrored.

    Args:
        dataset_names: their metadata has `keypoint_names` and `keypoint_flip_map` (pairs of
            names), the same for all.

    Returns:
        (P,) int64.
    """
    names_of = [dataset_names] if isinstance(dataset_names, str) else list(dataset_names)
    facts = [MetadataCatalog.get(name) for name in names_of]
    for fact in facts:
        if fact.get("keypoint_names") is None or fact.get("keypoint_flip_map") is None:
            raise DataError(
                f"data set {fact.name!r} has no keypoint_names or no keypoint_flip_map, which "
                "training with keypoints needs; set both in MetadataCatalog.get(name)"
            )
    if any(
        fact.keypoint_names != facts[0].keypoint_names
        or fact.keypoint_flip_map != facts[0].keypoint_flip_map
        for fact in facts
    ):
        raise DataError(f"data sets {', '.join(names_of)} have different keypoints")
    partner = dict(facts[0].keypoint_flip_map)
    partner |= {right: left for left, right in partner.items()}
    names = list(facts[0].keypoint_names)
    return np.array([names.index(partner.get(name, name)) for name in names], np.int64)


def get_fed_loss_cls_weights(
    dataset_names: str | Sequence[str], freq_weight_power: float = 1.0
) -> torch.Tensor:
    """How likely the federated loss draws each class: its number of images to a power.

    Args:
        dataset_names: their metadata has `class_image_count`, as LVIS data has once it was read
            (rows of `id` and `image_count`); the same for all.
        freq_weight_power: the power.

    Returns:
        (K,) float32, in the order of the ids.
    """
    names = [dataset_names] if isinstance(dataset_names, str) else list(dataset_names)
    counts = [MetadataCatalog.get(name).get("class_image_count") for name in names]
    for name, one in zip(names, counts, strict=True):
        if one is None or one != counts[0]:
            raise DataError(
                f"data set {name!r} has no class_image_count, or another than {names[0]!r}; "
                "MODEL.ROI_BOX_HEAD.USE_FED_LOSS needs it: set it in MetadataCatalog.get(name), "
                "or set USE_FED_LOSS to False"
            )
    if not names:
        raise DataError("MODEL.ROI_BOX_HEAD.USE_FED_LOSS needs a data set in DATASETS.TRAIN")
    rows = sorted(counts[0], key=lambda row: row["id"])
    return torch.tensor([float(row["image_count"]) for row in rows]) ** freq_weight_power


def annotations_to_instances(
    annos: list[dict[str, Any]], image_size: tuple[int, int], mask_format: str = "polygon"
) -> Targets:
    """The annotations of one image as training targets.

    Args:
        annos: after `transform_instance_annotations`.
        image_size: (height, width) that they refer to.
        mask_format: "polygon" or "bitmask". Where any object's mask is not polygons, all
            masks of the image become bitmasks.

    Returns:
        `gt_boxes`, `gt_classes`, and where the annotations have them `gt_masks` and
        `gt_keypoints`.

    Raises:
        DataError: some objects have a segmentation (or keypoints), others have none.
    """
    boxes = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in annos]
    targets = Targets(
        image_size,
        gt_boxes=Boxes(boxes),
        gt_classes=torch.tensor([category_of(a) for a in annos], dtype=torch.int64),
    )
    if _all_or_none(annos, "segmentation"):
        targets.gt_masks = masks_from_segmentations(
            [a["segmentation"] for a in annos], image_size, mask_format
        )
    if _all_or_none(annos, "keypoints"):
        points = np.array([np.reshape(a["keypoints"], (-1, 3)) for a in annos], np.float32)
        targets.gt_keypoints = Keypoints(points)
    return targets


def annotations_to_instances_rotated(
    annos: list[dict[str, Any]], image_size: tuple[int, int]
) -> Targets:
    """The annotations of one image with rotated boxes as training targets.

    Args:
        annos: with `bbox` of five numbers (BoxMode.XYWHA_ABS), moved by `apply_rotated_box`.
        image_size: (height, width) that they refer to; upright boxes are clipped to it.

    Returns:
        `gt_boxes` (RotatedBoxes) and `gt_classes`.

    Raises:
        DataError: a box is not five finite numbers.
    """
    rows = [np.asarray(a["bbox"], np.float64).reshape(-1) for a in annos]
    for i, row in enumerate(rows):
        if len(row) != 5 or not np.isfinite(row).all():
            raise DataError(f"object {i}: a rotated bbox must be 5 finite numbers, is {list(row)}")
    boxes = RotatedBoxes(torch.tensor(np.array(rows).reshape(-1, 5), dtype=torch.float32))
    boxes.clip(image_size)
    classes = torch.tensor([category_of(a) for a in annos], dtype=torch.int64)
    return Targets(image_size, gt_boxes=boxes, gt_classes=classes)


def _all_or_none(annos: list[dict[str, Any]], key: str) -> bool:
    """Whether the objects have `key`; an error where only some of them do."""
    have = [key in annotation for annotation in annos]
    if any(have) and not all(have):
        raise DataError(f"object {have.index(False)} of the image has no {key}, others have")
    return any(have)


def masks_from_segmentations(
    segmentations: list[Any], image_size: tuple[int, int], mask_format: str
) -> PolygonMasks | BitMasks:
    """The masks of an image's objects.

    Args:
        segmentations: of each object polygons, an RLE, or an (H, W) mask.
        image_size: (height, width) of the masks.
        mask_format: as for `annotations_to_instances`.
    """
    if mask_format not in ("polygon", "bitmask"):
        raise ValueError(f'mask_format must be "polygon" or "bitmask", is {mask_format!r}')
    if mask_format == "polygon" and all(isinstance(s, list) for s in segmentations):
        return PolygonMasks(segmentations)
    masks = [_to_bitmask(s, image_size) for s in segmentations]
    return BitMasks(np.stack(masks) if masks else np.zeros((0, *image_size), bool))


def _to_bitmask(segmentation: Any, image_size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool."""
    if isinstance(segmentation, list):
        return polygons_to_bitmask([np.asarray(p) for p in segmentation], *image_size)
    mask = decode_rle(segmentation) if isinstance(segmentation, dict) else np.asarray(segmentation)
    if mask.shape != tuple(image_size):
        raise DataError(f"a mask of shape {mask.shape} does not fit the image of {image_size}")
    return mask.astype(bool)


def draw_things(annotations: Sequence[dict[str, Any]], image_size: tuple[int, int]) -> np.ndarray:
    """A label map of an image's objects, the target of BlendMask's semantic loss.

    Source: the files of label maps that AdelaiDet's script writes: with crowds, and what comes
    later covers what came before.

    Args:
        annotations: of a standard dict, before any transform; what has no mask is not drawn.
        image_size: (height, width) of the image.

    Returns:
        (H, W) int32: 0, or 1 + the class of the object that covers a pixel.

    Raises:
        DataError: a mask or a class that cannot be used.
    """
    labels = np.zeros(image_size, np.int32)
    for number, annotation in enumerate(annotations):
        if "segmentation" not in annotation:
            continue
        try:
            mask = _to_bitmask(annotation["segmentation"], image_size)
            labels[mask] = category_of(annotation) + 1
        except (DataError, ValueError) as error:
            raise DataError(f"object {number}: {error}") from None
    return labels


def filter_empty_instances(
    instances: Instances,
    by_box: bool = True,
    by_mask: bool = True,
    box_threshold: float = 1e-5,
    return_mask: bool = False,
) -> Any:
    """Keep the objects that something is left of.

    Args:
        instances: with `gt_boxes` and maybe `gt_masks`.
        by_box: drop boxes with a side of at most `box_threshold` pixels.
        by_mask: drop masks without a pixel, or without a polygon.
        box_threshold: pixels.
        return_mask: also return the (N,) bool of what was kept.
    """
    keep = torch.ones(len(instances), dtype=torch.bool)
    if by_box:
        keep &= instances.gt_boxes.nonempty(threshold=box_threshold)
    if by_mask and instances.has("gt_masks"):
        keep &= instances.gt_masks.nonempty()
    return (instances[keep], keep) if return_mask else instances[keep]


def gen_crop_transform_with_instance(
    crop_size: tuple[int, int], image_size: tuple[int, int], instance: dict[str, Any]
) -> CropTransform:
    """A random crop that holds the centre of an object's box.

    Args:
        crop_size: (height, width) wanted; cut to the image.
        image_size: (height, width) of the image.
        instance: an annotation with `bbox` and `bbox_mode`.
    """
    box = BoxMode.convert(list(instance["bbox"]), instance["bbox_mode"], BoxMode.XYXY_ABS)
    height, width = (min(pair) for pair in zip(crop_size, image_size, strict=True))
    center = (box[1] + box[3]) / 2, (box[0] + box[2]) / 2  # y, x
    if min(center) < 0 or (np.asarray(center) > image_size).any():
        raise DataError(f"the box {list(box)} has its centre outside the image {image_size}")
    return crop_around(center, (height, width), image_size)
