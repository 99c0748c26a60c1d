import random

import numpy as np
import torch

from segdet.utils.collect_env import collect_env_info
from segdet.utils.env import seed_all_rng


def draws(seed: int | None) -> tuple[float, float, float]:
    seed_all_rng(seed)
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_a_seed_fixes_every_generator():
    first, again, other = draws(2**40 + 7), draws(2**40 + 7), draws(8)
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_without_a_seed_every_call_differs():
    assert draws(None) != draws(None)


def test_the_report_names_what_matters():
    lines = collect_env_info().splitlines()
    found = {line.split("  ")[0].strip() for line in lines}
    assert {"segdet", "python", "torch", "torchvision", "compiled ops"} <= found
    assert any(torch.__version__ in line for line in lines)
