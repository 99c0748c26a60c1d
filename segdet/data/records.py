"""Records of data sets by name, and which of them are of use."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from segdet.data.annotations import category_of
from segdet.data.catalog import DatasetCatalog, MetadataCatalog
from segdet.data.proposals import load_proposals_into_dataset
from segdet.data.sem_seg import has_sem_seg
from segdet.errors import ConfigError, DataError

logger = logging.getLogger("segdet.data")

Records = list[dict[str, Any]]

CROWD = -1  # the class of crowds, in the targets of systems that learn from them


def get_detection_dataset_dicts(
    names: str | Sequence[str],
    filter_empty: bool = True,
    min_keypoints: int = 0,
    proposal_files: Sequence[str] | None = None,
    check_consistency: bool = True,
) -> Records:
    """Load data sets and join their records.

    Args:
        names: one name or several.
        filter_empty: leave out images without an object that is no crowd, where the data sets
            have annotations at all.
        min_keypoints: leave out images with fewer visible keypoints.
        proposal_files: for each name a file of proposals; empty for none.
        check_consistency: the data sets must have the same classes, and the classes of all
            objects must be among them.

    Raises:
        DataError: an unknown name, a broken data set, or data sets that do not fit together.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise DataError("no data set is named; set DATASETS.TRAIN or DATASETS.TEST")
    parts = [DatasetCatalog.get(name) for name in names]
    if proposal_files:
        if len(proposal_files) != len(names):
            raise ConfigError(
                f"{len(names)} data sets need as many files of proposals, there are "
                f"{len(proposal_files)}; set DATASETS.PROPOSAL_FILES_TRAIN and PROPOSAL_FILES_TEST"
            )
        for records, file in zip(parts, proposal_files, strict=True):
            load_proposals_into_dataset(records, file)
    records = list(itertools.chain.from_iterable(parts))
    has_instances = any("annotations" in record for record in records)
    if filter_empty and has_instances:
        records = filter_images_with_only_crowd_annotations(records)
    if min_keypoints > 0 and has_instances:
        records = filter_images_with_few_keypoints(records, min_keypoints)
    if check_consistency and has_instances:
        classes = _common_classes(names)
        if classes is not None:
            print_instances_class_histogram(records, classes)
    return records


def _common_classes(names: list[str]) -> list[str] | None:
    """`thing_classes` of all data sets; None where none has them."""
    classes = [MetadataCatalog.get(name).get("thing_classes") for name in names]
    for name, one in zip(names, classes, strict=True):
        if one != classes[0]:
            difference = _first_difference(classes[0], one)
            raise DataError(f"data sets {names[0]!r} and {name!r} differ in classes: {difference}")
    return classes[0]


def _first_difference(a: Sequence[str] | None, b: Sequence[str] | None) -> str:
    if a is None or b is None:
        return "one of them has no thing_classes"
    for k, (one, other) in enumerate(zip(a, b, strict=False)):
        if one != other:
            return f"class {k} is {one!r} in the first, {other!r} in the second"
    return f"the first has {len(a)}, the second {len(b)}"


def _objects(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The annotations that are no crowd."""
    return [a for a in record.get("annotations", ()) if a.get("iscrowd", 0) == 0]


def _classes(dataset_dicts: Records) -> Iterator[tuple[dict[str, Any], int]]:
    """Record and class of every object that is no crowd."""
    for record in dataset_dicts:
        for number, annotation in enumerate(record.get("annotations", ())):
            if annotation.get("iscrowd", 0) == 0:
                try:
                    yield record, category_of(annotation)
                except DataError as error:
                    name = record.get("file_name") or f"image id {record.get('image_id')}"
                    raise DataError(f"{name}, object {number}: {error}") from None


def filter_images_with_only_crowd_annotations(dataset_dicts: Records) -> Records:
    """The records with at least one object that is no crowd; logs how many are left out."""
    kept = [record for record in dataset_dicts if _objects(record)]
    dropped = len(dataset_dicts) - len(kept)
    logger.info("Left out %d images without objects, %d images remain", dropped, len(kept))
    return kept


def filter_images_with_few_keypoints(
    dataset_dicts: Records, min_keypoints_per_image: int
) -> Records:
    """The records with enough visible keypoints; logs how many are left out."""

    def visible(record: dict[str, Any]) -> int:
        points = [np.asarray(a["keypoints"][2::3]) for a in _objects(record) if "keypoints" in a]
        return sum(int((p > 0).sum()) for p in points)

    kept = [record for record in dataset_dicts if visible(record) >= min_keypoints_per_image]
    dropped = len(dataset_dicts) - len(kept)
    logger.info("Left out %d images with few keypoints, %d images remain", dropped, len(kept))
    return kept


def print_instances_class_histogram(dataset_dicts: Records, class_names: Sequence[str]) -> None:
    """Log how many objects each class has.

    Raises:
        DataError: the class of an object is not among the names.
    """
    counts: Counter[int] = Counter()
    for record, category in _classes(dataset_dicts):
        if category >= len(class_names):
            raise DataError(
                f"image id {record.get('image_id')}: category_id is {category}, must be in "
                f"[0, {len(class_names)}): one of the {len(class_names)} thing_classes"
            )
        counts[category] += 1
    cells = [f"{name[:20]:>20} {counts[k]:>8}" for k, name in enumerate(class_names)]
    rows = [" |".join(cells[i : i + 3]) for i in range(0, len(cells), 3)]
    table = "\n".join(rows)
    logger.info("%d objects in %d images:\n%s", counts.total(), len(dataset_dicts), table)


def drop_objects_without_masks(
    dataset_dicts: Records, names: Sequence[str], drop_empty: bool = True
) -> Records:
    """The records as a model with masks can learn from them; logs what is left out.

    Objects with a box but no mask go. Crowds stay.

    Args:
        dataset_dicts: standard dicts.
        names: of the data sets, for the message.
        drop_empty: images that so lose their last object go too.

    Raises:
        DataError: no object has a mask.
    """
    lack = [sum("segmentation" not in a for a in _objects(record)) for record in dataset_dicts]
    total = sum(len(_objects(record)) for record in dataset_dicts)
    if not any(lack):
        return dataset_dicts
    if sum(lack) == total:
        raise DataError(
            f"{', '.join(names)}: none of the {total} objects has a segmentation, which a model "
            "with masks needs; annotate it, or set MODEL.MASK_ON False"
        )
    logger.warning("Left out %d of %d objects: they have a box but no mask", sum(lack), total)
    kept = []
    for record, lacking in zip(dataset_dicts, lack, strict=True):
        if lacking == 0:
            kept.append(record)
        elif not drop_empty or lacking < len(_objects(record)):
            rest = [a for a in record["annotations"] if a.get("iscrowd", 0) or "segmentation" in a]
            kept.append({**record, "annotations": rest})
    return kept


def check_trainable(
    dataset_dicts: Records, names: Sequence[str], needs: Collection[str] = ("annotations",)
) -> None:
    """Refuse records that teach nothing.

    Args:
        dataset_dicts: what filters left.
        names: of the data sets, for the message.
        needs: what every record must have: "annotations" (maybe none), "sem_seg" (label maps).

    Raises:
        DataError: a record lacks them, or no record holds anything.
    """
    where = ", ".join(names) or "the data set"
    only_objects = set(needs) == {"annotations"}
    if not any(_objects(r) or (has_sem_seg(r) and not only_objects) for r in dataset_dicts):
        raise DataError(
            f"nothing to train on in {where}: no image has an object (an annotation with iscrowd 0)"
            + ("" if only_objects else " or semantic labels")
        )
    for record in dataset_dicts:
        name = record.get("file_name") or f"image id {record.get('image_id')}"
        if "annotations" in needs and "annotations" not in record:
            raise DataError(f"{where}: {name} has no annotations, which this model learns from")
        if "sem_seg" in needs and not has_sem_seg(record):
            raise DataError(
                f"{where}: {name} has no sem_seg_file_name and no segments_info that label maps "
                "could be made from; this model learns from semantic labels"
            )


def check_stuff_count(names: Sequence[str], num_classes: int, key: str) -> None:
    """Refuse data sets of more semantic classes than the model has.

    Args:
        names: of the data sets; those whose metadata has no `stuff_classes` pass.
        num_classes: of the model.
        key: where the config says so, for the message.

    Raises:
        ConfigError: there are more.
    """
    for name in names:
        classes = MetadataCatalog.get(name).get("stuff_classes")
        if classes is not None and len(classes) > num_classes:
            raise ConfigError(
                f"{name} has {len(classes)} semantic classes, {key} is {num_classes}; set it to "
                f"{len(classes)}"
            )
        if classes is not None and len(classes) < num_classes:
            logger.warning(
                "%s has %d semantic classes, %s is %d", name, len(classes), key, num_classes
            )


def check_class_count(
    dataset_dicts: Records,
    names: Sequence[str],
    num_classes: int,
    key: str = "MODEL.ROI_HEADS.NUM_CLASSES",
) -> None:
    """Refuse objects of a class that the model does not have: it would take them for background.

    Args:
        dataset_dicts: what is trained on.
        names: of the data sets, for the message.
        num_classes: of the model; objects need `category_id` in [0, num_classes).
        key: where the config says so, for the message.

    Raises:
        ConfigError: there is such an object.
    """
    classes = {category for _, category in _classes(dataset_dicts)}
    if classes and max(classes) >= num_classes:
        raise ConfigError(
            f"{', '.join(names)} has objects of {max(classes) + 1} classes, "
            f"{key} is {num_classes}; set it to the number of classes"
        )
