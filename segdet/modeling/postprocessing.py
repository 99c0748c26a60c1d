"""From network input coordinates to the size the caller asked for."""

from __future__ import annotations

from segdet.layers import paste_masks_in_image
from segdet.structures import Boxes, Detections


def detector_postprocess(
    detections: Detections, height: int, width: int, mask_threshold: float = 0.5
) -> Detections:
    """Detections in an image of `height` by `width` pixels.

    Boxes are rescaled and clipped; detections left without extent are dropped; mask
    probabilities are pasted into their clipped boxes (Mask R-CNN, section 3.1).

    Args:
        detections: in pixels of their `image_size`; not changed.
        height: of the result, in pixels.
        width: of the result, in pixels.
        mask_threshold: probability from which a pixel belongs to the object.

    Returns:
        With `pred_masks` (N, height, width) bool, if there were any.
    """
    scale_y, scale_x = height / detections.image_size[0], width / detections.image_size[1]
    fields = detections.get_fields()
    boxes = Boxes(detections.pred_boxes.tensor.clone())
    boxes.scale(scale_x, scale_y)
    boxes.clip((height, width))
    result = Detections((height, width), **{**fields, "pred_boxes": boxes})
    result = result[boxes.nonempty()]
    if result.has("pred_masks"):
        result.pred_masks = paste_masks_in_image(
            result.pred_masks[:, 0], result.pred_boxes, (height, width), threshold=mask_threshold
        )
    return result
