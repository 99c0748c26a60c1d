import io
import logging
import re

import pytest
from tqdm import tqdm

from segdet.utils.logger import (
    create_small_table,
    log_every_n,
    log_every_n_seconds,
    log_first_n,
    setup_logger,
)


@pytest.fixture
def name(request):
    """A logger's name of the test's own; its handlers are closed afterwards."""
    name = f"test.{request.node.name}"
    yield name
    for handler in logging.getLogger(name).handlers:
        handler.close()


def test_console_and_file(name, tmp_path, capsys):
    setup_logger(tmp_path, name=name)
    logging.getLogger(f"{name}.part").info("hello %d", 3)
    logging.getLogger(name).warning("careful")
    pattern = rf"\[\d\d/\d\d \d\d:\d\d:\d\d {re.escape(name)}"
    for text in (capsys.readouterr().out, (tmp_path / "log.txt").read_text()):
        first, second = text.splitlines()
        assert re.fullmatch(pattern + r"\.part\]: hello 3", first)
        assert re.fullmatch(pattern + r"\]: WARNING careful", second)


def test_twice_is_once_and_a_new_file_is_added(name, tmp_path, capsys):
    for folder in ("a", "a", "b"):
        setup_logger(tmp_path / folder, name=name)
    logging.getLogger(name).info("line")
    assert capsys.readouterr().out.count("line") == 1
    for folder in ("a", "b"):
        assert (tmp_path / folder / "log.txt").read_text().count("line") == 1


def test_other_ranks_write_their_own_file_only(name, tmp_path, capsys):
    setup_logger(tmp_path / "run.log", distributed_rank=2, name=name)
    logging.getLogger(name).info("line")
    assert capsys.readouterr().out == ""
    assert "line" in (tmp_path / "run.log.rank2").read_text()


def test_abbreviation_and_traceback(name, capsys):
    log = setup_logger(name=name, abbrev_name="sd")
    try:
        raise KeyError("gone")
    except KeyError:
        log.getChild("x").exception("failed")
    out = capsys.readouterr().out
    assert " sd.x]: ERROR failed" in out
    assert "KeyError: 'gone'" in out


def test_lines_go_above_a_progress_bar(name, capsys, monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("sys.stderr", terminal)
    log = setup_logger(name=name)
    with tqdm(total=2, file=terminal) as bar:
        bar.update()
        log.info("line")
    rows = re.split(r"[\r\n]", terminal.getvalue())
    (line,) = [row for row in rows if "line" in row]
    assert line.startswith("[") and line.endswith("]: line")  # the bar was cleared before it


def test_log_first_n(caplog):
    for i in range(4):
        log_first_n(logging.WARNING, f"first {i}", n=2)
        log_first_n(logging.WARNING, "same", key="message", name="other")
    assert caplog.messages == ["first 0", "same", "first 1"]
    assert {record.name for record in caplog.records} == {__name__, "other"}


def test_log_every_n(caplog):
    for i in range(7):
        log_every_n(logging.WARNING, str(i), n=3)
    assert caplog.messages == ["0", "3", "6"]


def test_every_n_seconds(caplog, monkeypatch):
    times = iter([0.0, 1.0, 2.5, 3.0])
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    for k in range(4):
        log_every_n_seconds(logging.WARNING, f"call {k}", 2)
    assert [record.getMessage() for record in caplog.records] == ["call 0", "call 2"]


def test_small_table():
    assert create_small_table({"AP": 12.34567, "AP-long": 1}).splitlines() == [
        "| AP     | AP-long |",
        "| ------ | ------- |",
        "| 12.346 | 1.000   |",
    ]
