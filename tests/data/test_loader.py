from __future__ import annotations

import itertools
import multiprocessing
import random
import time
from itertools import islice

import numpy as np
import pytest
import torch

from segdet.data.common import MapDataset
from segdet.data.loader import Loader, Samples, TrainLoader, cut_batches
from segdet.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from segdet.errors import ConfigError, DataError

SIZE = 23
IS_WIDE = [i % 3 == 0 for i in range(SIZE)]


def noisy(index: int) -> tuple:
    """A user's mapper that draws from everywhere."""
    return index, random.random(), float(np.random.rand()), float(torch.rand(1))


def a_loader(**changes) -> TrainLoader:
    settings = {
        "sampler": TrainingSampler(SIZE, seed=4),
        "total_batch_size": 4,
        "is_wide": IS_WIDE,
        "seed": 4,
    }
    return TrainLoader(MapDataset(range(SIZE), noisy), **settings | changes)


@pytest.fixture(scope="module")
def expected() -> list[list[tuple]]:
    return list(islice(a_loader(), 20))


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_workers_change_nothing(expected, num_workers: int):
    random.seed(num_workers)
    np.random.seed(num_workers)
    torch.manual_seed(num_workers)
    assert list(islice(a_loader(num_workers=num_workers), 20)) == expected


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_same_batches(expected, world_size: int):
    loaders = [a_loader(rank=rank, world_size=world_size) for rank in range(world_size)]
    for batch, *shares in zip(expected, *loaders, strict=False):
        assert all(len(share) == 4 // world_size for share in shares)
        assert sorted(itertools.chain(*shares)) == sorted(batch)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_seek_continues_the_stream(expected, num_workers: int):
    loader = a_loader(num_workers=num_workers)
    loader.seek(7)
    assert list(islice(loader, 13)) == expected[7:]
    assert next(iter(loader)) == expected[7], "iter() begins there again"


def test_same_record_is_not_augmented_the_same_twice(expected):
    of_record = [sample[1:] for batch in expected for sample in batch if sample[0] == 0]
    assert len(of_record) >= 3 and len(set(of_record)) == len(of_record)


def test_batches_hold_one_shape_and_lose_nothing(expected):
    assert all(len({IS_WIDE[sample[0]] for sample in batch}) == 1 for batch in expected)
    drawn = [draw.record for batch in islice(a_loader().draws(), 500) for draw in batch]
    counts = np.bincount(drawn, minlength=SIZE)
    assert counts.max() - counts.min() <= 2, "what is left over waits for the next epoch"


def test_cut_batches():
    assert list(cut_batches(range(7), 3)) == [[0, 1, 2], [3, 4, 5]]
    wide = [True, False, False, True, True, False, True]
    assert list(cut_batches(range(7), 3, wide)) == [[0, 3, 4], [1, 2, 5]]


def test_finite_sampler_ends():
    loader = a_loader(sampler=range(9), is_wide=None)
    assert [[sample[0] for sample in batch] for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_batch_must_divide():
    with pytest.raises(ConfigError, match="is 4, must be a multiple of the 3 processes"):
        a_loader(world_size=3)
    with pytest.raises(ConfigError, match="is 0, must be"):
        a_loader(total_batch_size=0)


def broken(index: int) -> int:
    if index == 2:
        raise DataError("image id 2: says why")
    return index


def clumsy(index: int) -> int:
    raise ZeroDivisionError("a bug")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_users_mistakes_arrive_unchanged_bugs_with_a_traceback(num_workers: int):
    loader = Loader(Samples(MapDataset(range(4), broken)), batch_size=1, num_workers=num_workers)
    batches = iter(loader)
    assert [next(batches), next(batches)] == [[0], [1]]
    with pytest.raises(DataError) as caught:
        next(batches)
    assert str(caught.value) == "image id 2: says why"
    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(Loader(Samples(MapDataset(range(4), clumsy)), num_workers=num_workers))


def long(index: int) -> str:
    return str(index) * 500_000  # more than a pipe holds


def test_workers_end_when_their_process_is_killed():
    here, there = multiprocessing.Pipe(duplex=False)  # `there` is open as long as one of them lives

    def read() -> None:
        torch.set_num_threads(1)
        loader = iter(Loader(Samples(MapDataset(range(9), long)), batch_size=1, num_workers=1))
        next(loader)
        there.send("reads")
        time.sleep(60)

    process = multiprocessing.get_context("fork").Process(target=read)
    process.start()
    there.close()
    assert here.recv() == "reads"
    process.kill()
    process.join()
    assert here.poll(30)
    with pytest.raises(EOFError):
        here.recv()


def test_a_repeat_factor_stream_can_be_resumed():
    factors = torch.tensor([1.0, 2.5, 1.2, 3.0])

    def loader():
        sampler = RepeatFactorTrainingSampler(factors, seed=3)
        records = [{"i": i} for i in range(4)]
        return TrainLoader(records, sampler=sampler, total_batch_size=3, seed=3)

    whole = list(islice(loader(), 20))
    rest = loader()
    rest.seek(12)
    assert list(islice(rest, 8)) == whole[12:]
