"""Work that is shared among processes, with a bar that shows how far it is."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from tqdm import tqdm

_function: Callable[[Any, Any], Any]
_context: Any = None


def spread(
    function: Callable[[Any, Any], Any],
    context: Any,
    tasks: Sequence[Any],
    *,
    workers: int,
    what: str,
) -> Iterator[Any]:
    """`function(context, task)` of each task, in their order.

    Args:
        function: of a module's top level.
        context: what it needs besides; it reaches each process once.
        tasks: small enough to be sent.
        workers: processes; with 1 it is done in this one.
        what: for the bar, which is shown on a terminal alone.
    """
    bar = {"total": len(tasks), "desc": what, "disable": None, "leave": False}
    if workers <= 1 or len(tasks) <= 1:
        yield from tqdm((function(context, task) for task in tasks), **bar)
        return
    # Forked processes share what has been read so far; elsewhere it is sent to them.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    with ProcessPoolExecutor(
        min(workers, len(tasks)),
        multiprocessing.get_context(method),
        initializer=_start,
        initargs=(function, context),
    ) as pool:
        yield from tqdm(pool.map(_call, tasks), **bar)


def _start(function: Callable[[Any, Any], Any], context: Any) -> None:
    global _function, _context
    _function, _context = function, context


def _call(task: Any) -> Any:
    return _function(_context, task)


def count_of_workers() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
