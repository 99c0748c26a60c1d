"""Processes that tests limit, signal, kill and wait for."""

import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import torch._dynamo

_FORK = multiprocessing.get_context("fork")  # a copy of this one: no time for imports
NOBODY = 65534  # root may write anywhere


def start(function: Callable[..., object], *args: object) -> multiprocessing.Process:
    """Call a function in a process of its own; it exits with 3 if that raises."""

    def call() -> None:
        os.close(2), os.open(os.devnull, os.O_WRONLY)
        torch.set_num_threads(1)  # those of the parent do not survive the fork: waiting never ends
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


class Forked:
    """A function in a copy of this process, with pipes and a process group of its own.

    It has what tests need of `subprocess.Popen`, which would have to import everything anew.
    """

    def __init__(self, function: Callable[[], object], env: dict[str, str]) -> None:
        self._code: int | None = None
        out, err = os.pipe(), os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.dup2(out[1], 1), os.dup2(err[1], 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            os.environ.update(env)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            _leave(function)
        for _, write in (out, err):
            os.close(write)
        self.stdout, self.stderr = os.fdopen(out[0]), os.fdopen(err[0])

    def poll(self) -> int | None:
        if self._code is None and (found := os.waitpid(self.pid, os.WNOHANG))[0]:
            self._code = os.waitstatus_to_exitcode(found[1])
        return self._code

    def wait(self, timeout: float = 60) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < end, "it does not end"
            time.sleep(0.01)
        assert self._code is not None
        return self._code

    @property
    def returncode(self) -> int | None:
        return self._code

    def communicate(self, timeout: float = 60) -> tuple[str, str]:
        """Its output is short enough for the pipes to hold it."""
        self.wait(timeout)
        return self.stdout.read(), self.stderr.read()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _leave(function: Callable[[], object]) -> NoReturn:
    code = 1
    try:
        function()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        multiprocessing.util._exit_function()  # as at the end of any process
        os._exit(code)


@contextmanager
def folder_for_all() -> Iterator[Path]:
    """One that other users may look into, as pytest's own may not."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        yield Path(name)
