"""`PathManager`: files by path or by the addresses that configs name weights by."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import IO, Any

from segdet.checkpoint.catalog import locate
from segdet.errors import CheckpointError


class _PathManager:
    """The file functions of detectron2's `PathManager`.

    `detectron2://`, `catalog://` and http addresses mean files on this machine, found as the
    weights of a config are (docs/migrate.md); everything else is a path.
    """

    def get_local_path(self, path: str | os.PathLike[str], **_: Any) -> str:
        """The local file of an address; a path as it is, whether it exists or not.

        Raises:
            CheckpointError: an address whose file is not here.
        """
        name = os.fspath(path)
        return str(locate(name)[0]) if "://" in name else name

    def open(self, path: str | os.PathLike[str], mode: str = "r", **options: Any) -> IO[Any]:
        """Python's `open`."""
        return open(self.get_local_path(path), mode, **options)

    def exists(self, path: str | os.PathLike[str]) -> bool:
        """Whether there is a file or folder."""
        try:
            return os.path.exists(self.get_local_path(path))
        except CheckpointError:
            return False

    def isfile(self, path: str | os.PathLike[str]) -> bool:
        """Whether there is a file."""
        return self.exists(path) and os.path.isfile(self.get_local_path(path))

    def isdir(self, path: str | os.PathLike[str]) -> bool:
        """Whether there is a folder."""
        return os.path.isdir(path)

    def ls(self, path: str | os.PathLike[str]) -> list[str]:
        """The names in a folder."""
        return os.listdir(path)

    def mkdirs(self, path: str | os.PathLike[str]) -> None:
        """Make a folder and those above it, where they are missing."""
        os.makedirs(path, exist_ok=True)

    def rm(self, path: str | os.PathLike[str]) -> None:
        """Remove a file."""
        Path(path).unlink()

    def copy(
        self,
        src_path: str | os.PathLike[str],
        dst_path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
    ) -> bool:
        """Copy a file.

        Returns:
            False where `dst_path` is there and may not be overwritten.
        """
        if os.path.exists(dst_path) and not overwrite:
            return False
        shutil.copyfile(self.get_local_path(src_path), dst_path)
        return True


PathManager = _PathManager()
