"""Records for a json file, kept on disk until the file is written: memory does not grow."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from segdet.utils import comm
from segdet.utils.writing import write_atomically

_AT_ONCE = 500  # rows that a process sends to the main one in a piece


class RowFile:
    """Rows that one or several processes collect for one list in a json file."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self._count = 0

    def add(self, row: Any) -> None:
        """Keep a row."""
        self._file.write(json.dumps(row) + "\n")
        self._count += 1

    def write(self, path: Path, *, head: str = "[", tail: str = "]", gather: bool = True) -> None:
        """Write the rows of all processes, by rank, as a list; the main process does it.

        Args:
            path: of the json; its folder is made.
            head: text before the rows, with the list's bracket.
            tail: text behind them.
            gather: every process calls this, for one file; otherwise this one writes its own.
        """
        chunks = self._gathered() if gather else iter([list(self._rows())])
        if gather and not comm.is_main_process():
            for _ in chunks:  # the main process waits for each
                pass
            return
        path.parent.mkdir(parents=True, exist_ok=True)

        def write(file: BinaryIO) -> None:
            file.write(head.encode())
            separator = "\n"
            for row in (row for chunk in chunks for row in chunk):
                file.write((separator + row).encode())
                separator = ",\n"
            file.write(f"\n{tail}".encode())

        write_atomically(path, write)

    def _rows(self) -> Iterator[str]:
        self._file.seek(0)
        return (line.rstrip("\n") for line in self._file)

    def _gathered(self) -> Iterator[list[str]]:
        """Pieces of all rows on the main process; empty ones elsewhere."""
        counts = comm.all_gather(self._count)
        for rank, count in enumerate(counts):
            rows = self._rows() if rank == comm.get_rank() else iter(())
            for _ in range(0, count, _AT_ONCE):
                parts = comm.gather(list(islice(rows, _AT_ONCE)))
                yield [row for part in parts for row in part]
