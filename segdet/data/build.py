"""From data set names to loaders."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, Sampler

from segdet.config.configurable import configurable
from segdet.config.node import CfgNode
from segdet.config.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt
from segdet.config.reader import read_section
from segdet.data.common import DatasetFromList, MapDataset, MapStyle
from segdet.data.image_io import file_name_of, image_size_of
from segdet.data.loader import Loader, Samples, TrainLoader
from segdet.data.mapper import DatasetMapper, InputConfig
from segdet.data.mixing import Mix, MixedDataset
from segdet.data.proposals import load_proposals_into_dataset
from segdet.data.records import (
    Records,
    check_class_count,
    check_stuff_count,
    check_trainable,
    drop_objects_without_masks,
    filter_images_with_few_keypoints,
    filter_images_with_only_crowd_annotations,
    get_detection_dataset_dicts,
    print_instances_class_histogram,
)
from segdet.data.samplers import InferenceSampler, RepeatFactorTrainingSampler, TrainingSampler
from segdet.errors import ConfigError
from segdet.modeling.meta_arch import needs_of
from segdet.utils import comm

__all__ = [
    "DataLoaderConfig",
    "DatasetsConfig",
    "build_batch_data_loader",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "filter_images_with_few_keypoints",
    "filter_images_with_only_crowd_annotations",
    "get_detection_dataset_dicts",
    "load_proposals_into_dataset",
    "print_instances_class_histogram",
]

logger = logging.getLogger("segdet.data")


@dataclass(frozen=True, kw_only=True)
class DatasetsConfig:
    """DATASETS; defaults are detectron2's."""

    train: tuple[str, ...] = ()  # names, or paths: see `find_builtin`
    test: tuple[str, ...] = ()
    proposal_files_train: tuple[str, ...] = ()
    proposal_files_test: tuple[str, ...] = ()
    precomputed_proposal_topk_train: NonNegativeInt = 2000
    precomputed_proposal_topk_test: NonNegativeInt = 1000
    load_proposals: bool = field(default=False, metadata={"key": "MODEL.LOAD_PROPOSALS"})

    def files_for_training(self) -> tuple[str, ...]:
        """The files of proposals of `train`, one each; () where they are not wanted."""
        return self._files("PROPOSAL_FILES_TRAIN", self.train, self.proposal_files_train)

    def files_for_testing(self, names: Sequence[str]) -> tuple[str, ...]:
        """The files of proposals of some of `test`; () where they are not wanted."""
        files = self._files("PROPOSAL_FILES_TEST", self.test, self.proposal_files_test)
        if not files:
            return ()
        of_name = dict(zip(self.test, files, strict=True))
        if unknown := [name for name in names if name not in of_name]:
            raise ConfigError(
                f"{unknown[0]} is none of DATASETS.TEST, whose files of proposals are known"
            )
        return tuple(of_name[name] for name in names)

    def _files(self, key: str, names: Sequence[str], files: tuple[str, ...]) -> tuple[str, ...]:
        if not self.load_proposals:
            return ()
        if len(files) != len(names):
            raise ConfigError(
                f"MODEL.LOAD_PROPOSALS needs one file for each data set: DATASETS.{key} has "
                f"{len(files)} for {len(names)}"
            )
        return files


@dataclass(frozen=True, kw_only=True)
class DataLoaderConfig:
    """DATALOADER; defaults are detectron2's."""

    num_workers: NonNegativeInt = 4
    aspect_ratio_grouping: bool = True
    sampler_train: str = "TrainingSampler"
    repeat_threshold: NonNegativeFloat = 0.0
    repeat_sqrt: bool = True
    filter_empty_annotations: bool = True
    ims_per_batch: PositiveInt = field(default=16, metadata={"key": "SOLVER.IMS_PER_BATCH"})
    seed: int = field(default=-1, metadata={"key": "SEED"})  # negative: drawn anew for each run
    mask_on: bool = field(default=False, metadata={"key": "MODEL.MASK_ON"})
    keypoint_on: bool = field(default=False, metadata={"key": "MODEL.KEYPOINT_ON"})
    min_keypoints_per_image: NonNegativeInt = field(
        default=1, metadata={"key": "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE"}
    )

    def __post_init__(self) -> None:
        if self.sampler_train not in SAMPLERS:
            raise ConfigError(
                f"SAMPLER_TRAIN must be one of {', '.join(SAMPLERS)}, is {self.sampler_train!r}"
            )

    def load_training_records(
        self,
        names: Sequence[str],
        proposal_files: Sequence[str] = (),
        labels: Collection[str] = (),
    ) -> Records:
        """The records of data sets that a model can learn from that needs these labels."""
        records = get_detection_dataset_dicts(
            names,
            filter_empty=self.filter_empty_annotations,
            min_keypoints=self.min_keypoints_per_image if self.keypoint_on else 0,
            proposal_files=proposal_files,
        )
        check_trainable(records, names, labels)
        if not self.mask_on:
            return records
        return drop_objects_without_masks(records, names, self.filter_empty_annotations)

    def build_sampler(self, records: MapStyle, seed: int) -> Sampler[int]:
        """The training sampler over records."""
        return SAMPLERS[self.sampler_train](self, records, seed)


def _repeat_factor_sampler(
    section: DataLoaderConfig, records: MapStyle, seed: int
) -> RepeatFactorTrainingSampler:
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        [records[i] for i in range(len(records))], section.repeat_threshold, section.repeat_sqrt
    )
    return RepeatFactorTrainingSampler(factors, seed=seed)


SAMPLERS: dict[str, Callable[[DataLoaderConfig, MapStyle, int], Sampler[int]]] = {
    "TrainingSampler": lambda _, records, seed: TrainingSampler(len(records), seed=seed),
    "RepeatFactorTrainingSampler": _repeat_factor_sampler,
}


def _train_arguments(
    cfg: CfgNode,
    *,
    mapper: Callable[[dict[str, Any]], Any] | None = None,
    dataset: MapStyle | None = None,
    sampler: Iterable[int] | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    section = read_section(DataLoaderConfig, cfg, at="DATALOADER")
    if seed is None:
        seed = section.seed if section.seed >= 0 else comm.shared_random_seed()
    if dataset is None:
        datasets = read_section(DatasetsConfig, cfg, at="DATASETS")
        labels = needs_of(cfg.leaves()).labels
        files = datasets.files_for_training()
        dataset = section.load_training_records(datasets.train, files, labels)
        _check_classes(cfg, dataset, datasets.train, labels)
    return {
        "dataset": dataset,
        "mapper": mapper or DatasetMapper(cfg, is_train=True),
        "mixes": read_section(InputConfig, cfg, at="INPUT").mixes(),
        "sampler": sampler or section.build_sampler(dataset, seed),
        "total_batch_size": section.ims_per_batch,
        "aspect_ratio_grouping": section.aspect_ratio_grouping,
        "num_workers": section.num_workers,
        "seed": seed,
    }


def _check_classes(
    cfg: CfgNode, records: Records, names: Sequence[str], labels: Mapping[str, str | None]
) -> None:
    """Refuse records of more classes than the model has, by the keys that count them."""
    if key := labels.get("annotations"):
        check_class_count(records, names, attrgetter(key)(cfg), key)
    if key := labels.get("sem_seg"):
        check_stuff_count(names, attrgetter(key)(cfg), key)


@configurable(from_config=_train_arguments)
def build_detection_train_loader(
    dataset: MapStyle,
    *,
    mapper: Callable[[dict[str, Any]], Any] | None,
    mixes: Sequence[Mix] = (),
    sampler: Iterable[int] | None = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    seed: int | None = None,
) -> TrainLoader:
    """Build the endless loader for training.

    `build_detection_train_loader(cfg)` takes the arguments from a config; `mapper`, `dataset`,
    `sampler` and the others override it.

    Args:
        dataset: standard dicts, or a map-style data set of them.
        mapper: record -> sample; None takes the records as samples.
        mixes: what makes one sample of several, such as `CopyPaste`; see `MixedDataset`.
        sampler: yields indices without end, the same in every process (which get their share
            of each batch); None is a `TrainingSampler`.
        total_batch_size: samples of all processes together in a batch.
        aspect_ratio_grouping: batches of images that are all wider than high, or all not.
        num_workers: worker processes of each process.
        collate_fn: list of samples -> batch; None keeps the list.
        seed: of the order and of each sample's randomness; None or a negative one draws it.

    Returns:
        The loader; `seek(k)` moves it to batch k of the same stream.
    """
    if isinstance(dataset, IterableDataset):
        raise ConfigError("training needs a list or a map-style data set: the order is seeded")
    if seed is None or seed < 0:
        seed = comm.shared_random_seed()
    logger.info("Seed of the sample order and augmentation: %d", seed)
    is_wide = [_is_wide(dataset[i]) for i in range(len(dataset))] if aspect_ratio_grouping else None
    records = DatasetFromList(dataset) if isinstance(dataset, list) else dataset
    samples = records if mapper is None else MapDataset(records, mapper)
    return TrainLoader(
        MixedDataset(samples, mixes) if mixes else samples,
        sampler=sampler or TrainingSampler(len(dataset), seed=seed),
        total_batch_size=total_batch_size,
        is_wide=is_wide,
        seed=seed,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
        num_workers=num_workers,
        collate_fn=collate_fn,
    )


def build_batch_data_loader(
    dataset: MapStyle,
    sampler: Iterable[int],
    total_batch_size: int,
    *,
    aspect_ratio_grouping: bool = False,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    seed: int | None = None,
) -> TrainLoader:
    """Build the endless loader of samples that need no mapper any more.

    Args:
        dataset: of samples, such as a `MapDataset`.
        sampler: as for `build_detection_train_loader`; likewise the others.
        total_batch_size: see there.
        aspect_ratio_grouping: see there; it reads every sample once, for its `width` and `height`.
        num_workers: see there.
        collate_fn: see there.
        seed: see there.
    """
    return build_detection_train_loader(
        dataset,
        mapper=None,
        sampler=sampler,
        total_batch_size=total_batch_size,
        aspect_ratio_grouping=aspect_ratio_grouping,
        num_workers=num_workers,
        collate_fn=collate_fn,
        seed=seed,
    )


def _is_wide(record: dict[str, Any]) -> bool:
    if "width" in record and "height" in record:
        return record["width"] > record["height"]
    height, width = image_size_of(file_name_of(record))
    return width > height


def _test_arguments(
    cfg: CfgNode,
    dataset_name: str | Sequence[str],
    mapper: Callable[[dict[str, Any]], Any] | None = None,
) -> dict[str, Any]:
    section = read_section(DataLoaderConfig, cfg, at="DATALOADER")
    names = [dataset_name] if isinstance(dataset_name, str) else list(dataset_name)
    files = read_section(DatasetsConfig, cfg, at="DATASETS").files_for_testing(names)
    return {
        "dataset": get_detection_dataset_dicts(names, filter_empty=False, proposal_files=files),
        "mapper": mapper or DatasetMapper(cfg, is_train=False),
        "num_workers": section.num_workers,
    }


@configurable(from_config=_test_arguments)
def build_detection_test_loader(
    dataset: MapStyle,
    *,
    mapper: Callable[[dict[str, Any]], Any] | None,
    sampler: Sampler[int] | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
) -> DataLoader[Any]:
    """Build a loader that gives every image once, in order, shared out among the processes.

    `build_detection_test_loader(cfg, dataset_name)` takes the arguments from a config; `mapper`
    and the others override it.

    Args:
        dataset: standard dicts, or a map-style data set of them.
        mapper: record -> sample; None takes the records as samples.
        sampler: yields the indices of this process; None is an `InferenceSampler`.
        batch_size: of this process.
        num_workers: worker processes of each process.
        collate_fn: list of samples -> batch; None keeps the list.
    """
    records = DatasetFromList(dataset) if isinstance(dataset, list) else dataset
    return Loader(
        Samples(records if mapper is None else MapDataset(records, mapper)),
        batch_size=batch_size,
        sampler=sampler or InferenceSampler(len(records)),
        num_workers=num_workers,
        collate_fn=collate_fn,
    )
