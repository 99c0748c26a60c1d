"""Runs that are killed at random moments, and resumed, end in the bits of one that was not."""

import random
import time

import pytest

from benchmarks.trust.kill_matrix import SYSTEMS, Row, measure
from segdet.data.demo import make_demo_dataset
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "system, processes, workers",
    [*((name, 1, 0) for name in SYSTEMS), ("mask_rcnn", 1, 3), ("mask_rcnn", 2, 1)],
)
def test_systems_in_the_matrix(tmp_path, monkeypatch, system, processes, workers):
    make_demo_dataset(tmp_path / "data" / "demo", num_train=6, num_val=3)
    monkeypatch.setenv("SEGDET_DATASETS", str(tmp_path / "data"))
    row = measure(Row(system, processes, workers), tmp_path, points=3)
    assert sum(row.kills.values()) == 3
    assert row.runs > 0
    assert (row.differing_tensors, row.lost_checkpoints) == (0, 0)
