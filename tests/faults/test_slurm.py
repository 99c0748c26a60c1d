"""Jobs of two processes whose time ends, or that are cancelled; submitit's local executor."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from segdet.engine.submit import Task, submit
from tests.faults.runs import begin, environment, same_run, train

pytest.importorskip("submitit", reason="needs submitit, of the extra `slurm`")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # of which most are imports


def submitted(folder: Path, monkeypatch: pytest.MonkeyPatch, **env: str) -> Any:
    """A job that is at step 5."""
    for name, value in environment(STOP_AT="step:0", WAIT="2", **env).items():
        monkeypatch.setenv(name, value)
    task = Task(train, (str(folder), []))
    job = submit(task, folder / "slurm", num_tasks=2, has_gpus=False, is_local=True)
    end = time.monotonic() + 240
    while "at step" not in log_of(job):
        assert time.monotonic() < end, log_of(job)
        time.sleep(0.1)
    return job


def log_of(job: Any) -> str:
    return (job.task(0).stdout() or "") + (job.task(0).stderr() or "")


def children_of(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_job_whose_time_ends_goes_on_in_its_next_turn(tmp_path, monkeypatch):
    job = submitted(tmp_path / "a", monkeypatch)
    for process in children_of(int(job.job_id)):
        os.kill(process, signal.SIGUSR2)
    job.results()
    log = log_of(job)
    assert "finishes its iteration, saves and exits" in log
    assert "Starting training from iteration 6" in log
    run = begin(tmp_path / "b", PROCESSES="2", STOP_AT="")
    out, err = run.communicate(timeout=400)
    assert run.returncode == 0, out + err
    same_run(tmp_path / "a", tmp_path / "b")


def test_a_job_that_is_cancelled_saves_and_is_not_queued_again(tmp_path, monkeypatch):
    job = submitted(tmp_path, monkeypatch)
    os.kill(int(job.job_id), signal.SIGTERM)  # passed on to all processes, as scancel's
    job.wait()
    log = log_of(job)
    assert "finishes its iteration, saves and exits" in log
    assert log.count("Starting training from iteration") == 1
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000005.pth"
