"""`checkpoints.json`: the hashes of a folder's checkpoints, by which a damaged one is known."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from segdet.checkpoint.reading import read_checkpoint
from segdet.errors import CheckpointError
from segdet.utils.writing import write_atomically, write_text_atomically

_log = logging.getLogger("segdet.checkpoint")

MANIFEST = "checkpoints.json"


class _Hashing:
    """A file that is only written to, and the hash of what was; torch.save hides why it fails."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.hash = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()


def save_whole(path: Path, content: dict[str, Any], *, listed: bool = True) -> None:
    """`torch.save`, all or nothing, with the hash in the manifest before the file is there.

    Args:
        path: replaced if it exists.
        content: what to save.
        listed: whether the manifest names it.

    Raises:
        OSError: no space, no permission; what was there is as it was.
    """
    digest = ""

    def write(file: BinaryIO) -> None:
        nonlocal digest
        hashing = _Hashing(file)
        try:
            torch.save(content, cast("BinaryIO", hashing))
        except Exception:
            if hashing.error is not None:
                raise hashing.error from None
            raise
        digest = hashing.hash.hexdigest()
        if listed:  # beside those before, of which the file has one until it is replaced
            _record(path, [*read_manifest(path.parent).get(path.name, []), digest])

    write_atomically(path, write)
    if listed:
        _record(path, [digest])


def _record(path: Path, digests: list[str]) -> None:
    """Set the hashes that a file may have, and forget files that are gone."""
    hashes = read_manifest(path.parent)
    hashes.pop(path.name, None)
    hashes = {name: known for name, known in hashes.items() if (path.parent / name).is_file()}
    hashes[path.name] = digests
    write_text_atomically(path.parent / MANIFEST, json.dumps({"sha256": hashes}, indent=1))


def read_manifest(folder: Path) -> dict[str, list[str]]:
    """File name -> the SHA-256 that it may have; the checkpoint saved last is the last entry."""
    try:
        hashes = json.loads((folder / MANIFEST).read_bytes())["sha256"]
        return {str(name): [str(one) for one in known] for name, known in hashes.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        _log.warning("%s is damaged: checkpoints are known by reading them", folder / MANIFEST)
        return {}


def defect_of(path: Path) -> str:
    """What is wrong with a checkpoint; "" if it is whole."""
    known = read_manifest(path.parent).get(path.name)
    try:
        if known is None:
            read_checkpoint(path)
        else:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() not in known:
                    return f"{path} is damaged: its hash is not the one in {MANIFEST}"
    except CheckpointError as error:
        return str(error)
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}"
    return ""


def numbered_before(folder: Path, name: str) -> list[Path]:
    """The numbered checkpoints of a folder, those saved last first.

    Args:
        folder: of the checkpoints.
        name: of one; the numbers are below its own, if it has one.
    """
    order = {known: place for place, known in enumerate(read_manifest(folder))}
    limit = _number(name)
    found = [path for path in folder.glob("*.pth") if _number(path.name) is not None]
    if limit is not None:
        found = [path for path in found if (_number(path.name) or 0) < limit]
    found = [path for path in found if path.name != name]
    return sorted(found, key=lambda p: (order.get(p.name, -1), _number(p.name)), reverse=True)


def _number(name: str) -> int | None:
    match = re.search(r"_(\d{7,})\.pth$", name)
    return int(match[1]) if match else None
