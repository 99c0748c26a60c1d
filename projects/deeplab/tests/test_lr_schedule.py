import pytest
import torch

from segdet.config import get_cfg
from segdet.errors import ConfigError
from segdet.solver import build_lr_scheduler


def rates(**solver: object) -> list[float]:
    """Of a run of 20 iterations at base rate 1 with 4 of warm-up, and one after it."""
    cfg = get_cfg()
    settings = {"MAX_ITER": 20, "WARMUP_ITERS": 4, "WARMUP_FACTOR": 0.1, "BASE_LR": 1.0} | solver
    cfg.merge_from_list(["SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR"])
    for key, value in settings.items():
        cfg.merge_from_list([f"SOLVER.{key}", value])
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = build_lr_scheduler(cfg, optimizer)
    found = []
    for _ in range(22):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


def test_the_warmup_multiplies_the_polynomial():
    found = rates()
    for i in range(20):
        warmup = min(0.1 * (1 - i / 4) + i / 4, 1)
        assert found[i] == pytest.approx(warmup * (1 - i / 20) ** 0.9), i
    assert found[20:] == [0, 0]
    assert rates(POLY_LR_POWER=2.0)[10] == pytest.approx(0.25)
    assert rates(WARMUP_METHOD="constant")[3] == pytest.approx(0.1 * (17 / 20) ** 0.9)


def test_the_ending_is_constant():
    found = rates(POLY_LR_CONSTANT_ENDING=0.3)
    assert found[0] == pytest.approx(0.1)  # the warm-up may be below it
    assert found[14] == pytest.approx(0.3**0.9)
    assert found[15:] == [0.3] * 7


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("POLY_LR_POWER", 0.0, "SOLVER.POLY_LR_POWER must be float > 0, is 0.0"),
        (
            "POLY_LR_CONSTANT_ENDING",
            1.5,
            r"CONSTANT_ENDING must be float in \[0, 1\], is 1.5",
        ),
    ],
)
def test_unusable_values_are_named(key, value, said):
    with pytest.raises(ConfigError, match=said):
        rates(**{key: value})
