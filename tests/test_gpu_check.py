"""The GPU check without a GPU: what it says, reads and leaves out, and that it knows every op."""

import json
import math
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from benchmarks.gpu_check import __main__ as gpu_check
from benchmarks.gpu_check import agreement
from benchmarks.gpu_check.agreement import Case, compare, make_cases
from benchmarks.gpu_check.agreement import difference as difference_of

ROOT = Path(__file__).resolve().parents[1]


def stage(program: str, **options) -> gpu_check.Stage:
    return gpu_check.Stage(
        **{"name": "s", "command": ["-c", program], "needs": [], "seconds": 60} | options
    )


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 2
    assert "finds no GPU here" in capsys.readouterr().err


def test_results_are_written_after_each_stage(monkeypatch, tmp_path):
    stages = [stage("", name="good"), stage("raise SystemExit('broken')", name="bad")]
    monkeypatch.setattr(gpu_check, "make_stages", lambda *args: stages)
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    assert gpu_check.main(["--device", "cpu", "--results", str(tmp_path)]) == 1
    report = json.loads((tmp_path / "cpu.json").read_text())
    assert [found["status"] for found in report["stages"].values()] == ["ok", "failed"]
    assert "broken" in report["stages"]["bad"]["printed"]
    assert report["machine"]["torch"] == torch.__version__


def test_a_stage_without_its_packages_is_left_out():
    found = gpu_check.run_stage(stage("", needs=["json", "no_such_package"]), time.monotonic() + 60)
    assert (found["status"], found["summary"]) == ("left out", "needs no_such_package")


def test_a_stage_out_of_time_keeps_what_it_wrote(tmp_path):
    rows = json.dumps([{"name": "a", "ratio": 0.5}, {"name": "b", "ratio": 2}])
    file = tmp_path / "rows.json"
    program = f"open({str(file)!r}, 'w').write({rows!r}); import time; time.sleep(60)"
    found = gpu_check.run_stage(stage(program, seconds=5, result=file), time.monotonic() + 60)
    assert found["status"] == "out of time"
    assert found["summary"] == "2 timings, slower than the peer: a 0.50"
    assert gpu_check.run_stage(stage(program), time.monotonic() + 2)["summary"] == "not begun"


def test_out_of_time_it_ends_with_all_that_it_started():
    """What still held the pipe would keep us reading from it."""
    nested = "import time; print('begun', flush=True); time.sleep(60)"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {nested!r}])"
    start = time.monotonic()
    done = gpu_check.run_for(2, [sys.executable, "-c", program], {})
    assert done == ("out of time", "begun\n")
    assert time.monotonic() - start < 30


def test_the_gpus_ops_are_built_or_the_stage_fails(tmp_path):
    build = gpu_check.make_stages("cuda", False, tmp_path)[0]
    assert build.environment == {"SEGDET_CUDA": "1"}
    program = "import os; raise SystemExit(os.environ['SEGDET_CUDA'])"
    found = gpu_check.run_stage(stage(program, environment=build.environment), math.inf)
    assert (found["status"], found["printed"]) == ("failed", "1\n")


def test_pytests_report_is_counted():
    root = ElementTree.fromstring(
        "<testsuites><testsuite><testcase name='a'/><testcase name='b'><skipped/></testcase>"
        "<testcase name='c'><failure message='1 != 2'/></testcase></testsuite></testsuites>"
    )
    summary, failures = gpu_check.read_tests(root)
    assert summary == "1 passed, 1 failed, 1 skipped"
    assert failures == [{"test": "c", "message": "1 != 2"}]


def test_stages_begin_with_programs_that_exist(tmp_path):
    for one in gpu_check.make_stages("cuda", False, tmp_path):
        if one.command[0] != "-m":
            assert (ROOT / one.command[0]).is_file()
        elif one.command[1] != "pytest":
            path = ROOT / one.command[1].replace(".", "/")
            assert path.is_dir() or path.with_suffix(".py").is_file()


def test_every_op_is_compared():
    kernels = (ROOT / "csrc").glob("*/*.cu")
    assert set(make_cases()) == {path.parent.name for path in kernels}


@pytest.mark.parametrize("name", make_cases())
def test_every_op_agrees_with_itself(monkeypatch, name):
    """In one type: a case that fails here tells nothing about a GPU."""
    monkeypatch.setattr(agreement, "LIMITS", {torch.float32: agreement.LIMITS[torch.float32]})
    rows = agreement.compare(name, make_cases()[name], "cpu")
    assert rows and not [row for row in rows if not row["ok"]]


def test_gradients_of_all_that_an_op_is_differentiable_in_are_compared():
    points = make_cases()["point_sample"]
    gradients = agreement.results(points, torch.float32, "cpu", torch.contiguous_format)[1]
    assert [one.shape for one in gradients] == [(2, 16, 50, 68), (2, 500, 2)]


def test_differences_are_relative_and_see_shapes_and_nan():
    a, b = torch.tensor([1.0, 4.0]), torch.tensor([1.0, 5.0])
    assert difference_of([a], [b]) == pytest.approx(0.2)
    assert difference_of([a], [a[:1]]) == difference_of([a], [a * torch.nan]) == float("inf")


def test_a_layout_that_is_lost_and_a_gradient_that_varies_are_seen():
    noise = iter(range(1, 1000))
    case = Case(run=lambda x: (x * next(noise)).contiguous(), features=(torch.ones(1, 2, 3, 3),))
    wrong = {row["check"] for row in compare("op", case, "cpu") if not row["ok"]}
    assert {"channels-last stays float32", "deterministic gradients repeat float32"} <= wrong
