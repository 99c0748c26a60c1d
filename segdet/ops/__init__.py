"""The native ops. Each has one file here and one folder in csrc/ (`cluster_nms` needs none).

`BINARY_DEVICES` holds the device types that the compiled library serves here; on others, slower
code of the same meaning runs.
"""

from .box_iou_rotated import box_iou_rotated
from .cluster_nms import cluster_nms
from .deform_conv import deform_conv2d
from .fast_nms import cross_class_fast_nms, fast_nms
from .library import BINARY_DEVICES
from .matrix_nms import matrix_nms
from .nms import batched_nms, nms
from .nms_rotated import batched_nms_rotated, nms_rotated
from .paste_masks import paste_masks
from .point_sample import point_sample
from .ps_roi_align import ps_roi_align
from .ps_roi_pool import ps_roi_pool
from .resize_image import resize_image
from .roi_align import roi_align
from .roi_align_rotated import roi_align_rotated
from .soft_nms import soft_nms
from .winograd_conv import has_winograd, winograd_conv, winograd_weight

__all__ = [
    "BINARY_DEVICES",
    "batched_nms",
    "batched_nms_rotated",
    "box_iou_rotated",
    "cluster_nms",
    "cross_class_fast_nms",
    "deform_conv2d",
    "fast_nms",
    "has_winograd",
    "matrix_nms",
    "nms",
    "nms_rotated",
    "paste_masks",
    "point_sample",
    "ps_roi_align",
    "ps_roi_pool",
    "resize_image",
    "roi_align",
    "roi_align_rotated",
    "soft_nms",
    "winograd_conv",
    "winograd_weight",
]
