from __future__ import annotations

import itertools
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch.multiprocessing

from segdet.data.common import (
    AspectRatioGroupedDataset,
    DatasetFromList,
    MapDataset,
    ToIterableDataset,
)
from segdet.errors import DataError

RECORDS = [{"id": i, "values": list(range(i))} for i in range(20)]


@pytest.mark.parametrize("serialize", [True, False])
def test_gives_copies_of_the_records(serialize: bool):
    dataset = DatasetFromList(RECORDS, serialize=serialize)
    assert len(dataset) == 20 and [dataset[i] for i in range(20)] == RECORDS
    assert dataset[-1] == RECORDS[-1] and dataset[-20] == RECORDS[0]
    dataset[3]["values"].append(9)
    assert dataset[3] == RECORDS[3]
    for index in (20, -21):
        with pytest.raises(IndexError, match=f"record {index} of 20"):
            dataset[index]


def test_may_give_the_records_themselves():
    assert DatasetFromList(RECORDS, copy=False, serialize=False)[3] is RECORDS[3]


def test_empty():
    assert len(DatasetFromList([])) == 0
    with pytest.raises(IndexError):
        DatasetFromList([])[0]


def _private_megabytes() -> float:
    text = Path("/proc/self/smaps_rollup").read_text()
    return sum(int(row.split()[1]) for row in text.splitlines() if "Private_Dirty" in row) / 1024


def _read_all(dataset: DatasetFromList, answers) -> None:
    before = _private_megabytes()
    for i in range(len(dataset)):
        dataset[i]
    answers.put((_private_megabytes() - before, dataset._buffer.is_shared()))


def _measure(context, size: int) -> tuple[float, bool]:
    dataset = DatasetFromList([{"polygon": [float(i)] * 500} for i in range(size)])
    answers = context.Queue()
    worker = context.Process(target=_read_all, args=(dataset, answers))
    worker.start()
    answer = answers.get(timeout=60)
    worker.join()
    return answer


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux' /proc")
def test_forked_workers_add_no_memory():
    grown, _ = _measure(multiprocessing.get_context("fork"), 10_000)  # 45 MB of records
    assert grown < 10


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux' /proc")
def test_spawned_workers_share_the_records():
    grown, is_shared = _measure(torch.multiprocessing.get_context("spawn"), 10_000)
    assert is_shared and grown < 10


def test_map_dataset_takes_another_record_for_none():
    np.random.seed(0)
    dataset = MapDataset(range(10), lambda i: i if i % 2 else None)
    assert len(dataset) == 10 and dataset[3] == 3
    assert {dataset[4] for _ in range(100)} == {1, 3, 5, 7, 9}


def test_map_dataset_gives_up_when_all_are_none():
    with pytest.raises(DataError, match="returned None for 1000 records in a row"):
        MapDataset(range(10), lambda i: None)[0]


def test_batches_of_one_orientation():
    sizes = [(4, 3), (3, 4), (5, 3), (3, 3), (9, 1)]
    samples = [{"id": i, "width": w, "height": h} for i, (w, h) in enumerate(sizes)]
    batches = AspectRatioGroupedDataset(samples, 2)
    assert [[one["id"] for one in batch] for batch in batches] == [[0, 2], [1, 3]]


@pytest.mark.parametrize(
    "shard, expected", [(True, [[10, 8, 6], [9, 7]]), (False, [[10, 9, 8, 7, 6]] * 2)]
)
def test_a_sampled_data_set_is_shared_out(monkeypatch, shard, expected):
    dataset = ToIterableDataset(list(range(11)), [10, 9, 8, 7, 6], shard_sampler=shard)
    assert list(dataset) == [10, 9, 8, 7, 6]
    monkeypatch.setattr("segdet.utils.comm.get_world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr("segdet.utils.comm.get_rank", lambda rank=rank: rank)
        assert list(dataset) == expected[rank]
    monkeypatch.undo()
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2)
    assert sorted(loader) == sorted(itertools.chain.from_iterable(expected))
