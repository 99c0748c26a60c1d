"""The native ops. Each has one file here and one folder in csrc/.

`BINARY_DEVICES` holds the device types that the compiled library serves here; on others, slower
code of the same meaning runs.
"""

from .deform_conv import deform_conv2d
from .library import BINARY_DEVICES
from .nms import batched_nms, nms
from .paste_masks import paste_masks
from .roi_align import roi_align

__all__ = ["BINARY_DEVICES", "batched_nms", "deform_conv2d", "nms", "paste_masks", "roi_align"]
