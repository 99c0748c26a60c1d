import math
import weakref

import pytest
import torch
from torch import nn

from segdet.engine import AMPTrainer, HookBase, SimpleTrainer, TrainerBase
from segdet.engine.train_loop import _endless, seed_generators
from segdet.errors import DataError
from segdet.utils.events import EventStorage, get_event_storage


class Losses(dict):
    """As models return them: scalars, with measurements beside."""

    def __init__(self, terms: dict, metrics: dict) -> None:
        super().__init__(terms)
        self.metrics = metrics


class Noisy(nn.Module):
    """A loss that draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, batch: torch.Tensor) -> Losses:
        out = self.linear(batch + torch.randn_like(batch))
        return Losses(
            {"loss_a": out.square().mean(), "loss_b": 0.1 * out.abs().mean()},
            {"accuracy": 0.5, "num_fg": torch.tensor(3)},
        )


class Stream:
    """Batch k is a function of k; remembers where it was sent."""

    def __init__(self) -> None:
        self.start = 0

    def seek(self, batch_index: int) -> None:
        self.start = batch_index

    def __iter__(self):
        k = self.start
        while True:
            yield torch.full((2, 4), float(k))
            k += 1


def trainer_of(model: nn.Module, **options) -> SimpleTrainer:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return SimpleTrainer(model, Stream(), optimizer, **options)


class Recorder(HookBase):
    """Writes down its calls in a list shared by several."""

    def __init__(self, calls: list, name: str = "") -> None:
        self.calls, self.name = calls, name

    def before_train(self) -> None:
        self.calls.append(f"{self.name}before_train")

    def after_train(self) -> None:
        self.calls.append(f"{self.name}after_train {self.trainer.iter} {self.trainer.storage.iter}")

    def before_step(self) -> None:
        self.calls.append(f"{self.name}before_step {self.trainer.iter}")

    def after_backward(self) -> None:
        self.calls.append(f"{self.name}after_backward")

    def after_step(self) -> None:
        self.calls.append(f"{self.name}after_step {self.trainer.storage.iter}")


def test_hooks_are_called_in_order_around_each_iteration():
    calls: list[str] = []
    trainer = trainer_of(Noisy())
    trainer.register_hooks([Recorder(calls), None, Recorder(calls, "2:")])
    trainer.train(4, 6)
    one = [call for call in calls if not call.startswith("2:")]
    steps = [[f"before_step {i}", "after_backward", f"after_step {i}"] for i in (4, 5)]
    assert one == ["before_train", *steps[0], *steps[1], "after_train 6 6"]
    two = [call.removeprefix("2:") for call in calls if call.startswith("2:")]
    assert one == two
    assert calls[:2] == ["before_train", "2:before_train"]


def test_after_train_is_called_when_a_step_fails_and_sees_that_it_did():
    class Fails(TrainerBase):
        def run_step(self) -> None:
            raise KeyError(self.iter)

    calls: list[str] = []
    trainer = Fails()
    trainer.register_hooks([Recorder(calls)])
    with pytest.raises(KeyError):
        trainer.train(0, 1)
    assert calls == ["before_train", "before_step 0", "after_train 0 0"]


def test_a_finished_run_continues_with_nothing_to_do():
    calls: list[str] = []
    trainer = trainer_of(Noisy())
    trainer.register_hooks([Recorder(calls)])
    trainer.train(6, 6)
    assert calls == ["before_train", "after_train 6 6"]


def test_hooks_do_not_keep_the_trainer_alive():
    trainer = trainer_of(Noisy())
    trainer.register_hooks([Recorder([])])
    gone = weakref.ref(trainer)
    del trainer
    assert gone() is None


def test_losses_and_metrics_are_stored():
    model = Noisy()
    trainer = trainer_of(model)
    trainer.train(0, 3)
    latest = trainer.storage.latest()
    assert set(latest) == {
        "total_loss", "loss_a", "loss_b", "accuracy", "num_fg", "data_time", "rank_data_time",
    }  # fmt: skip
    value = {name: v for name, (v, _) in latest.items()}
    assert value["total_loss"] == pytest.approx(value["loss_a"] + value["loss_b"])
    assert (value["accuracy"], value["num_fg"]) == (0.5, 3.0)
    assert {it for _, it in latest.values()} == {2}


def test_a_step_is_gradient_descent_on_the_sum():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor(1.0))

        def forward(self, batch) -> dict:
            return {"loss_a": 2 * self.w, "loss_b": 3 * self.w}

    model = Two().eval()
    trainer = SimpleTrainer(model, [0], torch.optim.SGD(model.parameters(), lr=0.1))
    assert model.training
    trainer.train(0, 2)
    assert model.w.item() == pytest.approx(1 - 2 * 0.5, abs=1e-6)


def test_one_tensor_is_the_total_loss():
    class One(nn.Linear):
        def forward(self, batch) -> torch.Tensor:
            return super().forward(batch).sum()

    trainer = trainer_of(One(4, 1))
    trainer.train(0, 1)
    assert set(trainer.storage.latest()) == {"total_loss", "data_time", "rank_data_time"}


def test_a_bad_loss_stops_the_run_before_it_reaches_the_parameters():
    class Bad(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor(1.0))

        def forward(self, batch) -> dict:
            bad = math.nan if batch[0, 0] == 2 else 1.0
            return {"loss_cls": self.w * 0.25, "loss_box": self.w * bad}

    model = Bad()
    trainer = SimpleTrainer(model, Stream(), torch.optim.SGD(model.parameters(), lr=0.0))
    with pytest.raises(
        FloatingPointError, match=r"iteration 2: .* not finite: loss_cls = 0.25, loss_box = nan"
    ):
        trainer.train(0, 5)
    assert model.w.item() == 1.0


def test_refuses_a_model_in_evaluation_mode():
    model = Noisy()
    trainer = trainer_of(model)
    model.eval()
    with pytest.raises(RuntimeError, match=r"call model.train\(\) first"):
        trainer.train(0, 1)


def test_the_loader_continues_where_it_is_sought_or_begins_anew():
    batches = _endless(Stream(), 7)
    assert [next(batches)[0, 0].item() for _ in range(3)] == [7, 8, 9]
    finite = _endless(["a", "b"], 7)
    assert [next(finite) for _ in range(5)] == ["a", "b", "a", "b", "a"]
    with pytest.raises(DataError, match="gives no batch"):
        next(_endless([], 0))


class Trace(HookBase):
    """Every loss of the run."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def after_step(self) -> None:
        self.losses.append(self.trainer.storage.latest()["total_loss"][0])


def run(start: int, stop: int, state: dict | None = None, **options) -> tuple[list[float], dict]:
    torch.manual_seed(0)
    model = Noisy()
    trainer = trainer_of(model, **options)
    if state is not None:
        model.load_state_dict(state["model"])
        trainer.load_state_dict(state["trainer"])
        torch.manual_seed(12345)  # whatever happened before must not matter
        assert trainer.iter + 1 == start
    trace = Trace()
    trainer.register_hooks([trace])
    trainer.iter = start
    trainer.train(start, stop)
    trainer.iter = stop - 1  # as a checkpoint in the last after_step has it
    return trace.losses, {"model": model.state_dict(), "trainer": trainer.state_dict()}


def test_a_run_that_is_cut_and_resumed_has_the_same_losses():
    whole, _ = run(0, 8, seed=3)
    first, state = run(0, 5, seed=3)
    rest, _ = run(5, 8, state, seed=3)
    assert first + rest == whole


def test_noise_depends_on_seed_iteration_and_rank():
    def draws(seed: int, rank: int = 0) -> list[float]:
        out = []
        for iteration in range(3):
            seed_generators(seed, iteration, rank)
            out.append(torch.rand(()).item())
        return out

    assert draws(1) == draws(1)
    values = [*draws(1), *draws(2), *draws(1, rank=1)]
    assert len(set(values)) == len(values)


def test_without_a_seed_the_generators_are_left_alone():
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    seed_generators(None, 0, 0)
    assert torch.equal(torch.randn(3), expected)


class Stateful(HookBase):
    """A hook that counts."""

    def __init__(self) -> None:
        self.count = 0

    def after_step(self) -> None:
        self.count += 1

    def state_dict(self) -> dict:
        return {"count": self.count}

    def load_state_dict(self, state: dict) -> None:
        self.count = state["count"]


def test_hooks_keep_their_state_by_name(caplog):
    trainer = trainer_of(Noisy())
    trainer.register_hooks([Stateful(), Recorder([]), Stateful()])
    trainer.train(0, 3)
    state = trainer.state_dict()
    assert state["hooks"] == {"Stateful": {"count": 3}, "Stateful#2": {"count": 3}}

    again = trainer_of(Noisy())
    hook = Stateful()
    again.register_hooks([hook])
    again.load_state_dict(state)
    assert (hook.count, again.iter) == (3, 2)  # the last finished iteration
    assert "state of a hook Stateful#2, this run has none" in caplog.text


class Seen(nn.Linear):
    """Remembers the type that its product had."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        out = super().forward(batch)
        self.dtype = out.dtype
        return out.float().square().mean()


@pytest.mark.parametrize(
    "precision, expected", [(None, torch.bfloat16), (torch.float16, torch.float16)]
)
def test_amp_on_the_cpu(precision, expected):
    model = Seen(4, 1)
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    trainer = AMPTrainer(model, Stream(), optimizer, precision=precision)
    trainer.train(1, 9)  # float16's first scales overflow, and those steps are left out
    assert model.dtype == expected
    assert model.weight.dtype == torch.float32
    assert not torch.equal(model.weight, before)
    assert trainer.grad_scaler.is_enabled() == (expected == torch.float16)


def test_amp_keeps_the_scale_and_accepts_a_run_without_it():
    def amp() -> AMPTrainer:
        model = Seen(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        return AMPTrainer(model, Stream(), optimizer, precision=torch.float16)

    trainer = amp()
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    trainer.train(0, 1)
    again = amp()
    again.load_state_dict(trainer.state_dict())
    assert again.grad_scaler.get_scale() == 8.0
    plain = SimpleTrainer(again.model, Stream(), again.optimizer)
    again.load_state_dict(plain.state_dict())
    assert again.grad_scaler.get_scale() == 8.0


def test_a_trainer_that_another_one_steps_stores_into_the_run_around_it():
    inner = trainer_of(Noisy())
    with EventStorage(9):
        inner.iter = 9
        inner.run_step()
        assert get_event_storage().latest()["loss_a"][1] == 9


def test_metrics_may_be_stored_at_a_period():
    trainer = trainer_of(Noisy(), gather_metric_period=3)
    trainer.train(0, 7)
    assert [it for _, it in trainer.storage.history("total_loss").values()] == [2, 5]


@pytest.mark.parametrize("early, gradient", [(False, 7.0), (True, 0.0)])
def test_gradients_may_be_zeroed_before_the_forward(early, gradient):
    seen = []

    class Looks(nn.Linear):
        def forward(self, batch):
            seen.append(0.0 if self.weight.grad is None else self.weight.grad.sum().item())
            return {"loss": super().forward(batch).sum()}

    model = Looks(4, 1)
    model.weight.grad = torch.full((1, 4), 7 / 4)
    trainer_of(model, zero_grad_before_forward=early).train(0, 1)
    assert seen == [gradient]
    assert model.weight.grad.tolist() == [[0, 0, 0, 0]]  # of batch 0 alone


def test_the_scale_of_gradients_may_be_stored():
    model = Noisy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    trainer = AMPTrainer(model, Stream(), optimizer, log_grad_scaler=True)
    trainer.train(0, 1)
    assert trainer.storage.latest()["grad_scaler"] == (1.0, 0)  # bfloat16 needs none
