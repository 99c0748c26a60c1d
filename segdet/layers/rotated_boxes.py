from torch import Tensor

from segdet import ops


def pairwise_iou_rotated(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union of every pair of rotated boxes.

    Args:
        boxes1: (N, 5): centre x, centre y, width, height, degrees.
        boxes2: (M, 5), likewise.

    Returns:
        (N, M) in [0, 1]; 0 for boxes without area.
    """
    return ops.box_iou_rotated(boxes1, boxes2)
