"""What custom mappers are made of, under detectron2's name for it."""

from segdet.data.annotations import (
    annotations_to_instances,
    annotations_to_instances_rotated,
    create_keypoint_hflip_indices,
    filter_empty_instances,
    gen_crop_transform_with_instance,
    get_fed_loss_cls_weights,
    transform_instance_annotations,
    transform_keypoint_annotations,
)
from segdet.data.image_io import check_image_size, convert_image_to_rgb, read_image
from segdet.data.mapper import build_augmentation
from segdet.data.proposals import transform_proposals

__all__ = [
    "annotations_to_instances",
    "annotations_to_instances_rotated",
    "build_augmentation",
    "check_image_size",
    "convert_image_to_rgb",
    "create_keypoint_hflip_indices",
    "filter_empty_instances",
    "gen_crop_transform_with_instance",
    "get_fed_loss_cls_weights",
    "read_image",
    "transform_instance_annotations",
    "transform_keypoint_annotations",
    "transform_proposals",
]
