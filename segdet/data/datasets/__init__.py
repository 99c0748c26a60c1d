"""Data sets: readers and the names that need no registration."""

from segdet.data.datasets.coco import (
    convert_to_coco_json,
    load_coco_json,
    register_coco_instances,
)

__all__ = ["convert_to_coco_json", "load_coco_json", "register_coco_instances"]
