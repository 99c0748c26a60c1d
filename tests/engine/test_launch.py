import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from segdet.engine import SimpleTrainer, create_ddp_model, launch
from segdet.errors import ConfigError, DataError
from segdet.utils import comm

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests gloo, which CUDA replaces")


class Net(nn.Module):
    """One weight and one loss, the weighted mean of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(float(comm.get_rank())))
        self.drawn = nn.Buffer(torch.full((2, 3), float(comm.get_rank())).T)

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.w * batch.mean()}


def train_two_steps(folder: str) -> None:
    rank = comm.get_rank()
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = [torch.full((2,), 1.0 + rank), torch.full((2,), 3.0 + rank)]
    trainer = SimpleTrainer(create_ddp_model(model), loader, optimizer, seed=0)
    trainer.train(0, 2)
    other = Net()
    create_ddp_model(other, broadcast_buffers=False)
    result = {
        "drawn": [model.drawn, other.drawn],
        "w": model.w.item(),
        "loss": trainer.storage.latest()["loss"][0],
        "rank": rank,
        "local": (comm.get_local_rank(), comm.get_local_size()),
        "noise": torch.rand(()).item(),
    }
    torch.save(result, Path(folder) / f"{rank}.pth")


def test_two_processes_train_as_one(tmp_path):
    assert launch(train_two_steps, 2, args=(str(tmp_path),)) is None
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1))
    # Both begin with rank 0's weight, 0; gradients are the means 1.5 and 3.5.
    assert first["w"] == second["w"] == pytest.approx(-0.5)
    assert first["loss"] == second["loss"] == pytest.approx(-0.15 * 3.5)  # mean over the ranks
    assert not any(buffer.any() for buffer in first["drawn"] + second["drawn"])  # rank 0's
    assert (first["local"], second["local"]) == ((0, 2), (1, 2))
    assert first["noise"] != second["noise"]


def users_mistake() -> None:
    raise DataError("a.jpg: cannot be read")


def test_a_users_mistake_in_a_process_arrives_as_it_was():
    with pytest.raises(DataError, match=r"^a.jpg: cannot be read$"):
        launch(users_mistake, 2)


@pytest.mark.parametrize("processes", [0, 1])
def test_one_process_is_this_one(processes):
    assert launch(os.getpid, processes) == os.getpid()


def test_refuses_numbers_that_count_nothing():
    with pytest.raises(ConfigError, match="--num-gpus must be >= 0, is -1"):
        launch(os.getpid, -1)
    with pytest.raises(ConfigError, match="--num-machines must be >= 1, is 0"):
        launch(os.getpid, 1, num_machines=0)


def test_refuses_machines_without_a_meeting_point_and_too_many_gpus(monkeypatch):
    with pytest.raises(ConfigError, match="--dist-url tcp://HOST:PORT"):
        launch(os.getpid, 1, num_machines=2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="--num-gpus 8: this machine has 1"):
        launch(os.getpid, 8)


SCRIPT = """
import sys
from segdet.engine import launch
from segdet.utils import comm

def main():
    ranks = comm.all_gather(comm.get_rank())
    sys.stdout.write(f"ranks {ranks} {comm.get_local_size()}\\n")  # in one piece

launch(main, 1)
"""


@pytest.mark.slow
def test_under_torchrun_the_flags_are_not_needed(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    root = Path(__file__).resolve().parents[2]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    run = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", str(tmp_path / "script.py")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert run.stdout.splitlines() == ["ranks [0, 1] 2"] * 2
