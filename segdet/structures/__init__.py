from segdet.structures.boxes import (
    Boxes,
    BoxMode,
    box_area,
    box_iou,
    clip_boxes,
    matched_boxlist_iou,
    matched_pairwise_iou,
    pairwise_intersection,
    pairwise_ioa,
    pairwise_iou,
    pairwise_point_box_distance,
)
from segdet.structures.image_list import ImageList
from segdet.structures.instances import Detections, Instances, Proposals, Targets
from segdet.structures.keypoints import Keypoints
from segdet.structures.masks import BitMasks, PolygonMasks, ROIMasks
from segdet.structures.polygons import (
    polygon_area,
    polygons_to_bitmask,
    rasterize_polygons_within_box,
)
from segdet.structures.rotated_boxes import RotatedBoxes

__all__ = [
    "BitMasks",
    "BoxMode",
    "Boxes",
    "Detections",
    "ImageList",
    "Instances",
    "Keypoints",
    "PolygonMasks",
    "Proposals",
    "ROIMasks",
    "RotatedBoxes",
    "Targets",
    "box_area",
    "box_iou",
    "clip_boxes",
    "matched_boxlist_iou",
    "matched_pairwise_iou",
    "pairwise_intersection",
    "pairwise_ioa",
    "pairwise_iou",
    "pairwise_point_box_distance",
    "polygon_area",
    "polygons_to_bitmask",
    "rasterize_polygons_within_box",
]
