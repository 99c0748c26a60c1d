"""Data sets, transforms and loaders, under detectron2's names."""

from segdet.data import transforms
from segdet.data.build import (
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
    print_instances_class_histogram,
)
from segdet.data.catalog import DatasetCatalog, Metadata, MetadataCatalog
from segdet.data.common import DatasetFromList, MapDataset
from segdet.data.mapper import DatasetMapper

__all__ = [
    "DatasetCatalog",
    "DatasetFromList",
    "DatasetMapper",
    "MapDataset",
    "Metadata",
    "MetadataCatalog",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "get_detection_dataset_dicts",
    "print_instances_class_histogram",
    "transforms",
]
