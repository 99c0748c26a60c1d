"""Runs that a signal ends: what they say, save and exit with."""

import os
import signal
import time

import pytest

from tests.faults.runs import begin, in_process, same_run, wait_for


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_a_step_finishes_it_saves_and_exits(tmp_path, whole, number, code):
    run = begin(tmp_path, "DATALOADER.NUM_WORKERS", "1", STOP_AT="step:0", WAIT="1")
    wait_for(run, "at step")
    os.killpg(run.pid, number)  # loader workers, too, as a terminal or SLURM does
    out, err = run.communicate(timeout=60)
    assert run.returncode == code, err
    assert "finishes its iteration, saves and exits" in err
    assert "Traceback" not in out + err
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000005.pth"
    assert not (tmp_path / "model_final.pth").exists()
    in_process(tmp_path)
    same_run(tmp_path, whole)


def test_a_signal_in_an_evaluation_does_not_wait_for_its_end(tmp_path, whole):
    run = begin(tmp_path, "SOLVER.CHECKPOINT_PERIOD", "4", STOP_AT="evaluation:0", WAIT="50")
    wait_for(run, "at evaluation")
    run.terminate()
    started = time.monotonic()
    assert run.wait(60) == 143, run.stderr.read()
    assert time.monotonic() - started < 20
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000005.pth"
    in_process(tmp_path)
    same_run(tmp_path, whole)


def test_a_second_sigint_ends_at_once(tmp_path):
    run = begin(tmp_path, STOP_AT="step:0", WAIT="50")
    wait_for(run, "at step")
    run.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert run.poll() is None
    run.send_signal(signal.SIGINT)
    assert run.wait(5) == -signal.SIGINT  # 130 to a shell
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"


@pytest.mark.slow
def test_two_processes_stop_together(tmp_path, whole):
    run = begin(tmp_path / "a", PROCESSES="2", STOP_AT="step:1", WAIT="1")
    wait_for(run, "at step")
    run.terminate()
    out, err = run.communicate(timeout=240)
    assert run.returncode == 143, out + err
    assert "Traceback" not in out + err
    assert (tmp_path / "a" / "last_checkpoint").read_text() == "model_0000005.pth"
    for name in ("a", "b"):
        run = begin(tmp_path / name, PROCESSES="2")
        out, err = run.communicate(timeout=240)
        assert run.returncode == 0, out + err
    same_run(tmp_path / "a", tmp_path / "b")


def test_a_run_that_fails_ends_with_its_workers(tmp_path):
    run = begin(tmp_path, "DATALOADER.NUM_WORKERS", "2", FAIL="here")
    assert run.wait(30) == 1
    assert "KeyError: 'here'" in run.stderr.read()


def test_an_output_folder_is_one_runs(tmp_path):
    run = begin(tmp_path, STOP_AT="step:0")
    wait_for(run, "at step")
    log = (tmp_path / "log.txt").read_text()
    second = begin(tmp_path)
    _, err = second.communicate(timeout=60)
    assert second.returncode == 2
    assert f"error: OUTPUT_DIR {tmp_path} is in use by process {run.pid} on " in err
    assert err.count("\n") == 1
    assert (tmp_path / "log.txt").read_text() == log
    run.kill()  # a killed run keeps no lock
    run.wait()
    in_process(tmp_path)
