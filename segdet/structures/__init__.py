from segdet.structures.boxes import (
    Boxes,
    BoxMode,
    matched_boxlist_iou,
    matched_pairwise_iou,
    pairwise_intersection,
    pairwise_ioa,
    pairwise_iou,
    pairwise_point_box_distance,
)
from segdet.structures.image_list import ImageList
from segdet.structures.instances import Detections, Instances, Proposals, Targets

__all__ = [
    "BoxMode",
    "Boxes",
    "Detections",
    "ImageList",
    "Instances",
    "Proposals",
    "Targets",
    "matched_boxlist_iou",
    "matched_pairwise_iou",
    "pairwise_intersection",
    "pairwise_ioa",
    "pairwise_iou",
    "pairwise_point_box_distance",
]
