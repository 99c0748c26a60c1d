"""Proposals that another model computed: from files into records, and along with transforms."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from segdet.checkpoint.plain_pickle import read_plain_pickle
from segdet.data.transforms import Transform
from segdet.errors import DataError
from segdet.structures import Boxes, BoxMode, Proposals

# Detectron's names of fields -> detectron2's.
_OLD_NAMES = {"indexes": "ids", "scores": "objectness_logits"}
_MODES = (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)


def load_proposals_into_dataset(
    dataset_dicts: list[dict[str, Any]], proposal_file: str
) -> list[dict[str, Any]]:
    """Give each record the proposals of its image, best first.

    Args:
        dataset_dicts: standard dicts; they are changed.
        proposal_file: a pickle of `ids` (of N images), `boxes` (N arrays (R, 4)),
            `objectness_logits` (N arrays (R,)) and maybe `bbox_mode`; as `COCOEvaluator` writes it,
            and Detectron. It may be a path or a `detectron2://` address.

    Returns:
        The same records, with `proposal_boxes` (R, 4), `proposal_objectness_logits` (R,) and
        `proposal_bbox_mode`.

    Raises:
        CheckpointError: no such file, or one that holds more than data.
        DataError: a field is missing or broken, or an image has no proposals; says which.
    """
    content, path = read_plain_pickle(proposal_file)
    try:
        fields, mode = _read_fields(content)
        rows = {str(key): i for i, key in enumerate(fields["ids"])}
        for record in dataset_dicts:
            name = str(record["image_id"])
            if name not in rows:
                raise DataError(f"has no proposals of the image {name} ({record.get('file_name')})")
            boxes, logits = _read_image(fields, rows[name], name)
            order = np.argsort(-logits, kind="stable")
            record["proposal_boxes"] = boxes[order]
            record["proposal_objectness_logits"] = logits[order]
            record["proposal_bbox_mode"] = mode
    except DataError as error:
        raise DataError(f"proposal file {path}: {error}") from None
    return dataset_dicts


def _read_fields(content: Any) -> tuple[dict[str, Any], BoxMode]:
    """`ids`, `boxes` and `objectness_logits`, of equal length, and how boxes are written."""
    if not isinstance(content, dict):
        raise DataError(f"must hold a dict, holds a {type(content).__name__}")
    fields: dict[str, Any] = {_OLD_NAMES.get(k, str(k)): value for k, value in content.items()}
    for key in ("ids", "boxes", "objectness_logits"):
        if key not in fields:
            raise DataError(f"has no {key} (it has {', '.join(map(str, content)) or 'nothing'})")
        if not isinstance(fields[key], list | tuple | np.ndarray):
            raise DataError(f"{key} must be a list, is a {type(fields[key]).__name__}")
        if len(fields[key]) != len(fields["ids"]):
            raise DataError(f"has {len(fields['ids'])} ids but {len(fields[key])} {key}")
    mode = fields.get("bbox_mode", BoxMode.XYXY_ABS)
    if mode not in _MODES:
        known = ", ".join(f"{one.value} ({one.name})" for one in _MODES)
        raise DataError(f"bbox_mode must be one of {known}, is {mode!r}")
    return fields, BoxMode(mode)


def _read_image(fields: dict[str, Any], row: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(R, 4) and (R,) float32 of one image, checked."""
    columns = {}
    for key, shape in (("boxes", (-1, 4)), ("objectness_logits", (-1,))):
        try:
            columns[key] = np.asarray(fields[key][row], np.float32).reshape(shape)
        except (TypeError, ValueError):
            raise DataError(f"{key} of image {name} are no array of numbers {shape}") from None
        if not np.isfinite(columns[key]).all():
            raise DataError(f"{key} of image {name} hold NaN or Infinity")
    boxes, logits = columns.values()
    if len(boxes) != len(logits):
        raise DataError(f"image {name} has {len(boxes)} boxes but {len(logits)} objectness_logits")
    return boxes, logits


def transform_proposals(
    dataset_dict: dict[str, Any],
    image_shape: tuple[int, int],
    transforms: Transform,
    *,
    proposal_topk: int,
    min_box_size: float = 0,
) -> None:
    """Turn a record's proposals into `proposals`, moved along with the image; in place.

    Args:
        dataset_dict: with the fields of `load_proposals_into_dataset`, which go; a record without
            them stays as it is.
        image_shape: (height, width) after the transforms.
        transforms: what was applied to the image.
        proposal_topk: of the best; more are left out.
        min_box_size: pixels; boxes with a side of at most that are left out first.
    """
    if "proposal_boxes" not in dataset_dict:
        return
    mode = dataset_dict.pop("proposal_bbox_mode", BoxMode.XYXY_ABS)
    corners = BoxMode.convert(
        np.asarray(dataset_dict.pop("proposal_boxes"), np.float64), mode, BoxMode.XYXY_ABS
    )
    logits = dataset_dict.pop("proposal_objectness_logits")
    boxes = Boxes(torch.as_tensor(transforms.apply_box(corners), dtype=torch.float32))
    boxes.clip(image_shape)
    keep = torch.nonzero(boxes.nonempty(threshold=min_box_size))[:proposal_topk, 0]
    dataset_dict["proposals"] = Proposals(
        image_shape,
        proposal_boxes=boxes[keep],
        objectness_logits=torch.as_tensor(np.asarray(logits, np.float32))[keep],
    )
