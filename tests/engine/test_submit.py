import pickle
import sys
from pathlib import Path

import pytest

from segdet.engine import train
from segdet.engine.submit import Task, main
from segdet.errors import ConfigError

pytest.importorskip("submitit", reason="needs submitit, of the extra `slurm`")
CONFIG = Path(__file__).parents[2] / "configs" / "demo" / "mask_rcnn.yaml"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose sbatch takes a job and does nothing; gives the folder of the runs."""
    for name, line in {"srun": "", "sbatch": "echo Submitted batch job 12"}.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{line}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path / "run"


def submitted(folder: Path, *argv: str) -> tuple[str, Task]:
    main([*argv, "--config-file", str(CONFIG), "OUTPUT_DIR", str(folder)])
    task = pickle.loads((folder / "slurm" / "12_submitted.pkl").read_bytes())
    return (folder / "slurm" / "12_submission.sh").read_text(), task.function


def test_a_job_of_two_machines(slurm, capsys):
    wanted = "--partition gpu --num-machines 2 --num-gpus 4 --time 90 --mem-gb 200 --cpus-per-gpu 6"
    script, task = submitted(slurm, *wanted.split(), "--sbatch", "account=vision", "--resume")
    for option in (
        *("partition=gpu", "nodes=2", "ntasks-per-node=4", "cpus-per-task=6", "mem=200GB"),
        *("time=90", "signal=USR2@120", "requeue", "account=vision", "job-name=run"),
    ):
        assert f"#SBATCH --{option}\n" in script
    assert "gpus" not in script  # MODEL.DEVICE of this config is the CPU
    assert "--kill-on-bad-exit=1" in script
    (args,) = task.args
    assert task.main_func is train.run
    assert (args.config_file, args.resume, args.num_gpus) == (str(CONFIG), True, 4)
    assert capsys.readouterr().out == f"job 12; its log: {slurm}/slurm/12_0_log.out\n"


def test_processes_on_cuda_get_a_gpu_each(slurm):
    argv = ["--config-file", str(CONFIG), "--num-gpus", "2", "OUTPUT_DIR", str(slurm)]
    main([*argv, "MODEL.DEVICE", "cuda"])
    assert "--gpus-per-node=2" in (slurm / "slurm" / "12_submission.sh").read_text()


def test_what_a_job_that_was_queued_again_calls():
    task = Task(print, ("a",)).checkpoint().function
    assert task.checkpoint().function == Task(print, ("a",), restarts=2)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--num-gpus", "2"], "there is no srun: submit from a machine of a SLURM cluster"),
        (["--local", "--num-machines", "2"], "--local is one machine, --num-machines is 2"),
        (["--sbatch", "exclusive"], "--sbatch takes KEY=VALUE, .* not 'exclusive'"),
    ],
)
def test_what_cannot_be_submitted(tmp_path, monkeypatch, argv, message):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=message):
        submitted(tmp_path / "run", *argv)


def test_a_mistake_in_the_config_shows_before_the_job_is_queued(slurm):
    with pytest.raises(ConfigError, match=r"SOLVER\.BASE_LRR"):
        main(["--config-file", str(CONFIG), "OUTPUT_DIR", str(slurm), "SOLVER.BASE_LRR", "1"])
    assert not slurm.exists()


def test_without_submitit(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit.helpers", None)
    with pytest.raises(ConfigError, match=r"this needs submitit: pip install 'segdet\[slurm\]'"):
        submitted(tmp_path, "--local")
