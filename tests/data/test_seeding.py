import random

import numpy as np
import pytest
import torch

from segdet.data.seeding import generator_at, seeded


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_counters_decide_and_the_caller_is_left_alone():
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = draw()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    with seeded(5, 7):
        first = draw()
    assert draw() == expected
    with seeded(5, 7):
        assert draw() == first
    seen = {first}
    for counters in ((5, 8), (6, 7), (7, 5), (2**31, 7), (5, 2**40)):
        with seeded(*counters):
            seen.add(draw())
    assert len({one for values in seen for one in values}) == 18


def test_generators_are_restored_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(KeyError), seeded(1):
        torch.rand(3)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


def test_generator_at():
    one, same, other = generator_at(1, 2), generator_at(1, 2), generator_at(2, 1)
    values = [torch.rand(4, generator=g).tolist() for g in (one, same, other)]
    assert values[0] == values[1] != values[2]
