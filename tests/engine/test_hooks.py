import contextlib
import io
import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from segdet.checkpoint import DetectionCheckpointer
from segdet.engine import HookBase, SimpleTrainer, hooks
from segdet.solver import LRMultiplier, MultiStepParamScheduler
from segdet.utils.events import EventWriter, JSONWriter


class Net(nn.Linear):
    """One loss of nothing but its weights."""

    def forward(self, batch) -> dict:
        return {"loss": self.weight.square().sum()}


def trainer_with(*given: HookBase) -> SimpleTrainer:
    model = Net(2, 1)
    trainer = SimpleTrainer(model, [None], torch.optim.SGD(model.parameters(), lr=0.1))
    trainer.register_hooks(given)
    return trainer


class Fail(HookBase):
    """Ends the run at an iteration."""

    def __init__(self, at: int) -> None:
        self.at = at

    def after_step(self) -> None:
        if self.trainer.iter == self.at:
            raise KeyError("stop")


def test_callbacks_get_the_trainer():
    calls = []
    named = {
        name: lambda trainer, name=name: calls.append((name, trainer.iter))
        for name in ("before_train", "after_train", "before_step", "after_step")
    }
    trainer_with(hooks.CallbackHook(**named), hooks.CallbackHook()).train(0, 1)
    assert calls == [("before_train", 0), ("before_step", 0), ("after_step", 0), ("after_train", 1)]


def test_timer_skips_the_warm_up_and_logs_the_speed(caplog):
    caplog.set_level("INFO")
    trainer = trainer_with(hooks.IterationTimer(warmup_iter=2))
    trainer.train(5, 10)
    assert [it for _, it in trainer.storage.history("time").values()] == [7, 8, 9]
    assert re.search(r"speed: 3 iterations in 0:00:00 \(0\.\d{4} s / it\)", caplog.text)


def test_timer_says_nothing_of_a_run_that_failed_at_once(caplog):
    with pytest.raises(KeyError):
        trainer_with(hooks.IterationTimer(), Fail(0)).train(0, 10)
    assert "speed" not in caplog.text


def schedule(optimizer: torch.optim.Optimizer) -> LRMultiplier:
    return LRMultiplier(optimizer, MultiStepParamScheduler([1.0, 0.1], 4, [2]), max_iter=4)


def test_lr_is_stored_before_the_schedule_steps():
    trainer = trainer_with(hooks.LRScheduler())
    trainer.scheduler = schedule(trainer.optimizer)
    trainer.train(0, 4)
    rates = [value for value, _ in trainer.storage.history("lr").values()]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01])


def test_lr_is_that_of_the_group_with_the_most_parameters():
    few, many = nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    optimizer = torch.optim.SGD(
        [{"params": few.parameters(), "lr": 1.0}, {"params": many.parameters(), "lr": 2.0}]
    )
    trainer = trainer_with(hooks.LRScheduler(optimizer, schedule(optimizer)))
    optimizer.step()  # the trainer has one of its own
    trainer.train(0, 1)
    assert trainer.storage.latest()["lr"] == (2.0, 0)


def test_a_resumed_schedule_goes_on():
    def trainer() -> SimpleTrainer:
        trainer = trainer_with(hooks.LRScheduler())
        trainer.scheduler = schedule(trainer.optimizer)
        return trainer

    first = trainer()
    first.train(0, 2)
    second = trainer()
    second.load_state_dict(first.state_dict())
    second.train(2, 4)
    rates = [value for value, _ in second.storage.history("lr").values()]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01])  # those of the first run, too


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"checkpoints.json"}


def test_checkpoints_at_the_period_and_at_the_end(tmp_path):
    trainer = trainer_with()
    checkpointer = DetectionCheckpointer(trainer.model, str(tmp_path), trainer=trainer)
    trainer.register_hooks([hooks.PeriodicCheckpointer(checkpointer, 2)])
    trainer.train(0, 3)
    assert names(tmp_path) == {"model_0000001.pth", "model_final.pth", "last_checkpoint"}
    saved = torch.load(tmp_path / "model_0000001.pth")
    assert saved["iteration"] == saved["trainer"]["iteration"] == 1


def test_a_run_cut_before_its_final_checkpoint_saves_it_when_resumed(tmp_path):
    def run(start: int, *more: HookBase) -> None:
        trainer = trainer_with()
        checkpointer = DetectionCheckpointer(trainer.model, tmp_path, trainer=trainer)
        trainer.register_hooks([hooks.PeriodicCheckpointer(checkpointer, 3), *more])
        checkpointer.resume_or_load("")
        trainer.train(start, 3)

    run(0)
    (tmp_path / "model_final.pth").unlink()
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    run(3)
    final, last = (torch.load(tmp_path / f"model_{n}.pth") for n in ("final", "0000002"))
    assert final["iteration"] == 2 and final["model"]["weight"].equal(last["model"]["weight"])
    saved = (tmp_path / "model_final.pth").stat().st_mtime_ns
    run(3)
    assert (tmp_path / "model_final.pth").stat().st_mtime_ns == saved


def test_a_run_that_fails_leaves_no_final_checkpoint(tmp_path):
    trainer = trainer_with()
    checkpointer = DetectionCheckpointer(trainer.model, str(tmp_path))
    trainer.register_hooks([Fail(2), hooks.PeriodicCheckpointer(checkpointer, 2)])
    with pytest.raises(KeyError):
        trainer.train(0, 3)
    assert names(tmp_path) == {"model_0000001.pth", "last_checkpoint"}


@pytest.mark.parametrize("period, expected", [(0, [6]), (2, [2, 4, 6]), (4, [4, 6]), (9, [6])])
def test_evaluates_at_the_period_and_once_at_the_end(period, expected):
    done = []

    def evaluate() -> dict:
        done.append(trainer.iter if trainer.iter == trainer.max_iter else trainer.iter + 1)
        return {"bbox": {"AP": 40.0, "APs": math.nan}}

    trainer = trainer_with(hooks.EvalHook(period, evaluate))
    trainer.train(0, 6)
    assert done == expected
    latest = trainer.storage.latest()
    assert latest["bbox/AP"] == (40.0, 6)
    assert math.isnan(latest["bbox/APs"][0])


def test_a_run_that_fails_is_not_evaluated_at_its_end():
    trainer = trainer_with(hooks.EvalHook(0, lambda: pytest.fail("evaluated")), Fail(2))
    with pytest.raises(KeyError):
        trainer.train(0, 3)


def test_results_must_be_numbers():
    hook = hooks.EvalHook(1, lambda: {"bbox": {"AP": "high"}})
    with pytest.raises(ValueError, match="nested dict of floats, bbox/AP is 'high'"):
        trainer_with(hook).train(0, 1)


class Counting(EventWriter):
    """Notes when it is called."""

    def __init__(self, calls: list) -> None:
        self.calls = calls

    def write(self) -> None:
        self.calls.append("write")

    def close(self) -> None:
        self.calls.append("close")


def test_writers_write_at_the_period_at_the_end_and_close():
    calls = []
    trainer_with(hooks.PeriodicWriter([Counting(calls)], period=2)).train(0, 5)
    assert calls == ["write", "write", "write", "write", "close"]


def test_writers_see_what_was_stored_before_a_failure_and_after_the_end(tmp_path):
    def lines(*given: HookBase) -> list[dict]:
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        trainer = trainer_with(*given, hooks.PeriodicWriter([JSONWriter(file)], period=20))
        with contextlib.suppress(KeyError):
            trainer.train(0, 3)
        return [json.loads(line) for line in file.read_text().splitlines()]

    failed = lines(Fail(1))
    assert [line["iteration"] for line in failed] == [1]
    finished = lines(hooks.EvalHook(0, lambda: {"bbox": {"AP": 1.0}}))
    assert [line["iteration"] for line in finished] == [2, 3]
    assert finished[1] == {"iteration": 3, "bbox/AP": 1.0}


def best(folder: Path, values: list[float], state: dict | None = None, mode: str = "max"):
    """Train with these values of a metric; gives the hook and the saved iterations."""
    saved = []

    class Checkpointer:
        def save(self, name: str, *, tag: bool, iteration: int) -> None:
            assert not tag  # a resumed run must not fall back to it
            saved.append((name, iteration))

    results = iter(values)
    evaluate = hooks.EvalHook(1, lambda: {"bbox": {"AP": next(results)}})
    hook = hooks.BestCheckpointer(1, Checkpointer(), "bbox/AP", mode=mode)
    if state is not None:
        hook.load_state_dict(state)
    trainer_with(evaluate, hook).train(0, len(values))
    return hook, saved


class Trace(HookBase):
    """Where a run is cut: at the first `after_step` behind iteration `at`."""

    def __init__(self, at: int) -> None:
        self.at = at

    def after_step(self) -> None:
        if self.trainer.iter == self.at:
            raise KeyError("cut")


@pytest.mark.parametrize("place", [1, 2, 3])
def test_a_run_cut_between_hooks_makes_up_for_what_is_missing(tmp_path, place):
    """Cut behind the checkpointer, the evaluation, the writer: metrics.json is the same."""

    def run(folder: Path, cut: int | None, start: int = 0) -> None:
        folder.mkdir(exist_ok=True)
        evaluate = hooks.EvalHook(2, lambda: {"bbox": {"AP": float(trainer.iter)}})
        writer = hooks.PeriodicWriter([JSONWriter(folder / "metrics.json")], 2)
        trainer = trainer_with()
        checkpointer = DetectionCheckpointer(trainer.model, folder, trainer=trainer)
        given = [hooks.PeriodicCheckpointer(checkpointer, 2), evaluate, writer]
        given.insert(place, Trace(3) if cut else None)
        trainer.register_hooks(given)
        if start:
            checkpointer.resume_or_load("")
        trainer.train(start, 6)

    torch.manual_seed(1)
    run(tmp_path / "whole", None)
    torch.manual_seed(1)
    with pytest.raises(KeyError, match="cut"):
        run(tmp_path / "cut", 3)
    run(tmp_path / "cut", None, start=4)
    whole, cut = (
        [json.loads(line) for line in (tmp_path / name / "metrics.json").read_text().splitlines()]
        for name in ("whole", "cut")
    )
    for line in [*whole, *cut]:
        line.pop("data_time", None), line.pop("rank_data_time", None)
    assert [line["iteration"] for line in whole] == [1, 3, 5, 6]
    assert whole == cut


def test_an_evaluation_that_a_checkpoint_knows_of_is_not_made_again():
    done = []
    hook = hooks.EvalHook(2, lambda: done.append(1))
    trainer = trainer_with(hook)
    trainer.train(0, 3)
    assert len(done) == 2
    again = trainer_with(hooks.EvalHook(2, lambda: done.append(2)))
    again.load_state_dict({**trainer.state_dict(), "iteration": 1})
    again.train(2, 3)
    assert done == [1, 1, 2]  # the final one


def test_the_best_checkpoint_is_saved_whenever_it_improves(tmp_path):
    values = [1.0, math.nan, 3.0, 2.0, 4.0]
    hook, saved = best(tmp_path, values)
    # The last evaluation is stored at the iteration after the last.
    assert saved == [("model_best", 0), ("model_best", 2), ("model_best", 5)]
    _, saved = best(tmp_path, values, mode="min")
    assert saved == [("model_best", 0)]
    _, saved = best(tmp_path, [3.5, 4.5], state=hook.state_dict())
    assert saved == [("model_best", 2)]


def test_a_metric_that_never_comes_is_warned_of(caplog):
    hook = hooks.BestCheckpointer(1, DetectionCheckpointer(nn.Linear(1, 1)), "segm/AP")
    trainer_with(hook).train(0, 2)
    assert "no metric segm/AP has been stored" in caplog.text
    with pytest.raises(ValueError, match='mode must be "max" or "min", is "up"'):
        hooks.BestCheckpointer(1, DetectionCheckpointer(nn.Linear(1, 1)), "x", mode="up")


def test_progress_bar_counts_on_from_where_a_run_resumes(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr("sys.stderr", terminal)
    trainer_with(hooks.ProgressBar()).train(5, 8)
    last = terminal.getvalue().split("\r")[-1]
    assert "8/8" in last and "loss" in last


def test_progress_bar_of_a_run_that_never_began():
    class Refuse(HookBase):
        def before_train(self) -> None:
            raise KeyError("no")

    with pytest.raises(KeyError):
        trainer_with(Refuse(), hooks.ProgressBar()).train(0, 1)
