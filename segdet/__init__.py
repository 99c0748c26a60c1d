"""segdet: instance and panoptic segmentation."""

__version__ = "0.1.0"
