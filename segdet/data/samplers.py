"""Which record comes when: endless streams that depend on (seed, epoch) alone.

A training sampler yields one stream, the same in every process; the loader cuts it into batches
and gives each process its share.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from segdet.data.seeding import generator_at
from segdet.errors import DataError
from segdet.utils import comm


class _EpochSampler(Sampler[int]):
    """One order after the other, without end.

    Args:
        seed: of the orders; None draws one, the same for all processes.
    """

    def __init__(self, seed: int | None) -> None:
        self.seed = comm.shared_random_seed() if seed is None else seed

    def __iter__(self) -> Iterator[int]:
        for epoch in itertools.count():
            yield from self.indices_of(epoch).tolist()

    def indices_of(self, epoch: int) -> Tensor:
        """The order of one epoch, int64."""
        raise NotImplementedError


class TrainingSampler(_EpochSampler):
    """Every record once per epoch, in a new order each time, without end.

    Args:
        size: number of records.
        shuffle: False keeps the records' order.
        seed: of the orders; None draws one, the same for all processes.
    """

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None) -> None:
        if size < 1:
            raise DataError("nothing to sample from: the data set is empty")
        super().__init__(seed)
        self.size, self.shuffle = size, shuffle

    def indices_of(self, epoch: int) -> Tensor:
        """(size,) int64, the order of one epoch."""
        if not self.shuffle:
            return torch.arange(self.size)
        return torch.randperm(self.size, generator=generator_at(self.seed, epoch))


class RepeatFactorTrainingSampler(_EpochSampler):
    """Repeats images of rare classes: each comes about `repeat_factors[i]` times an epoch.

    Source: LVIS (Gupta et al. 2019, arXiv:1908.03195), section 5.

    Args:
        repeat_factors: (N,) >= 1 of each record; the fraction is the chance of one more time.
        shuffle: False keeps the records' order.
        seed: of the orders; None draws one, the same for all processes.
    """

    def __init__(
        self, repeat_factors: Tensor, *, shuffle: bool = True, seed: int | None = None
    ) -> None:
        if len(repeat_factors) < 1:
            raise DataError("nothing to sample from: the data set is empty")
        super().__init__(seed)
        self.repeat_factors, self.shuffle = repeat_factors, shuffle

    @staticmethod
    def repeat_factors_from_category_frequency(
        dataset_dicts: list[dict[str, Any]], repeat_thresh: float, sqrt: bool = True
    ) -> Tensor:
        """The factors from how many images show each class.

        Args:
            dataset_dicts: standard dicts.
            repeat_thresh: share of images; rarer classes are repeated.
            sqrt: take the root of threshold / share.

        Returns:
            (N,) float32: for each image the highest factor of its classes, at least 1.
        """
        shown = [{a["category_id"] for a in d.get("annotations", ())} for d in dataset_dicts]
        images = Counter(category for categories in shown for category in categories)
        power = 0.5 if sqrt else 1.0
        factors = {
            category: max(1.0, (repeat_thresh * len(dataset_dicts) / n) ** power)
            for category, n in images.items()
        }
        return torch.tensor(
            [
                max((factors[category] for category in categories), default=1.0)
                for categories in shown
            ]
        )

    def indices_of(self, epoch: int) -> Tensor:
        """(about the sum of the factors,) int64, the order of one epoch."""
        generator = generator_at(self.seed, epoch)
        whole = self.repeat_factors.floor()
        chance = torch.rand(len(whole), generator=generator)
        times = (whole + (chance < self.repeat_factors - whole)).long()
        indices = torch.arange(len(times)).repeat_interleave(times)
        if not self.shuffle:
            return indices
        return indices[torch.randperm(len(indices), generator=generator)]


class InferenceSampler(Sampler[int]):
    """Each record once; every process takes a contiguous part, the first ones one more.

    Args:
        size: number of records.
    """

    def __init__(self, size: int) -> None:
        rank, world_size = comm.get_rank(), comm.get_world_size()
        share, rest = divmod(size, world_size)
        start = rank * share + min(rank, rest)
        self._indices = range(start, start + share + (rank < rest))

    def __iter__(self) -> Iterator[int]:
        yield from self._indices

    def __len__(self) -> int:
        return len(self._indices)
