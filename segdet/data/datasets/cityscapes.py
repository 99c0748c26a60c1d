"""Cityscapes: detectron2's functions. Its official names need no registration."""

from segdet.data.readers.cityscapes import load_cityscapes_instances, load_cityscapes_semantic

__all__ = ["load_cityscapes_instances", "load_cityscapes_semantic"]
