"""Runs of several processes of which one dies or hangs: all end, with a message that names it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.faults.runs import ROOT, begin, environment, wait_for

pytestmark = pytest.mark.slow


def ended(run: subprocess.Popen) -> str:
    """The message of a run that must have ended with exit code 2."""
    out, err = run.communicate(timeout=240)
    assert run.returncode == 2, out + err
    assert "Traceback" not in err
    (message,) = (line for line in err.splitlines() if line.startswith("error: "))
    return message


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_all_and_is_named(tmp_path, rank):
    run = begin(tmp_path, PROCESSES="2", STOP_AT=f"step:{rank}")
    victim = wait_for(run, "at step")
    os.kill(victim, signal.SIGKILL)
    message = ended(run)
    assert f"error: process {rank} was ended by SIGKILL" in message
    if rank == 1:  # process 0 keeps the notes
        assert "iteration 5, its step: process 0, 1" in message
    run = begin(tmp_path, PROCESSES="2")
    assert run.wait(240) == 0
    assert "Starting training from iteration 3" in run.stdout.read()


def test_a_hanging_process_ends_all_and_is_named(tmp_path):
    run = begin(tmp_path, PROCESSES="2", STOP_AT="batch:1", TIMEOUT="5")
    wait_for(run, "at batch")
    message = ended(run)
    assert "A process has died or hangs" in message
    assert "iteration 5, its step: process 0; iteration 5, its batch: process 1" in message


def test_processes_end_with_the_one_that_started_them(tmp_path):
    run = begin(tmp_path, PROCESSES="2", STOP_AT="step:0", WAIT="1")
    child = wait_for(run, "at step")
    run.kill()
    end = time.monotonic() + 60
    while os.path.exists(f"/proc/{child}"):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000005.pth"


def test_an_elastic_restart_goes_on_from_the_last_checkpoint(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=1"]
    command = [*torchrun, "--nproc-per-node=2", "--monitor-interval=0.1", "-m", "tests.faults.runs"]
    run = subprocess.Popen(
        [*command, str(tmp_path)],
        cwd=ROOT,
        env=environment(STOP_AT="step:1", TIMEOUT="20"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    victim = wait_for(run, "at step")
    os.kill(victim, signal.SIGKILL)
    out, err = run.communicate(timeout=240)
    assert run.returncode == 0, err
    assert "Starting training from iteration 3" in out
    assert (tmp_path / "model_final.pth").exists()
