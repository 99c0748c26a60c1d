"""The commands that the README shows are accepted by the programs that they name."""

import re
import shlex
from pathlib import Path

import pytest

from segdet.data.check.command import main as check_data
from segdet.engine import predict, train
from segdet.errors import SegdetError
from segdet.report.command import main as report

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]


def arguments(program: str) -> list[str]:
    (command,) = [c for c in COMMANDS if program in c]
    return shlex.split(command.partition(program)[2])


def test_make_targets_exist():
    targets = re.findall(r"^make (\w+)", "\n".join(COMMANDS), re.MULTILINE)
    assert {"demo", "test"} <= set(targets)
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_the_training_command_is_understood(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    train.main(["--print-config", *arguments("tools/train_net.py")])
    assert "train.json:photos/train" in capsys.readouterr().out


def test_the_prediction_command_is_understood(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    argv = arguments("tools/predict.py")
    argv[argv.index("--output") + 1] = str(tmp_path)
    with pytest.raises(SegdetError, match=r"photo\.jpg|model_final\.pth"):  # neither exists here
        predict.main(argv)


def test_the_check_of_data_is_understood(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        check_data(arguments("segdet check-data"))
    assert exit.value.code == 2  # there is no such file
    assert "val.json: 0 images" in capsys.readouterr().out
    assert "cannot be read" in (tmp_path / "report.html").read_text()


def test_the_report_is_understood():
    with pytest.raises(SegdetError, match=r"output/(demo|before) is no folder"):
        report(arguments("segdet report"))


def test_linked_files_exist():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links and not [link for link in links if not (ROOT / link).exists()]
