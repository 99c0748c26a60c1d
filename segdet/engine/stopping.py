"""Ending a run on SIGTERM or SIGINT: the iteration is finished, a checkpoint saved, work kept."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from segdet.utils import comm


class Stopped(SystemExit):
    """A signal ends the run; the exit code is the conventional one, 143 or 130.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class StopSignals:
    """While open, SIGTERM and SIGINT are noted; a second SIGINT ends the process at once.

    Where Python allows no handlers (outside of the main thread) signals do what they did before.
    """

    def __init__(self) -> None:
        self._received: list[int] = []
        self._before: dict[int, Any] = {}
        self._may_interrupt = False

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGINT and number in self._received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        # Not by print or a logger, which may be in the middle of a line.
        how = "ends" if self._may_interrupt else "finishes its iteration"
        os.write(2, f"{name}: this run {how}, saves and exits; SIGINT again: at once\n".encode())
        self._received.append(number)
        if self._may_interrupt:
            self._may_interrupt = False
            raise Stopped(number)

    def agreed(self) -> int:
        """The signal that ends the run, 0 for none; the same in all processes, which all call."""
        number = self._received[0] if self._received else 0
        if comm.get_world_size() == 1:
            return number
        highest = torch.tensor(number)
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=comm.cpu_group())
        return int(highest)

    @contextmanager
    def may_interrupt(self) -> Iterator[None]:
        """Within, a signal raises `Stopped` at once: for what a resumed run does again."""
        if self._received:
            raise Stopped(self._received[0])
        self._may_interrupt = True
        try:
            yield
        finally:
            self._may_interrupt = False
