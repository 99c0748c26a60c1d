"""From network input coordinates to the size the caller asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor

from segdet.layers import paste_masks_in_image
from segdet.structures import Instances

InstancesT = TypeVar("InstancesT", bound=Instances)


def requested_size(one_input: Mapping[str, Any], image_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) that a model's input asks its results to have; by default `image_size`."""
    height, width = image_size
    return one_input.get("height", height), one_input.get("width", width)


def detector_postprocess(
    detections: InstancesT, height: int, width: int, mask_threshold: float = 0.5
) -> InstancesT:
    """Detections in an image of `height` by `width` pixels.

    Boxes are rescaled and clipped; detections left without extent are dropped; mask
    probabilities are pasted into their clipped boxes (Mask R-CNN, section 3.1); keypoints are
    rescaled.

    Args:
        detections: in pixels of their `image_size`; not changed. Proposals will do.
        height: of the result, in pixels.
        width: of the result, in pixels.
        mask_threshold: probability from which a pixel belongs to the object.

    Returns:
        With `pred_masks` (N, height, width) bool, if there were any.
    """
    scale_y, scale_x = height / detections.image_size[0], width / detections.image_size[1]
    fields = detections.get_fields()
    name = "pred_boxes" if "pred_boxes" in fields else "proposal_boxes"
    boxes = fields[name].clone()
    boxes.scale(scale_x, scale_y)
    boxes.clip((height, width))
    result = type(detections)((height, width), **{**fields, name: boxes})
    result = result[boxes.nonempty()]
    if result.has("pred_masks"):
        result.pred_masks = paste_masks_in_image(
            result.pred_masks[:, 0], result.pred_boxes, (height, width), threshold=mask_threshold
        )
    if result.has("pred_keypoints"):
        scale = result.pred_keypoints.new_tensor((scale_x, scale_y, 1))
        result.pred_keypoints = result.pred_keypoints * scale
    return result


def sem_seg_postprocess(
    result: Tensor, img_size: tuple[int, int], output_height: int, output_width: int
) -> Tensor:
    """Semantic logits of an image of `output_height` by `output_width` pixels.

    The logits are resized, not the labels, as in detectron2; the result is the largest thing that
    a semantic model makes (54 classes of 4000 x 6000 pixels take 5.2 GB).

    Args:
        result: (K, H, W) logits of the padded network input.
        img_size: (height, width) of the network input without its padding.
        output_height: of the result, in pixels.
        output_width: of the result, in pixels.

    Returns:
        (K, output_height, output_width).
    """
    cropped = result[None, :, : img_size[0], : img_size[1]]
    size = (output_height, output_width)
    return F.interpolate(cropped, size=size, mode="bilinear", align_corners=False)[0]
