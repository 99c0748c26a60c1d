"""Writing files so that a crash leaves the old one or the new one, never half; their folders."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from segdet.errors import ConfigError


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file under a temporary name in the same folder, then give it its own.

    Args:
        path: replaced if it exists.
        write: puts the content into the open file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_text_atomically(path: Path, text: str) -> None:
    """The same for a text, which becomes UTF-8."""
    write_atomically(path, lambda file: file.write(text.encode()))


def make_output_folder(path: Path, setting: str = "OUTPUT_DIR") -> None:
    """Make a folder, unless it is there.

    Args:
        path: of the folder.
        setting: the key or flag that named it, or a file in it.

    Raises:
        ConfigError: it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(path, os.W_OK | os.X_OK) else "it is not writable"
    except FileExistsError:
        reason = "it is a file"
    except OSError as error:
        reason = error.strerror
    if reason:
        raise ConfigError(f"{setting} {path} cannot be used: {reason}; choose another folder")


def make_room_for(file: str | os.PathLike[str], setting: str, *, may_exist: bool = True) -> Path:
    """Before the work whose result a file will hold: make its folder.

    Args:
        file: where it goes.
        setting: the flag that named it.
        may_exist: it will be replaced.

    Raises:
        ConfigError: the file is a folder, or there and may not be; or its folder cannot be made or
            written to.
    """
    path = Path(file)
    if path.is_dir():
        raise ConfigError(f"{setting} {path} cannot be used: it is a folder; name a file")
    if path.exists() and not may_exist:
        raise ConfigError(f"{setting} {path} exists; name another file")
    make_output_folder(path.parent, f"{setting} {path}: its folder")
    return path


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writers left; only while no other process writes into the folder."""
    for path in folder.glob(".*.*.tmp"):
        if path.name.split(".")[-2].isdigit():
            path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut; Windows opens no folders and does it by itself."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
