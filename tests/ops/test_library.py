import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import segdet.ops
from segdet.ops import library

ROOT = Path(__file__).resolve().parents[2]
OPS = Path(segdet.ops.__file__).parent


def test_folder_without_libraries(tmp_path):
    devices, missing = library.load_libraries(tmp_path)
    assert not devices
    assert "libsegdet_ops.so does not exist; `pip install -e .` builds it" in missing


def test_library_that_does_not_load(tmp_path):
    (tmp_path / "libsegdet_ops.so").write_text("not a library")
    devices, missing = library.load_libraries(tmp_path)
    assert not devices
    assert "libsegdet_ops.so does not load" in missing


def test_fallback_is_said_once(monkeypatch):
    monkeypatch.setattr(library, "BINARY_DEVICES", frozenset())
    library._warn_of_fallback.cache_clear()
    boxes, scores = torch.zeros(1, 4), torch.zeros(1)
    with pytest.warns(UserWarning, match="no compiled ops for cpu, slower code stands in"):
        segdet.ops.nms(boxes, scores, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        segdet.ops.nms(boxes, scores, 0.5)
    library._warn_of_fallback.cache_clear()


def test_package_without_libraries_imports_and_works(tmp_path):
    """A copy of the package as it lies after an installation without a compiler."""
    package = tmp_path / "segdet"
    (package / "ops").mkdir(parents=True)
    (package / "__init__.py").touch()
    for source in OPS.glob("*.py"):
        shutil.copy(source, package / "ops")
    program = (
        "import sys, torch, segdet.ops as ops\n"
        "assert not ops.BINARY_DEVICES and 'torchvision' not in sys.modules\n"
        "sys.modules['torchvision.ops'] = None  # as if it were not installed\n"
        "maps, rois = torch.ones(1, 1, 4, 4), torch.tensor([[0., 1, 1, 3, 3]])\n"
        "print(ops.roi_align(maps, rois, 2).sum().item())\n"
        "print(ops.nms(torch.tensor([[0., 0, 1, 1]] * 2), torch.ones(2), 0.5).tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["4.0", "[0]"]
    assert done.stderr.count("no compiled ops for cpu") == 1


@pytest.mark.parametrize("name", ["libsegdet_ops.so", "libsegdet_ops_cuda.so"])
def test_libraries_need_only_the_stable_abi(name):
    """No symbol of Python, ATen or c10: one binary serves every Python and torch."""
    if shutil.which("nm") is None or not (OPS / name).exists():
        pytest.skip(f"needs nm and {name}")
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", OPS / name], capture_output=True, text=True, check=True
    ).stdout
    symbols = [line.split()[-1] for line in listing.splitlines()]
    assert any(symbol.startswith("aoti_torch_") for symbol in symbols)
    assert not [s for s in symbols if re.match(r"_?Py|_ZNK?2at|_ZNK?3c10|_ZNK?5torch", s)]


def test_no_compiler_is_said_and_is_no_error(tmp_path):
    command = [sys.executable, "setup.py", "build_ext"]
    command += ["--build-lib", tmp_path / "lib", "--build-temp", tmp_path / "temp"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "CXX": "no-such-compiler", "SEGDET_CUDA": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "segdet: no compiled ops were built, slower code stands in" in done.stderr
    assert not list(tmp_path.rglob("*.so"))
