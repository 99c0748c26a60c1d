"""Batches from worker processes, the same whoever computes them."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from segdet.data.common import MapStyle
from segdet.data.parcel import Parcel
from segdet.data.seeding import seeded
from segdet.errors import ConfigError, SegdetError
from segdet.utils.processes import end_with_parent


class Draw(NamedTuple):
    """One sample of the training stream."""

    seed: int
    position: int  # in the stream of all processes; with the seed it fixes the randomness
    record: int


class _Failure(NamedTuple):
    """What a worker sends instead of a sample: torch would bury the message in a traceback."""

    error: SegdetError


class Samples(Dataset[Any]):
    """Hands out samples to workers, by index or by `Draw`, with users' mistakes as values.

    Args:
        dataset: of samples, by index.
    """

    def __init__(self, dataset: MapStyle) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, key: int | Draw) -> Any:
        try:
            if not isinstance(key, Draw):
                return self._dataset[key]
            with seeded(key.seed, key.position):
                return self._dataset[key.record]
        except SegdetError as error:
            return _Failure(error)


class _Collate:
    """Passes a failure on instead of the batch; a worker sends batches as parcels."""

    def __init__(self, collate_fn: Callable[[list[Any]], Any]) -> None:
        self._collate_fn = collate_fn

    def __call__(self, samples: list[Any]) -> Any:
        failure = next((s for s in samples if isinstance(s, _Failure)), None)
        batch = failure or self._collate_fn(samples)
        return Parcel(batch) if torch.utils.data.get_worker_info() else batch


_LINGER = 3.0  # seconds that a worker goes on behind a SIGTERM


def _live_with_the_run(_: int) -> None:
    """A signal to the whole group must not take the data from an iteration that is finished.

    SIGINT is the run's alone. Behind a SIGTERM, by which a process that fails ends its workers,
    too, a worker goes on for a while. Behind a SIGKILL of its process a worker would wait for ever
    for somebody who takes its last batch, and keep open the connections to the other processes,
    which would wait too.
    """
    end_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.signal(signal.SIGTERM, lambda *_: signal.setitimer(signal.ITIMER_REAL, _LINGER))


class Loader(DataLoader[Any]):
    """torch's loader over `Samples`; a user's mistake in a worker is raised here as it was.

    Where there is a GPU, workers' batches come in page-locked memory, which it is copied from while
    the program goes on.

    Args:
        dataset: of samples.
        num_workers: worker processes; 0 computes samples in this one.
        collate_fn: list of samples -> batch; None keeps the list.
        kwargs: torch's.
    """

    def __init__(
        self,
        dataset: Samples,
        *,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # An own generator: torch would draw the workers' seed from the global one.
        super().__init__(
            dataset,
            num_workers=num_workers,
            collate_fn=_Collate(collate_fn or list),
            pin_memory=num_workers > 0 and torch.cuda.is_available(),
            generator=torch.Generator(),
            worker_init_fn=_live_with_the_run,
            **kwargs,
        )

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        for sent in super().__iter__():
            batch = sent.unpack() if isinstance(sent, Parcel) else sent
            if isinstance(batch, _Failure):
                raise batch.error
            yield batch


def cut_batches(
    indices: Iterable[int], size: int, is_wide: Sequence[bool] | None = None
) -> Iterator[list[int]]:
    """Cut a stream into batches.

    Args:
        indices: the stream.
        size: of a batch.
        is_wide: of each record; given, a batch holds only wide or only other records, and comes
            when it is full. What is left over waits for more.
    """
    buckets: tuple[list[int], list[int]] = [], []
    for index in indices:
        bucket = buckets[bool(is_wide[index]) if is_wide is not None else 0]
        bucket.append(index)
        if len(bucket) == size:
            yield bucket.copy()
            bucket.clear()


class TrainLoader:
    """The training batches of one process, without end.

    Batch k of all processes together, and each sample in it, is a function of the seed and k:
    the number of workers and of processes changes nothing.

    Args:
        dataset: of samples.
        sampler: yields the indices of the global stream, the same in every process.
        total_batch_size: of all processes together.
        is_wide: as for `cut_batches`.
        seed: of the samples' randomness.
        rank: of this process.
        world_size: number of processes.
        num_workers: worker processes; 0 computes samples in this one.
        collate_fn: list of samples -> batch; None keeps the list.
    """

    def __init__(
        self,
        dataset: MapStyle,
        *,
        sampler: Iterable[int],
        total_batch_size: int,
        is_wide: Sequence[bool] | None = None,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        if total_batch_size < 1 or total_batch_size % world_size:
            raise ConfigError(
                f"SOLVER.IMS_PER_BATCH is {total_batch_size}, must be a multiple of the "
                f"{world_size} processes"
            )
        self.dataset, self.sampler, self.seed = dataset, sampler, seed
        self._size, self._is_wide = total_batch_size, is_wide
        self.take_share_of(rank, world_size)
        self._num_workers, self._collate_fn = num_workers, collate_fn
        self._next = 0

    def take_share_of(self, rank: int, world_size: int) -> None:
        """Give the samples that process `rank` of `world_size` gets."""
        self._share = slice(rank, None, world_size)

    def seek(self, batch_index: int) -> None:
        """Let the next `iter()` begin at batch `batch_index` of the stream."""
        self._next = batch_index

    def draws(self) -> Iterator[list[Draw]]:
        """This process' share of each batch, from the one that was sought."""
        batches = cut_batches(self.sampler, self._size, self._is_wide)
        for number, batch in itertools.islice(enumerate(batches), self._next, None):
            start = number * self._size
            draws = [Draw(self.seed, start + slot, index) for slot, index in enumerate(batch)]
            yield draws[self._share]

    def __iter__(self) -> Iterator[Any]:
        yield from Loader(
            Samples(self.dataset),
            batch_sampler=self.draws(),
            num_workers=self._num_workers,
            collate_fn=self._collate_fn,
        )
