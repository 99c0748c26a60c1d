"""One training run for each output folder."""

from __future__ import annotations

import datetime
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

from segdet.errors import ConfigError

_log = logging.getLogger(__name__)

LOCK = ".lock"


@contextmanager
def output_lock(folder: Path) -> Iterator[None]:
    """Keep the folder for this process, as long as it lives.

    The operating system forgets the lock with the process, so a killed run leaves none; its
    loader workers do not hold it.

    Args:
        folder: of the run, OUTPUT_DIR.

    Raises:
        ConfigError: another process has it.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)  # which unlocks


def _lock(descriptor: int, folder: Path) -> None:
    assert fcntl is not None, "checked by the caller"
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        owner = os.read(descriptor, 200).decode(errors="replace") or "another process"
        raise ConfigError(
            f"OUTPUT_DIR {folder} is in use by {owner}; wait for its end or choose another folder"
        ) from None
    except OSError as error:
        _log.warning("%s cannot be locked (%s): start no second run in it", folder, error.strerror)
        return
    now = datetime.datetime.now().isoformat(" ", "seconds")
    os.ftruncate(descriptor, 0)
    text = f"process {os.getpid()} on {socket.gethostname()} since {now}"
    os.pwrite(descriptor, text.encode(), 0)
