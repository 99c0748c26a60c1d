"""Runs that are killed at random moments, and resumed, end in the bits of one that was not."""

import multiprocessing
import os
import random
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

from benchmarks.trust.kill_matrix import SYSTEMS, Row, measure
from segdet.data.demo import make_demo_dataset
from segdet.data.loader import Loader, Samples
from tests.faults.processes import start
from tests.faults.runs import begin, in_process, same_run


@pytest.mark.parametrize("workers", ["0", "1"])
def test_killed_and_resumed(tmp_path, whole, workers):
    draw = random.Random(int(workers))
    for _ in range(6):
        run = begin(tmp_path, "DATALOADER.NUM_WORKERS", workers, STEP_SECONDS="0.02")
        time.sleep(draw.uniform(0.1, 0.5))
        run.kill()
        run.wait()
    in_process(tmp_path, "DATALOADER.NUM_WORKERS", workers)
    same_run(tmp_path, whole)


def hold_batches(report: Any) -> None:
    loader = iter(Loader(Samples(["x" * 100_000] * 100), num_workers=2))
    next(loader)
    time.sleep(0.5)  # the workers' pipe, which they share, is full by now
    report.send([child.pid for child in multiprocessing.active_children()])
    time.sleep(60)


def test_workers_end_with_the_run_though_nobody_takes_their_batches():
    listen, report = multiprocessing.Pipe(duplex=False)
    run = start(hold_batches, report)
    workers = listen.recv()
    assert len(workers) == 2
    run.kill()
    run.join()
    end = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{pid}") for pid in workers):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    "system, processes, workers",
    [*((name, 1, 0) for name in SYSTEMS), ("mask_rcnn", 1, 3), ("mask_rcnn", 2, 1)],
)
def test_systems_in_the_matrix(tmp_path, monkeypatch, system, processes, workers):
    make_demo_dataset(tmp_path / "data" / "demo", num_train=6, num_val=3)
    monkeypatch.setenv("SEGDET_DATASETS", str(tmp_path / "data"))
    # In a process without hotcoco's threads: a fork has none of them, and would wait for them.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        case = Row(system, processes, workers)
        row = fresh.submit(measure, case, tmp_path, points=3).result()
    assert sum(row.kills.values()) == 3
    assert row.runs > 0
    assert (row.differing_tensors, row.lost_checkpoints) == (0, 0)
