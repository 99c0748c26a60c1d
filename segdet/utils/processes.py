"""Processes that end together."""

from __future__ import annotations

import multiprocessing
import os
import signal

import torch.multiprocessing as mp


def end_with_parent(number: signal.Signals) -> None:
    """Let this process get a signal when the one that started it dies; on Linux."""
    mp._prctl_pr_set_pdeathsig(number)  # type: ignore[attr-defined]
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():  # since before
        os.kill(os.getpid(), number)
