import subprocess
import sys
from pathlib import Path

import pytest

from segdet.cli import main, run_command
from segdet.errors import ConfigError

CONFIG = "configs/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"


@pytest.fixture
def segdet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs `segdet ...` in the project's folder and gives what it prints."""
    monkeypatch.chdir(Path(__file__).parents[1])

    def segdet(*argv: str) -> str:
        monkeypatch.setattr(sys, "argv", ["segdet", *argv])
        main()
        return capsys.readouterr().out

    return segdet


def test_info_names_the_versions(segdet):
    out = segdet("info")
    for word in ("segdet", "torch", "CUDA", "ops"):
        assert word in out
    assert "MODEL" not in out


def test_info_shows_what_set_each_value(segdet):
    out = segdet("info", "--config", CONFIG, "SOLVER.BASE_LR", "0.01")
    assert f"\n  MASK_ON: true  # {CONFIG}\n" in out
    assert "\n    NAME: StandardROIHeads  # configs/Base-RCNN-FPN.yaml\n" in out
    assert "\n    SIZES: [[32], [64], [128], [256], [512]]  # configs/Base-RCNN-FPN.yaml\n" in out
    assert "\n  BASE_LR: 0.01  # command line\n" in out
    assert "\n  GAMMA: 0.1\n" in out


@pytest.mark.parametrize("command", ["train", "eval", "predict"])
def test_each_command_has_its_own_help(segdet, capsys, command):
    with pytest.raises(SystemExit) as exit:
        segdet(command, "--help")
    assert exit.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: segdet {command} ") and "--config-file" in out


def test_train_shows_its_config(segdet):
    out = segdet("train", "--config-file", CONFIG, "--print-config", "SOLVER.BASE_LR", "0.01")
    assert "\n  BASE_LR: 0.01  # command line\n" in out


def test_eval_trains_nothing(segdet, monkeypatch):
    called = []
    monkeypatch.setattr("segdet.cli.train.main", called.append)
    segdet("eval", "--config-file", CONFIG)
    assert called == [["--eval-only", "--config-file", CONFIG]]


def test_a_users_mistake_is_one_message_and_exit_code_2(segdet, capsys):
    with pytest.raises(SystemExit) as exit:
        segdet("info", "--config", "gone.yaml")
    assert exit.value.code == 2
    assert capsys.readouterr().err.startswith("error: gone.yaml: cannot be read")


def test_debug_keeps_the_traceback(segdet):
    with pytest.raises(ConfigError):
        segdet("info", "--config", "gone.yaml", "--debug")


def test_an_internal_fault_keeps_its_traceback():
    def broken(argv: list[str]) -> None:
        raise ValueError(argv)

    with pytest.raises(ValueError, match="some"):
        run_command(broken, ["some"])


def test_an_unknown_command_lists_the_known(segdet, capsys):
    with pytest.raises(SystemExit) as exit:
        segdet("trian")
    assert exit.value.code == 2
    assert "info" in capsys.readouterr().err


def test_a_real_process_ends_with_2_and_without_a_traceback():
    run = subprocess.run(
        [sys.executable, "-m", "segdet.cli", "info", "MODEL.MASK", "True"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert run.returncode == 2
    assert run.stderr == (
        "error: command line: unknown key MODEL.MASK; did you mean MODEL.MASK_ON? "
        "(keys of a plug-in need --project, or load_project)\n"
    )
