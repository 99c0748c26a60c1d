"""Data sets in memory: records that worker processes share, and a mapper over them."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from segdet.errors import DataError

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
