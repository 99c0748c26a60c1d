"""Cityscapes: detectron2's functions. Its official names need no registration."""

from segdet.data.readers.cityscapes import load_cityscapes_instances, load_cityscapes_semantic
from segdet.data.readers.cityscapes_panoptic import load_cityscapes_panoptic

__all__ = ["load_cityscapes_instances", "load_cityscapes_panoptic", "load_cityscapes_semantic"]
