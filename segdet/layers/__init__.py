from segdet.layers.batch_norm import (
    FrozenBatchNorm2d,
    LayerNorm,
    NaiveSyncBatchNorm,
    NormName,
    get_norm,
)
from segdet.layers.deform_conv import DeformConv, ModulatedDeformConv
from segdet.layers.losses import (
    Losses,
    ciou_loss,
    diou_loss,
    giou_loss,
    sigmoid_focal_loss,
    smooth_l1_loss,
)
from segdet.layers.mask_ops import paste_masks_in_image
from segdet.layers.nms import batched_nms, batched_nms_rotated, nms, nms_rotated
from segdet.layers.roi_align import ROIAlign
from segdet.layers.roi_align_rotated import ROIAlignRotated
from segdet.layers.rotated_boxes import pairwise_iou_rotated
from segdet.layers.shape_spec import ShapeSpec
from segdet.layers.weight_init import c2_msra_fill, c2_xavier_fill, normal_fill
from segdet.layers.wrappers import (
    BatchNorm2d,
    Conv2d,
    ConvTranspose2d,
    Linear,
    LinearReLU,
    at_least_float32,
    cat,
    conv3x3_relu,
    cross_entropy,
    interpolate,
    nonzero_tuple,
)
from segdet.ops import cross_class_fast_nms, fast_nms, point_sample, ps_roi_pool

__all__ = [
    "BatchNorm2d",
    "Conv2d",
    "ConvTranspose2d",
    "DeformConv",
    "FrozenBatchNorm2d",
    "LayerNorm",
    "Linear",
    "LinearReLU",
    "Losses",
    "ModulatedDeformConv",
    "NaiveSyncBatchNorm",
    "NormName",
    "ROIAlign",
    "ROIAlignRotated",
    "ShapeSpec",
    "at_least_float32",
    "batched_nms",
    "batched_nms_rotated",
    "c2_msra_fill",
    "c2_xavier_fill",
    "cat",
    "ciou_loss",
    "conv3x3_relu",
    "cross_class_fast_nms",
    "cross_entropy",
    "diou_loss",
    "fast_nms",
    "get_norm",
    "giou_loss",
    "interpolate",
    "nms",
    "nms_rotated",
    "nonzero_tuple",
    "normal_fill",
    "pairwise_iou_rotated",
    "paste_masks_in_image",
    "point_sample",
    "ps_roi_pool",
    "sigmoid_focal_loss",
    "smooth_l1_loss",
]
