"""Processes that tests limit, kill and wait for."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_FORK = multiprocessing.get_context("fork")  # a copy of this one: no time for imports
NOBODY = 65534  # root may write anywhere


def start(function: Callable[..., object], *args: object) -> multiprocessing.Process:
    """Call a function in a process of its own; it exits with 3 if that raises."""

    def call() -> None:
        os.close(2), os.open(os.devnull, os.O_WRONLY)
        try:
            function(*args)
        except BaseException:
            os._exit(3)
        os._exit(0)

    process = _FORK.Process(target=call)
    process.start()
    return process


def exit_code_of(function: Callable[..., object], *args: object) -> int | None:
    """0, 3 if it raised, or minus the signal that ended it."""
    process = start(function, *args)
    process.join(60)
    return process.exitcode


@contextmanager
def folder_for_all() -> Iterator[Path]:
    """One that other users may look into, as pytest's own may not."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        yield Path(name)
