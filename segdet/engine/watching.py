"""Waiting for the processes of one run: the first that fails ends all, and is named."""

from __future__ import annotations

import multiprocessing.connection
import os
import signal
import time
from collections.abc import Sequence
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Any

from segdet.engine.stopping import Stopped
from segdet.errors import ProcessError

_STOPPED = (128 + signal.SIGTERM, 128 + signal.SIGINT)
_GRACE = 10.0  # seconds in which the others of a failed process end by themselves
_SAVING = 300.0  # seconds for those that were asked to stop


def wait_for(processes: Sequence[SpawnProcess], first_rank: int, errors: Any) -> None:
    """Wait for the end of all.

    A signal to this process is passed on: theirs is to finish the iteration and to save.

    Args:
        processes: of this machine, started.
        first_rank: of the first of them.
        errors: a queue of (rank, exception) that they put what they raise into.

    Raises:
        Stopped: a signal ended the run.
        ProcessError: a process died, or lost the others; it says which, and where each was.
        Exception: what a process raised.
    """
    received: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and number in received:
            for process in processes:
                process.kill()
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        received.append(number)
        # SIGTERM, whatever came: a terminal has sent its SIGINT to them, too.
        _terminate(processes)

    before = {n: signal.signal(n, pass_on) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        first = _first_failure(processes)
        if first is not None:
            _end(processes, _SAVING if first.exitcode in _STOPPED else _GRACE)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if first is None:
        return
    raised = []
    while not errors.empty():
        raised.append(errors.get())
    _raise_the_cause([p.exitcode for p in processes], first_rank, raised, received)


def _first_failure(processes: Sequence[SpawnProcess]) -> SpawnProcess | None:
    running = {process.sentinel: process for process in processes}
    while running:
        for sentinel in multiprocessing.connection.wait(list(running)):
            process = running.pop(sentinel)  # pyright: ignore[reportArgumentType]
            process.join()
            if process.exitcode:
                return process
    return None


def _end(processes: Sequence[SpawnProcess], seconds: float) -> None:
    end = time.monotonic() + seconds
    stopped = seconds == _SAVING
    if stopped:
        _terminate(processes)  # one of them may have been asked alone
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    _terminate(processes)
    for process in processes:
        process.join(_GRACE)
        if process.is_alive():
            process.kill()
            process.join()


def _terminate(processes: Sequence[SpawnProcess]) -> None:
    for process in processes:
        if process.is_alive():
            process.terminate()


def _raise_the_cause(
    codes: list[int | None],
    first_rank: int,
    raised: list[tuple[int, Exception]],
    received: list[int],
) -> None:
    """Of what the processes ended with, that which made the others fail."""
    lost = [(rank, e) for rank, e in raised if isinstance(e, ProcessError)]
    own = [(rank, e) for rank, e in raised if not isinstance(e, ProcessError)]
    if own:
        raise own[0][1]
    ranks = {rank for rank, _ in raised}
    died = {
        first_rank + i: code
        for i, code in enumerate(codes)
        if code and first_rank + i not in ranks and code not in _STOPPED
    }
    killed = {rank: -code for rank, code in died.items() if code < 0 and -code != signal.SIGTERM}
    where = f". {lost[0][1]}" if lost else ""
    if killed:
        rank, number = next(iter(killed.items()))
        name = signal.Signals(number).name
        hint = " (as a machine short of memory does)" if number == signal.SIGKILL else ""
        raise ProcessError(f"process {rank} was ended by {name}{hint}{where}")
    if lost:
        raise lost[0][1]
    stops = received + [code - 128 for code in codes if code in _STOPPED]
    if stops:
        raise Stopped(stops[0])
    rank, code = next(iter(died.items()))
    raise ProcessError(f"process {rank} ended with exit code {code}")
