"""Pickles that hold data alone, such as files of proposals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segdet.checkpoint.catalog import locate
from segdet.checkpoint.unpickling import Refused, read_pickle
from segdet.errors import CheckpointError


def read_plain_pickle(address: str) -> tuple[Any, Path]:
    """Read a pickle of plain containers, numbers and numpy arrays, without running anything.

    Args:
        address: a path, or what `locate` takes.

    Returns:
        The content, and the file that it was read from.

    Raises:
        CheckpointError: no such file, a damaged one, or one that refers to other objects.
    """
    path = locate(address)[0]
    try:
        return read_pickle(path), path
    except Refused as error:
        raise CheckpointError(
            f"{path}: refers to the Python object {error}; the file was not loaded, as only plain "
            "containers, numbers and numpy arrays are"
        ) from None
    except Exception as error:  # a damaged file can fail in any way
        reason = (str(error).splitlines() or [""])[0]
        raise CheckpointError(
            f"{path}: cannot be read; it is cut short, damaged or no pickle "
            f"({type(error).__name__}: {reason})"
        ) from error
