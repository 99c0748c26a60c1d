"""The programs whose weight files we read by their own names: one file each.

Official names (detectron2's, which are ours too) need no family.
"""

from segdet.checkpoint.families.caffe2 import CAFFE2
from segdet.checkpoint.families.centermask2 import (
    CENTERMASK2_MOBILENET_V2,
    CENTERMASK2_VOVNET,
)
from segdet.checkpoint.families.dla import DLA
from segdet.checkpoint.families.family import Family
from segdet.checkpoint.families.fcos import FCOS_BENCHMARK, FCOS_FIRST_RELEASE
from segdet.checkpoint.families.maskrcnn_benchmark import MASKRCNN_BENCHMARK
from segdet.checkpoint.families.mxnet_fcis import MXNET_FCIS
from segdet.checkpoint.families.pointrend import POINTREND_FIRST_RELEASE
from segdet.checkpoint.families.torchvision import TORCHVISION_MOBILENET_V2, TORCHVISION_RESNET
from segdet.checkpoint.families.yolact import YOLACT

__all__ = ["FAMILIES", "Family"]

FAMILIES = (  # asked in this order
    CAFFE2,
    TORCHVISION_RESNET,
    TORCHVISION_MOBILENET_V2,
    FCOS_BENCHMARK,  # its body has maskrcnn-benchmark's names
    MASKRCNN_BENCHMARK,
    MXNET_FCIS,
    FCOS_FIRST_RELEASE,
    POINTREND_FIRST_RELEASE,
    CENTERMASK2_VOVNET,
    CENTERMASK2_MOBILENET_V2,
    YOLACT,
    DLA,
)
