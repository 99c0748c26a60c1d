"""Data sets in memory: records that worker processes share, and a mapper over them."""

from __future__ import annotations

import copy
import itertools
import logging
import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from segdet.errors import DataError
from segdet.utils import comm

logger = logging.getLogger("segdet.data")


class MapStyle(Protocol):
    """Records or samples by index: a list, or a torch data set with a length."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class DatasetFromList(Dataset[Any]):
    """A list of records as a data set.

    Serialised, the records are pickled into one tensor. Forked workers read its memory without
    copying it (reading Python objects would: each access writes a reference count), and to
    spawned workers torch passes tensors as shared memory. So workers add nothing.

    Args:
        lst: the records.
        copy: give out deep copies; a serialised list always does.
        serialize: pickle the records.
    """

    def __init__(self, lst: list[Any], copy: bool = True, serialize: bool = True) -> None:
        self._list, self._copy = None if serialize else lst, copy
        pickles = [pickle.dumps(record, protocol=-1) for record in lst] if serialize else []
        self._ends = torch.tensor([0, *map(len, pickles)]).cumsum(0)  # with a 0 in front
        self._buffer = torch.frombuffer(bytearray().join([*pickles, b"\0"]), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1 if self._list is None else len(self._list)

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        if self._list is not None:
            return copy.deepcopy(self._list[index]) if self._copy else self._list[index]
        start, end = self._ends[index % len(self) :][:2].tolist()
        return pickle.loads(self._buffer[start:end].numpy().data)


class MapDataset(Dataset[Any]):
    """A data set with a function applied to each record.

    Args:
        dataset: of records.
        map_func: record -> sample; where it returns None, another record, drawn at random from
            numpy's global generator, takes the place.
    """

    TRIES = 1000  # a mapper that refuses so many in a row refuses all

    def __init__(self, dataset: MapStyle, map_func: Callable[[Any], Any]) -> None:
        self._dataset, self._map_func = dataset, map_func

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        for attempt in range(self.TRIES):
            sample = self._map_func(self._dataset[index])
            if sample is not None:
                return sample
            if attempt == 3:
                logger.warning("The mapper returned None for several records, last: %d", index)
            index = int(np.random.randint(len(self._dataset)))
        raise DataError(f"the mapper returned None for {self.TRIES} records in a row")


class ToIterableDataset(IterableDataset[Any]):
    """A map-style data set in a sampler's order, for loops of one's own.

    Args:
        dataset: by index.
        sampler: yields the indices, the same in every process.
        shard_sampler: whether each process and each worker takes its share of them; otherwise all
            take all.
    """

    def __init__(
        self, dataset: MapStyle, sampler: Iterable[int], shard_sampler: bool = True
    ) -> None:
        self.dataset, self.sampler, self.shard_sampler = dataset, sampler, shard_sampler

    def __iter__(self) -> Iterator[Any]:
        indices = iter(self.sampler)
        if self.shard_sampler:
            worker = torch.utils.data.get_worker_info()
            workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
            step = comm.get_world_size() * workers
            indices = itertools.islice(indices, comm.get_rank() * workers + number, None, step)
        for index in indices:
            yield self.dataset[index]


class AspectRatioGroupedDataset(IterableDataset[list[dict[str, Any]]]):
    """Batches of samples that are all wider than high, or all not.

    What is left over when the samples end is not given out. `build_detection_train_loader` groups
    by itself, before it reads any image.

    Args:
        dataset: gives samples with `width` and `height`.
        batch_size: samples in a batch.
    """

    def __init__(self, dataset: Iterable[dict[str, Any]], batch_size: int) -> None:
        self.dataset, self.batch_size = dataset, batch_size

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        waiting: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for sample in self.dataset:
            is_wide = sample["width"] > sample["height"]
            waiting[is_wide].append(sample)
            if len(waiting[is_wide]) == self.batch_size:
                yield waiting[is_wide]
                waiting[is_wide] = []
