import math
from pathlib import Path

import pytest
import torch
from torch import nn

from segdet.checkpoint.reading import read_checkpoint
from segdet.engine import AMPTrainer, SimpleTrainer
from segdet.engine.nonfinite import ADVICE, NonFinitePolicy, Snapshot
from segdet.errors import MemoryLimitError, NonFiniteError


class Net(nn.Module):
    """Bad at the iterations in `bad`: the loss, or the gradient alone."""

    def __init__(self, bad: dict[int, str]) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(2, 2), nn.BatchNorm1d(2)
        self.bad = bad

    def forward(self, batch: list[dict]) -> dict:
        x = torch.stack([one["x"] for one in batch])
        kind = self.bad.get(batch[0]["image_id"])
        if kind == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")
        if kind == "refusal":
            self.norm(x * math.nan)
            raise FloatingPointError("the RPN predicts NaN")
        if kind == "loss":
            x = x * math.nan
        loss = self.norm(self.linear(x)).square().mean()
        if kind == "gradient":  # 0 / 0 in the derivative of the root
            loss = loss + (self.linear.weight.sum() * 0).sqrt()
        return {"loss_a": loss, "loss_b": loss * 0.5}


class Stream:
    def seek(self, batch_index: int) -> None:
        self.start = batch_index

    def __iter__(self):
        k = self.start
        while True:
            x = torch.arange(4.0).reshape(2, 2).fmod(k + 2)
            yield [{"x": row, "image": torch.zeros(3, 4, 5), "image_id": k} for row in x]
            k += 1


def train(folder: Path, policy: str, bad: dict[int, str], stop: int = 6, roll_back=lambda: True):
    torch.manual_seed(0)
    model = Net(bad)
    trainer = SimpleTrainer(model, Stream(), torch.optim.SGD(model.parameters(), lr=0.1), seed=0)
    trainer.on_nonfinite = NonFinitePolicy(
        policy,
        model=model,
        folder=folder,
        context=lambda: {"config": "", "seed": 0},
        roll_back=roll_back,
    )
    trainer.train(0, stop)
    return trainer


@pytest.mark.parametrize("kind, what", [("loss", "the loss"), ("gradient", "a gradient")])
def test_the_run_stops_and_leaves_a_dump(tmp_path, kind, what):
    with pytest.raises(NonFiniteError, match=rf"iteration 3: {what} is not finite: .*`segdet re"):
        train(tmp_path, "stop", {3: kind})
    dump = read_checkpoint(tmp_path / "nonfinite_0000003_0.pth")
    assert (dump["iteration"], dump["rank"], dump["world_size"]) == (3, 0, 1)
    assert dump["images"] == ["3", "3"]
    assert math.isnan(dump["losses"]["loss_a"]) == (kind == "loss")
    before = train(tmp_path, "stop", {}, stop=3).model.state_dict()
    assert before.keys() == dump["model"].keys()
    assert all(torch.equal(dump["model"][name], before[name]) for name in before)


@pytest.mark.parametrize("kind", ["loss", "gradient", "refusal"])
def test_a_skipped_step_changes_nothing(tmp_path, kind, caplog):
    trainer = train(tmp_path, "skip", {5: kind})
    expected = train(tmp_path, "skip", {}, stop=5).model.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in trainer.model.state_dict().items())
    assert "iteration 5" in caplog.text and "left out" in caplog.text
    assert trainer.storage.latest()["total_loss"][1] == 4


def test_skipping_ends_where_it_does_not_help(tmp_path):
    with pytest.raises(NonFiniteError, match=r"iteration 12: .*; so were 10 before"):
        train(tmp_path, "skip", dict.fromkeys(range(2, 40), "loss"), stop=40)
    assert len(list(tmp_path.glob("nonfinite_*"))) == 5  # the disk is not filled with dumps


def test_rolling_back_takes_what_it_is_given_or_stops(tmp_path):
    calls = []
    train(tmp_path, "rollback", {3: "loss"}, roll_back=lambda: not calls.append(1))
    assert calls == [1]
    with pytest.raises(NonFiniteError, match=r"no checkpoint to roll back to\. " + ADVICE[:8]):
        train(tmp_path, "rollback", {3: "loss"}, roll_back=lambda: False)


def test_a_batch_that_does_not_fit_is_named(tmp_path):
    with pytest.raises(MemoryLimitError) as error:
        train(tmp_path, "skip", {2: "memory"})
    message = str(error.value)
    assert "iteration 2: out of memory with the batch 2 (5 x 4); 2 (5 x 4) (CUDA out" in message
    assert "SOLVER.IMS_PER_BATCH" in message and "\n" not in message


def test_an_allocation_that_fails_on_the_cpu_is_one_too(tmp_path):
    class Huge(nn.Linear):
        def forward(self, batch):
            return self.weight.new_empty(2**45).sum()

    model = Huge(2, 2)
    with pytest.raises(MemoryLimitError, match="iteration 0: out of memory"):
        SimpleTrainer(model, [0], torch.optim.SGD(model.parameters(), lr=0.1)).train(0, 1)


def test_the_scaler_deals_with_overflow_alone(tmp_path):
    class Half(nn.Linear):
        def forward(self, batch):
            return super().forward(torch.ones(1, 2)).float().square().mean()

    model = Half(2, 2)
    before = model.weight.detach().clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    trainer = AMPTrainer(model, [0], optimizer, precision=torch.float16, grad_scaler=scaler)
    trainer.train(0, 1)
    assert torch.equal(model.weight, before)
    trainer.train(1, 40)
    assert scaler.get_scale() < 2.0**40
    assert not torch.equal(model.weight, before) and model.weight.isfinite().all()


def test_a_snapshot_keeps_what_was():
    model, snapshot = Net({}), Snapshot()
    before = snapshot.of(model)
    model.norm(torch.ones(2, 2))
    assert before["norm.running_mean"].tolist() == [0, 0]
    assert before["norm.num_batches_tracked"].item() == 0
    again = snapshot.of(model)
    assert again["norm.running_mean"].tolist() == model.norm.running_mean.tolist() != [0, 0]
