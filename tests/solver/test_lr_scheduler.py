import math

import pytest
import torch
from torch import nn

from segdet.solver import (
    CosineParamScheduler,
    LRMultiplier,
    MultiStepParamScheduler,
    SolverConfig,
    WarmupParamScheduler,
)


def optimizer_of(*lrs: float) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs])


def rates(solver: SolverConfig, iterations: int) -> list[float]:
    optimizer = optimizer_of(solver.base_lr)
    scheduler = solver.build_lr_scheduler(optimizer)
    out = []
    for _ in range(iterations):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return out


def test_golden_table_of_the_1x_recipe():
    # specs/training.md: detectron2's own values.
    recipe = SolverConfig(base_lr=0.02, max_iter=90_000, steps=(60_000, 80_000))
    lr = rates(recipe, 90_000)
    golden = {
        0: 2e-5,
        1: 3.998e-5,
        500: 0.01001,
        999: 0.01998002,
        1000: 0.02,
        59_999: 0.02,
        60_000: 0.002,
        79_999: 0.002,
        80_000: 0.0002,
        89_999: 0.0002,
    }
    assert {it: lr[it] for it in golden} == pytest.approx(golden, rel=1e-9)


@pytest.mark.parametrize("rescale", [False, True])
def test_cosine_by_its_formula(rescale):
    solver = SolverConfig(
        lr_scheduler_name="WarmupCosineLR",
        base_lr=0.1,
        base_lr_end=0.01,
        max_iter=1000,
        warmup_iters=100,
        warmup_factor=0.1,
        rescale_interval=rescale,
    )

    def cosine(where: float) -> float:
        return 0.01 + 0.09 * (1 + math.cos(math.pi * where)) / 2

    top = cosine(0.0 if rescale else 0.1)
    warm = [0.01 + (top - 0.01) * it / 100 for it in range(100)]
    main = [cosine((it - 100) / 900 if rescale else it / 1000) for it in range(100, 1000)]
    assert rates(solver, 1000) == pytest.approx(warm + main, rel=1e-9)


@pytest.mark.parametrize("max_iter", [40, 999, 1000])
def test_fixed_gamma_cuts_the_run_into_equal_parts(max_iter):
    solver = SolverConfig(
        lr_scheduler_name="WarmupStepWithFixedGammaLR",
        base_lr=1.0,
        gamma=0.5,
        num_decays=3,
        max_iter=max_iter,
        warmup_iters=0,
    )
    expected = [0.5 ** (it * 4 // max_iter) for it in range(max_iter)]
    assert rates(solver, max_iter) == pytest.approx(expected)


@pytest.mark.parametrize("max_iter", [7, 49, 1000, 90_000, 3_000_017])
def test_a_step_takes_effect_at_its_own_iteration(max_iter):
    for step in {1, max_iter // 3, max_iter // 2, max_iter - 1}:
        schedule = MultiStepParamScheduler([1.0, 0.1], max_iter, [step])
        assert schedule((step - 1) / max_iter) == 1.0
        assert schedule(step / max_iter) == 0.1


def test_constant_warm_up():
    schedule = WarmupParamScheduler(CosineParamScheduler(1.0, 1.0), 0.25, 0.5, "constant")
    assert [schedule(w) for w in (0.0, 0.49, 0.5, 1.0)] == [0.25, 0.25, 1.0, 1.0]


def test_warm_up_longer_than_the_run_is_cut_to_it():
    lr = rates(SolverConfig(base_lr=1.0, max_iter=10, steps=(), warmup_factor=0.0), 10)
    assert lr == pytest.approx([it / 10 for it in range(10)])


def test_steps_beyond_the_run_are_ignored_with_a_warning(caplog):
    solver = SolverConfig(base_lr=1.0, max_iter=10, steps=(5, 30), warmup_iters=0)
    assert rates(solver, 10) == pytest.approx([1.0] * 5 + [0.1] * 5)
    assert "STEPS beyond SOLVER.MAX_ITER = 10 are ignored: [30]" in caplog.text


def test_multi_step_needs_one_value_more_than_milestones():
    with pytest.raises(ValueError, match="1 milestones need 2 values, got 1"):
        MultiStepParamScheduler([1.0], 10, [5])


def test_every_group_keeps_its_own_base_rate():
    optimizer = optimizer_of(1.0, 10.0)
    LRMultiplier(optimizer, lambda where: 0.5, max_iter=10)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 5.0]


def test_state_continues_the_schedule_with_the_old_base_rate():
    schedule = MultiStepParamScheduler([1.0, 0.1], 10, [4])
    optimizer = optimizer_of(2.0)
    scheduler = LRMultiplier(optimizer, schedule, max_iter=10)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    state = scheduler.state_dict()
    assert state == {"base_lrs": [2.0], "last_epoch": 3}

    optimizer = optimizer_of(7.0)
    resumed = LRMultiplier(optimizer, schedule, max_iter=10)
    resumed.load_state_dict(state)
    optimizer.step()
    resumed.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2)
