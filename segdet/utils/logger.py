"""Logging to the console and to log.txt."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

_DATE = "%m/%d %H:%M:%S"
_COLORS = {logging.WARNING: "\x1b[33m", logging.ERROR: "\x1b[31m", logging.CRITICAL: "\x1b[31m"}
_GREEN, _PLAIN = "\x1b[32m", "\x1b[0m"


def setup_logger(
    output: str | Path | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "segdet",
    abbrev_name: str | None = None,
    configure_stdout: bool = True,
) -> logging.Logger:
    """Send a logger's messages to stdout (rank 0 only) and to a file (every rank).

    Calling it again adds what is new and never doubles a line.

    Args:
        output: a folder, for `log.txt` in it, or a file that ends in .txt or .log; ranks above 0
            append `.rankN` to the name. None: no file.
        distributed_rank: of this process.
        color: colour the console's lines when it is a terminal.
        name: of the logger; "segdet" catches all of this package.
        abbrev_name: stands for `name` in the lines.
        configure_stdout: whether to log to stdout at all.

    Returns:
        The logger.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    names = (name, name if abbrev_name is None else abbrev_name)

    has_console = any(isinstance(handler, _Console) for handler in logger.handlers)
    if configure_stdout and distributed_rank == 0 and not has_console:
        console = _Console(sys.stdout)
        console.setLevel(logging.INFO)  # the file keeps the debug lines
        console.setFormatter(_Formatter(names, color=color and sys.stdout.isatty()))
        logger.addHandler(console)

    if output is not None:
        file = Path(output)
        file = file if file.suffix in (".txt", ".log") else file / "log.txt"
        if distributed_rank > 0:
            file = file.with_name(f"{file.name}.rank{distributed_rank}")
        files = {getattr(handler, "baseFilename", None) for handler in logger.handlers}
        if str(file.absolute()) not in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            handler = logging.FileHandler(file.absolute(), encoding="utf-8")
            handler.setFormatter(_Formatter(names, color=False))
            logger.addHandler(handler)
    return logger


class _Console(logging.StreamHandler):
    """Writes above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


class _Formatter(logging.Formatter):
    def __init__(self, names: tuple[str, str], *, color: bool) -> None:
        super().__init__(datefmt=_DATE)
        self._names = names
        self._color = color

    def formatMessage(self, record: logging.LogRecord) -> str:
        full, short = self._names
        name = short + record.name[len(full) :] if record.name.startswith(full) else record.name
        start, level = f"[{record.asctime} {name}]:", record.levelname
        if self._color:
            start = f"{_GREEN}{start}{_PLAIN}"
            level = f"{_COLORS.get(record.levelno, '')}{level}{_PLAIN}"
        if record.levelno < logging.WARNING:
            return f"{start} {record.message}"
        return f"{start} {level} {record.message}"

    def usesTime(self) -> bool:
        return True


_calls: Counter[tuple[object, ...]] = Counter()
_times: dict[tuple[str, int], float] = {}  # when a line of code last logged


def log_first_n(
    lvl: int, msg: str, n: int = 1, *, name: str | None = None, key: str | tuple = "caller"
) -> None:
    """Log only the first `n` times.

    Args:
        lvl: logging level.
        msg: the message.
        n: how often.
        name: of the logger; the calling module's by default.
        key: what counts as the same: "caller" (the line of code), "message", or both in a tuple.
    """
    module, line = _caller()
    key = (key,) if isinstance(key, str) else key
    same = (*((module, line) if "caller" in key else ()), *((msg,) if "message" in key else ()))
    _calls[same] += 1
    if _calls[same] <= n:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log the first and then every `n`-th call of the same line of code.

    Args:
        lvl: logging level.
        msg: the message.
        n: the period.
        name: of the logger; the calling module's by default.
    """
    module, line = _caller()
    _calls[module, line] += 1
    if n == 1 or _calls[module, line] % n == 1:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n_seconds(lvl: int, msg: str, n: float = 1, *, name: str | None = None) -> None:
    """Log unless the same line of code did so within `n` seconds.

    Args:
        lvl: logging level.
        msg: the message.
        n: seconds.
        name: of the logger; the calling module's by default.
    """
    module, line = _caller()
    now = time.monotonic()
    if now - _times.get((module, line), -math.inf) >= n:
        _times[module, line] = now
        logging.getLogger(name or module).log(lvl, msg)


def create_small_table(small_dict: Mapping[str, float]) -> str:
    """Names in one line and their numbers below, as a markdown table.

    Args:
        small_dict: a few numbers by name.
    """
    cells = [(name, f"{value:.3f}") for name, value in small_dict.items()]
    widths = [max(len(name), len(value)) for name, value in cells]
    rows = [[name for name, _ in cells], ["-" * w for w in widths], [value for _, value in cells]]
    lines = (" | ".join(f"{t:<{w}}" for t, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(f"| {line} |" for line in lines)


def _caller() -> tuple[str, int]:
    """Module and line that called the public function."""
    frame = sys._getframe(2)
    return frame.f_globals["__name__"], frame.f_lineno
