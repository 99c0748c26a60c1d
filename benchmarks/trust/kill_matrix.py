"""Runs that are killed at random and resumed, against runs that are not: do they differ in a bit?

python -m benchmarks.trust.kill_matrix [FILE.yaml ...] [--points N] [--workers 0 1 3]
    [--processes 1 2] [--work FOLDER] [--json FILE] [KEY VALUE ...]

Every run trains the config's system (by default each of configs/demo) for a few iterations on a
few pictures of the demo set, saves every second one and evaluates every fourth. SIGKILL comes at a
random moment inside a random step, save or evaluation; the run is resumed, and killed again, until
it has finished; then its final checkpoint (weights, optimizer, schedule, counters) is compared
with that of a run that nobody killed, tensor by tensor. With several processes one is killed.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch._dynamo  # optimizers import it: here once for all processes
import torch.distributed as dist

from segdet.checkpoint.manifest import defect_of
from segdet.checkpoint.reading import read_checkpoint
from segdet.data.demo import make_demo_dataset
from segdet.engine.setup import default_argument_parser
from segdet.engine.train import Trainer, add_project_argument, default_setup, load_config

ROOT = Path(__file__).parents[2]
SETTINGS = """
    MODEL.DEVICE cpu SEED 1 SOLVER.MAX_ITER 8 SOLVER.CHECKPOINT_PERIOD 2 SOLVER.IMS_PER_BATCH 2
    SOLVER.STEPS (6,) SOLVER.WARMUP_ITERS 3 SOLVER.BASE_LR 0.005 TEST.EVAL_PERIOD 4
    TEST.DETECTIONS_PER_IMAGE 10 TEST.AUG.ENABLED False INPUT.MIN_SIZE_TRAIN (96,112)
    INPUT.MAX_SIZE_TRAIN 160 INPUT.MIN_SIZE_TEST 96 INPUT.MAX_SIZE_TEST 160 VIS_PERIOD 0
"""
PLACES: tuple[str, ...] = ("step", "save", "evaluation")
_FORK = multiprocessing.get_context("fork")
_LONGEST = 300.0  # seconds of a run


class Kill(NamedTuple):
    """When a process kills itself: so long after it enters a place for the n-th time."""

    place: str
    entry: int
    seconds: float


@dataclass
class Row:
    """What one combination gave."""

    config: str
    processes: int
    workers: int
    kills: dict[str, int]
    runs: int = 0  # that were compared
    differing_tensors: int = 0
    lost_checkpoints: int = 0
    seconds: float = 0.0


class Marks:
    """Counts the entries of places, measures them, and acts on a `Kill`."""

    def __init__(self, kill: Kill | None) -> None:
        self.kill = kill
        self.entries = dict.fromkeys(PLACES, 0)
        self.longest = dict.fromkeys(PLACES, 0.0)

    @contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Within is the place."""
        if self.kill is not None and self.kill[:2] == (place, self.entries[place]):
            timer = threading.Timer(self.kill.seconds, os.kill, (os.getpid(), signal.SIGKILL))
            timer.daemon = True
            timer.start()
        self.entries[place] += 1
        started = time.perf_counter()
        yield
        self.longest[place] = max(self.longest[place], time.perf_counter() - started)


def train(argv: list[str], marks: Marks, rank: int, processes: int, store: str) -> None:
    """One process of a run that is resumed where there is something to resume."""
    torch.set_num_threads(1)
    if processes > 1:
        url = f"file://{store}"
        dist.init_process_group("gloo", init_method=url, rank=rank, world_size=processes)
    parser = default_argument_parser()
    add_project_argument(parser)
    args = parser.parse_args(argv)
    cfg = load_config(args)
    default_setup(cfg, args)

    class Marked(Trainer):
        def run_step(self) -> None:
            with marks.at("step"):
                super().run_step()

        @classmethod
        def test(cls, *args: Any, **options: Any) -> Any:
            with marks.at("evaluation"):
                return super().test(*args, **options)

        def build_writers(self) -> list[Any]:
            return []

        def save_pictures(self) -> None:
            """None: they are no part of what is compared."""

    trainer = Marked(cfg)
    save = trainer.checkpointer.save

    def marked_save(*args: Any, **options: Any) -> None:
        with marks.at("save"):
            save(*args, **options)

    trainer.checkpointer.save = marked_save
    trainer.resume_or_load(resume=True)
    trainer.train()


def run(
    argv: list[str], folder: Path, processes: int = 1, kill: Kill | None = None
) -> Marks | None:
    """A run up to its end or death.

    Returns:
        What it measured, of the main process; None if it has not finished.
    """
    store = tempfile.mktemp(dir=folder.parent)
    results = _FORK.SimpleQueue()

    def call(rank: int) -> None:
        log = os.open(folder.with_suffix(f".{rank}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        marks = Marks(kill if rank == processes - 1 else None)
        train([*argv, "OUTPUT_DIR", str(folder)], marks, rank, processes, store)
        if rank == 0:
            results.put((marks.entries, marks.longest))
        os._exit(0)

    children = [_FORK.Process(target=call, args=(rank,)) for rank in range(processes)]
    for child in children:
        child.start()
    end = time.monotonic() + _LONGEST
    for child in reversed(children):
        child.join(max(0.0, end - time.monotonic()))
        if child.is_alive():
            raise RuntimeError(f"{folder}: hangs; see {folder.with_suffix('.0.log')}")
    if any(child.exitcode for child in children):
        died = [child.exitcode for child in children if child.exitcode == -signal.SIGKILL]
        if kill is None or not died:
            raise RuntimeError(f"{folder}: fails; see {folder.with_suffix('.0.log')}")
        return None
    marks = Marks(None)
    marks.entries, marks.longest = results.get()
    return marks


def differing(a: Any, b: Any, at: str = "") -> list[str]:
    """Where two checkpoints differ, in any bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape
        return [] if same and torch.equal(a, b) else [at]
    if isinstance(a, dict) and isinstance(b, dict):
        return [x for key in {**a, **b} for x in differing(a.get(key), b.get(key), f"{at}/{key}")]
    return [] if a == b else [at]


def compared(file: Path) -> dict[str, Any]:
    """The checkpoint without what tells of times and folders."""
    content = read_checkpoint(file)
    content.pop("config")
    content["trainer"].pop("storage")
    return content


def is_lost(folder: Path, before: str) -> bool:
    """Whether the checkpoint that was the last one, or the one that is now, has been damaged."""
    tag = folder / "last_checkpoint"
    names = {name for name in (before, tag.read_text() if tag.is_file() else "") if name}
    return any(defect_of(folder / name) for name in names)


def measure(config: Path, opts: list[str], work: Path, row: Row, points: int) -> Row:
    """Kill `points` times; what came of it."""
    argv = ["--config-file", str(config), *SETTINGS.split(), *opts]
    argv += ["DATALOADER.NUM_WORKERS", str(row.workers)]
    started = time.perf_counter()
    whole = work / "whole"
    marks = run(argv, whole, row.processes)
    assert marks is not None, "nobody killed it"
    expected = compared(whole / "model_final.pth")
    draw = random.Random(f"{config.name} {row.processes} {row.workers}")
    folder = work / "killed"
    while sum(row.kills.values()) < points or folder.exists():
        place = draw.choice(PLACES)
        entry = draw.randrange(max(1, marks.entries[place] // 2))
        kill = Kill(place, entry, draw.uniform(0.0, marks.longest[place]))
        tag = folder / "last_checkpoint"
        before = tag.read_text() if tag.is_file() else ""
        if run(argv, folder, row.processes, kill if sum(row.kills.values()) < points else None):
            row.differing_tensors += len(differing(compared(folder / "model_final.pth"), expected))
            row.runs += 1
            shutil.rmtree(folder)
        else:
            row.kills[place] += 1
            row.lost_checkpoints += is_lost(folder, before)
    row.seconds = time.perf_counter() - started
    shutil.rmtree(whole)
    return row


def show(row: Row) -> str:
    kills = " ".join(f"{row.kills[place]:5}" for place in PLACES)
    return (
        f"{row.config:24} {row.processes:5} {row.workers:7}  {kills}  {row.runs:5} "
        f"{row.differing_tensors:9} {row.lost_checkpoints:5} {row.seconds:8.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("arguments", nargs="*", metavar="FILE.yaml or KEY VALUE")
    parser.add_argument("--points", type=int, default=50, help="kills of each combination")
    parser.add_argument("--workers", type=int, nargs="+", default=[0], help="of the loader")
    parser.add_argument("--processes", type=int, nargs="+", default=[1])
    parser.add_argument("--work", type=Path, help="folder to work in; a temporary one")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows there, too")
    args = parser.parse_args()
    configs = [Path(one) for one in args.arguments if one.endswith(".yaml")]
    opts = [one for one in args.arguments if not one.endswith(".yaml")]
    configs = configs or sorted((ROOT / "configs/demo").glob("*.yaml"))
    rows = []
    print(
        "config                   procs workers   step  save  eval   runs differing  lost  seconds"
    )
    with tempfile.TemporaryDirectory(dir=args.work) as name:
        work = Path(name)
        make_demo_dataset(work / "data" / "demo", num_train=6, num_val=3)
        os.environ["SEGDET_DATASETS"] = str(work / "data")
        for config in configs:
            for processes in args.processes:
                for workers in args.workers:
                    row = Row(config.stem, processes, workers, dict.fromkeys(PLACES, 0))
                    rows.append(measure(config, opts, work, row, args.points))
                    print(show(row), flush=True)
                    if args.json:
                        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    bad = sum(row.differing_tensors + row.lost_checkpoints for row in rows)
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
