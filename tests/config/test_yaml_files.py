"""Config files that are small and would mean endless work, or are no files; the rest: test_node."""

import os
import time

import pytest

from segdet.config.yaml_files import yaml_layers
from segdet.errors import ConfigError


def doubled(times: int, form: str) -> str:
    """A line, then `times` lines that hold the line before twice."""
    lines = (f"a{i + 1}: &a{i + 1} {form.format(i=i)}" for i in range(times))
    return "\n".join(["a0: &a0 {X: 1}", *lines])


@pytest.mark.parametrize(
    "text, message",
    [
        (doubled(60, "[*a{i}, *a{i}]"), "holds more than 100000 values, aliases written out"),
        (doubled(60, "{{B: *a{i}, C: *a{i}}}"), "holds more than 100000 values"),
        (doubled(60, "{{<<: [*a{i}, *a{i}]}}"), "line 18: << merges more than 100000 values"),
        ("A: &a [*a]", "holds more than 100000 values"),
        ("A: " + "[" * 3000, "cannot be read: maximum recursion depth"),
        ("A: " + "9" * 5000, "line 1: .9.* is no int .*digits"),
        ("A: 2001-99-99", "line 1: .2001-99-99. is no timestamp .*month must be in 1..12"),
        ('_BASE_: "\\0"', "cannot be read .*null byte"),
    ],
)
def test_bombs_and_values_that_are_none(tmp_path, text, message):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    start = time.process_time()  # of this process: others may keep the machine busy
    with pytest.raises(ConfigError, match=message):
        yaml_layers(str(file))
    assert time.process_time() - start < 5


def test_bases_that_double(tmp_path):
    """Each of 60 files names the one before twice: 2^60 layers."""
    for i in range(60):
        (tmp_path / f"{i + 1}.yaml").write_text(f"_BASE_: [{i}.yaml, {i}.yaml]")
    (tmp_path / "0.yaml").write_text("A: 1")
    with pytest.raises(ConfigError, match=r"\d\.yaml: _BASE_ leads to more than 100 files"):
        yaml_layers(str(tmp_path / "60.yaml"))


def test_a_base_is_a_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")  # whoever reads it waits for ever
    file = tmp_path / "a.yaml"
    for base in (tmp_path / "pipe.yaml", "/dev/zero", tmp_path):
        file.write_text(f"_BASE_: {base}")
        message = rf"{base}: cannot be read \(named by _BASE_ in .*a\.yaml\): it is no regular file"
        with pytest.raises(ConfigError, match=message):
            yaml_layers(str(file))
