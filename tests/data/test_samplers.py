from __future__ import annotations

from collections import Counter
from itertools import chain, islice

import pytest
import torch

from segdet.data.samplers import InferenceSampler, RepeatFactorTrainingSampler, TrainingSampler
from segdet.errors import DataError


def test_each_epoch_is_another_permutation():
    stream = list(islice(TrainingSampler(50, seed=1), 150))
    epochs = [stream[:50], stream[50:100], stream[100:]]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_order_is_a_function_of_the_seed():
    first = list(islice(TrainingSampler(50, seed=1), 70))
    torch.manual_seed(9)
    assert list(islice(TrainingSampler(50, seed=1), 70)) == first
    assert list(islice(TrainingSampler(50, seed=2), 70)) != first


def test_without_shuffling_and_without_seed():
    assert list(islice(TrainingSampler(3, shuffle=False), 7)) == [0, 1, 2, 0, 1, 2, 0]
    assert TrainingSampler(3).seed != TrainingSampler(3).seed


def test_empty_data_set_is_refused():
    with pytest.raises(DataError, match="the data set is empty"):
        TrainingSampler(0)
    with pytest.raises(DataError, match="the data set is empty"):
        RepeatFactorTrainingSampler(torch.ones(0))


def test_repeat_factors_follow_the_rarest_class():
    images = [[0], [0], [0], [0, 1], []]
    records = [{"annotations": [{"category_id": c} for c in image]} for image in images]
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
    # Class 1 is in 1 of 5 images: root of 0.8 / 0.2. Class 0 in 4 of 5: root of 0.8 / 0.8.
    assert factors(records, 0.8).tolist() == [1, 1, 1, 2, 1]
    assert factors(records, 0.8, sqrt=False).tolist() == [1, 1, 1, 4, 1]


def test_repeats_on_average_by_the_factor():
    sampler = RepeatFactorTrainingSampler(torch.tensor([1.0, 2.0, 1.25]), seed=0)
    epochs = [sampler.indices_of(epoch).tolist() for epoch in range(400)]
    counts = Counter(index for epoch in epochs for index in epoch)
    assert counts[0] == 400 and counts[1] == 800 and 470 < counts[2] < 530
    assert list(islice(sampler, len(epochs[0]))) == epochs[0]
    ordered = RepeatFactorTrainingSampler(torch.tensor([1.0, 2.0]), shuffle=False, seed=0)
    assert list(islice(ordered, 6)) == [0, 1, 1, 0, 1, 1]


@pytest.mark.parametrize("size", [0, 1, 2, 7, 8])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_inference_shares_are_contiguous_and_complete(monkeypatch, size: int, world_size: int):
    shares = []
    for rank in range(world_size):
        monkeypatch.setattr("segdet.utils.comm.get_rank", lambda rank=rank: rank)
        monkeypatch.setattr("segdet.utils.comm.get_world_size", lambda: world_size)
        sampler = InferenceSampler(size)
        shares.append(list(sampler))
        assert len(sampler) == len(shares[-1])
    assert list(chain(*shares)) == list(range(size))
    lengths = [len(share) for share in shares]
    assert lengths == sorted(lengths, reverse=True) and lengths[0] - lengths[-1] <= 1
