from torch import Tensor

from segdet import ops
from segdet.layers.wrappers import at_least_float32


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression.

    Args:
        boxes: (N, 4) XYXY; half precision is widened first.
        scores: (N,).
        iou_threshold: a box that overlaps a better one by more than this goes.

    Returns:
        (kept,) int64 indices, best first.
    """
    return ops.nms(at_least_float32(boxes), scores, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression within each group.

    Args:
        boxes: (N, 4) XYXY; half precision is widened first.
        scores: (N,).
        idxs: (N,) int64 groups, such as classes; boxes of different groups never meet.
        iou_threshold: a box that overlaps a better one of its group by more than this goes.

    Returns:
        (kept,) int64 indices, best first.
    """
    return ops.batched_nms(at_least_float32(boxes), scores, idxs, iou_threshold)


def nms_rotated(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression of rotated boxes.

    Args:
        boxes: (N, 5): centre x, centre y, width, height, degrees; half precision is widened first.
        scores: (N,).
        iou_threshold: a box that overlaps a better one by more than this goes.

    Returns:
        (kept,) int64 indices, best first.
    """
    return ops.nms_rotated(at_least_float32(boxes), scores, iou_threshold)


def batched_nms_rotated(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float
) -> Tensor:
    """Greedy non-maximum suppression of rotated boxes within each group.

    Args:
        boxes: (N, 5), as for `nms_rotated`.
        scores: (N,).
        idxs: (N,) int64 groups, such as classes; boxes of different groups never meet.
        iou_threshold: a box that overlaps a better one of its group by more than this goes.

    Returns:
        (kept,) int64 indices, best first.
    """
    return ops.batched_nms_rotated(at_least_float32(boxes), scores, idxs, iou_threshold)
