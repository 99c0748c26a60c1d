"""Small training runs, as processes of their own, for tests that signal and kill them.

`python -m tests.faults.runs FOLDER [KEY VALUE ...]` trains a model of one layer, with the real
trainer, checkpoints, evaluation and loader; STEP_SECONDS in the environment slows its steps down,
STOP_AT in it names a place where the process tells that it is there, and waits.
"""

import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segdet.cli import run_command
from segdet.config import CfgNode, get_cfg
from segdet.data.common import MapDataset
from segdet.data.loader import Loader, Samples, TrainLoader
from segdet.data.samplers import InferenceSampler, TrainingSampler
from segdet.engine import DefaultTrainer, hooks, launch
from segdet.engine.launch import is_restarted
from segdet.engine.setup import default_setup
from segdet.evaluation import DatasetEvaluator
from segdet.utils import comm
from segdet.utils.events import EventWriter, JSONWriter
from tests.faults.processes import Forked, start

ROOT = Path(__file__).resolve().parents[2]
ITERATIONS = 12


def wait_here(place: str) -> None:
    """Tell the test that the run is at a place, and stay for it to act; once, restarts or not."""
    if not is_restarted() and os.environ.get("STOP_AT") == f"{place}:{comm.get_rank()}":
        os.environ.pop("STOP_AT")
        print(f"at {place} is process {os.getpid()}", flush=True)
        time.sleep(float(os.environ.get("WAIT", "60")))


class Net(nn.Module):
    """Noise in the loss, statistics in the norm: all that a resumed run must have again."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, batch: list[dict]) -> Any:
        x = torch.stack([one["x"] for one in batch])
        if not self.training:
            wait_here("evaluation")
            return [{"instances": float(self.linear(x).sum())}]
        if batch[0]["step"] == 5:
            wait_here("step")
            if "FAIL" in os.environ:
                raise KeyError(os.environ["FAIL"])
        time.sleep(float(os.environ.get("STEP_SECONDS", "0")))
        x = self.norm(self.linear(x + torch.randn_like(x)))
        return {"loss": (x - 1).square().mean()}


class Sum(DatasetEvaluator):
    """The sum of the outputs over all processes."""

    def reset(self) -> None:
        self.sum = 0.0

    def process(self, inputs: list, outputs: list) -> None:
        self.sum += outputs[0]["instances"]

    def evaluate(self) -> dict:
        return {"bbox": {"AP": sum(comm.all_gather(self.sum))}}


def sample(index: int) -> dict:
    """A record with the noise of its place in the stream."""
    return {"x": torch.full((4,), float(index)) + torch.rand(4), "step": index}


class Steps(TrainLoader):
    """Marks each sample with the number of its batch."""

    def __iter__(self) -> Any:
        for number, batch in enumerate(super().__iter__(), start=self._next):
            if number == 5:
                wait_here("batch")
            yield [{**one, "step": number} for one in batch]


class Trainer(DefaultTrainer):
    """The standard trainer over the small model."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return Net()

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return Steps(
            MapDataset(list(range(10)), sample),
            sampler=TrainingSampler(10, seed=cfg.SEED),
            total_batch_size=4,
            seed=cfg.SEED,
            rank=comm.get_rank(),
            world_size=comm.get_world_size(),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        dataset = Samples([{"x": torch.full((4,), float(i))} for i in range(3)])
        return Loader(dataset, sampler=InferenceSampler(3))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return Sum()

    def build_hooks(self) -> list:
        last = hooks.PeriodicWriter(self.build_writers(), period=1)  # every loss
        return [*super().build_hooks()[:-1], last if comm.is_main_process() else None]

    def build_writers(self) -> list[EventWriter]:
        """Without TensorBoard, whose import takes longer than the run."""
        return [JSONWriter(Path(self.cfg.OUTPUT_DIR) / "metrics.json")]

    def save_pictures(self) -> None:
        """None of such a model."""


def config(folder: Path | str, settings: list[str]) -> CfgNode:
    """Checkpoints after every third iteration, an evaluation after every sixth."""
    cfg = get_cfg()
    fixed = f"""
        OUTPUT_DIR {folder} SEED 3 MODEL.DEVICE cpu DATASETS.TEST ('a',) DATALOADER.NUM_WORKERS 0
        SOLVER.MAX_ITER {ITERATIONS} SOLVER.STEPS (8,) SOLVER.BASE_LR 0.05 SOLVER.WARMUP_ITERS 4
        SOLVER.CHECKPOINT_PERIOD 3 TEST.EVAL_PERIOD 6
    """
    cfg.merge_from_list([*fixed.split(), *settings])
    return cfg


def train(folder: str, settings: list[str]) -> None:
    """One run, resumed where there is something to resume."""
    torch.set_num_threads(1)
    cfg = config(folder, settings)
    default_setup(cfg, None)  # type: ignore[arg-type]
    trainer = Trainer(cfg)
    under_torchrun = "TORCHELASTIC_RESTART_COUNT" in os.environ
    trainer.resume_or_load(resume=is_restarted() or not under_torchrun)
    trainer.train()


def environment(**more: str) -> dict[str, str]:
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own, **more}


def begin(folder: Path, *settings: str, **env: str) -> Any:
    """Start a run, of several processes with PROCESSES; its stdout and stderr are pipes."""
    if "PROCESSES" not in env:
        return Forked(lambda: run_command(main, [str(folder), *settings]), env)
    return subprocess.Popen(
        [sys.executable, "-m", "tests.faults.runs", str(folder), *settings],
        cwd=ROOT,
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of its own, that tests signal as a terminal does
    )


def wait_for(run: Any, text: str) -> int:
    """Read the run's lines up to one with this text; gives the process that wrote it."""
    seen = []
    for line in run.stdout:
        seen.append(line)
        if text in line:
            return int(line.split()[-1])
    raise AssertionError(f"{text!r} never came: {''.join(seen)}{run.stderr.read()}")


def in_process(folder: Path, *settings: str) -> None:
    """Train in a copy of this process, which has imported everything."""
    process = start(train, str(folder), list(settings))
    process.join(60)
    assert process.exitcode == 0


def final(folder: Path) -> dict:
    return torch.load(folder / "model_final.pth")


def metrics(folder: Path) -> list[dict]:
    """What a run of the same settings writes again, whatever its speed."""
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    timed = {"time", "data_time", "rank_data_time", "eta_seconds"}
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def differing(a: object, b: object, at: str = "") -> list[str]:
    """Where two checkpoints differ, in any bit."""
    if isinstance(a, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [at]
    if isinstance(a, dict):
        keys = {**a, **b}
        return [where for k in keys for where in differing(a.get(k), b.get(k), f"{at}/{k}")]
    return [] if a == b else [at]


def same_run(a: Path, b: Path) -> None:
    one, other = final(a), final(b)
    for content in (one, other):
        content.pop("config")
        content["trainer"].pop("storage")  # has times; metrics.json shows the rest
    assert differing(one, other) == []
    assert metrics(a) == metrics(b)


def main(argv: list[str]) -> None:
    timeout = datetime.timedelta(seconds=float(os.environ.get("TIMEOUT", "60")))
    processes = int(os.environ.get("PROCESSES", "1"))
    launch(train, processes, args=(argv[0], argv[1:]), timeout=timeout)


if __name__ == "__main__":
    run_command(main)
