"""Pascal VOC's layout under a name: detectron2's functions."""

from __future__ import annotations

import os
from collections.abc import Sequence

from segdet.data.catalog import DatasetCatalog, MetadataCatalog
from segdet.data.readers.pascal_voc import CLASS_NAMES, load_voc_instances

__all__ = ["CLASS_NAMES", "load_voc_instances", "register_pascal_voc"]


def register_pascal_voc(
    name: str,
    dirname: str | os.PathLike[str],
    split: str,
    year: int,
    class_names: Sequence[str] = CLASS_NAMES,
) -> None:
    """Name a data set in VOC's layout so that configs can use it.

    Args:
        name: the new name.
        dirname: holds `Annotations`, `ImageSets/Main` and `JPEGImages`.
        split: the list of images in `ImageSets/Main`, without suffix.
        year: 2007 evaluates by that year's rule (11 points), another by the later one.
        class_names: `category_id` is the place in it.
    """
    folder, names = os.fspath(dirname), list(class_names)
    DatasetCatalog.register(name, lambda: load_voc_instances(folder, split, names))
    MetadataCatalog.get(name).set(
        thing_classes=names, dirname=folder, year=year, split=split, evaluator_type="pascal_voc"
    )
