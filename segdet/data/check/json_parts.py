"""A large json in parts: its lists cut between their rows, so that processes can share them."""

from __future__ import annotations

import json
import mmap
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from segdet.data.defects import Defect
from segdet.data.limits import check_file
from segdet.data.readers.coco_json import parse_json, unique_keys

PART = 8_000_000  # bytes of a part; its rows take about ten times as much memory
_BLOCK = 16_000_000  # bytes that are scanned at once
_STEP = np.zeros(256, np.int8)  # what a byte outside a text adds to the depth
_STEP[[ord("{"), ord("[")]] = 1
_STEP[[ord("}"), ord("]")]] = -1


class BrokenPartError(Exception):
    """A part is no list of rows: parsing the whole file says what is wrong with it."""


@dataclass(frozen=True)
class Part:
    """Neighbouring rows of a list in a json."""

    file: Path
    begin: int = 0  # byte where the first row begins, or the comma before it
    end: int = 0  # byte after the last row
    first: int = 0  # number of the first row in its list
    rows: list[Any] | None = None  # where the file has been parsed as a whole

    def read(self) -> list[Any]:
        """The rows.

        Raises:
            BrokenPartError: there is no reading them.
        """
        if self.rows is not None:
            return self.rows
        with self.file.open("rb") as file:
            file.seek(self.begin)
            text = file.read(self.end - self.begin).lstrip(b" \t\r\n")
        rows = b"[" + text.removeprefix(b",") + b"]"
        try:
            return json.loads(rows, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError, Defect):
            raise BrokenPartError from None


@dataclass(frozen=True)
class JsonParts:
    """A file's object, with its lists in parts."""

    tree: dict[str, Any]  # the object; the lists that are in parts are empty in it
    lists: dict[str, list[Part]]


def whole(file: Path) -> JsonParts:
    """A file that is parsed at once: each list is one part.

    Raises:
        DataError: see `parse_json`.
    """
    tree = parse_json(file)
    lists = {key: [Part(file, rows=v)] for key, v in tree.items() if isinstance(v, list)}
    return JsonParts({key: [] if key in lists else v for key, v in tree.items()}, lists)


def in_parts(file: Path) -> JsonParts | None:
    """A file cut without parsing its rows; None where it is small, no UTF-8, or not well formed.

    Of what is not well formed within a row, nothing is seen: `Part.read` does.
    """
    try:
        check_file(file)
        if file.stat().st_size < 2 * PART:
            return None
        with (
            file.open("rb") as opened,
            mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            if json.detect_encoding(data[:4]) != "utf-8":
                return None
            spans = _lists_of(data)
            tree = None if spans is None else _without(data, [(s[0][0], s[-1][0]) for s in spans])
    except (OSError, ValueError, RecursionError, Defect):
        return None
    if spans is None or not isinstance(tree, dict):
        return None
    keys = [key for key, value in tree.items() if isinstance(value, list)]
    lists = {
        key: [Part(file, a, b, n) for (a, n), (b, _) in pairwise(cuts) if a < b]
        for key, cuts in zip(keys, spans, strict=True)
    }
    return JsonParts(tree, lists)


def _without(data: mmap.mmap, spans: list[tuple[int, int]]) -> Any:
    """The object without what is between its lists' brackets."""
    kept, at = [], 0
    for begin, end in spans:
        kept.append(data[at:begin])
        at = end
    return json.loads(b"".join([*kept, data[at:]]), object_pairs_hook=unique_keys)


def _lists_of(data: mmap.mmap) -> list[list[tuple[int, int]]] | None:
    """Of each list in the outermost object the bytes where it begins, may be cut, and ends.

    With each byte comes how many rows are before it. None where brackets or quotes do not come in
    pairs.
    """
    lists: list[list[tuple[int, int]]] = []
    depth, in_text, escaped, in_list, number = 0, False, False, False, 0
    for start in range(0, len(data), _BLOCK):
        block = np.frombuffer(data[start : start + _BLOCK], np.uint8)
        quotes, escaped = _quotes(block, escaped)
        brackets = np.flatnonzero(_STEP[block])
        brackets = brackets[(np.searchsorted(quotes, brackets) + in_text) % 2 == 0]
        in_text ^= bool(len(quotes) % 2)
        if not len(brackets):
            continue
        steps = _STEP[block[brackets]]
        depths = depth + np.cumsum(steps, dtype=np.int64)
        depth = int(depths[-1])
        if depths.min() < 0:
            return None
        # A list opens to depth 2; a row of it closes to depth 2; the list closes to depth 1.
        opens = (steps == 1) & (depths == 2) & (block[brackets] == ord("["))
        rows = (steps == -1) & (depths == 2)
        closes = (steps == -1) & (depths == 1)
        for place in np.flatnonzero(opens | rows | closes).tolist():
            at = start + int(brackets[place])
            if opens[place]:
                lists.append([(at + 1, 0)])
                in_list, number = True, 0
            elif closes[place]:
                if in_list:
                    lists[-1].append((at, number))
                in_list = False
            elif in_list:
                number += 1
                if at + 1 - lists[-1][-1][0] >= PART:
                    lists[-1].append((at + 1, number))
    return None if depth or in_text else lists


def _quotes(block: np.ndarray, escaped: bool) -> tuple[np.ndarray, bool]:
    """Where texts begin or end, and whether the first byte after the block is escaped."""
    quotes = np.flatnonzero(block == ord('"'))
    slashes = np.flatnonzero(block == ord("\\"))
    if not len(slashes) and not escaped:
        return quotes, False
    if escaped:  # the first byte counts for nothing
        quotes, slashes = quotes[quotes > 0], slashes[slashes > 0]
        if not len(slashes):
            return quotes, False
    # In a run of backslashes every other one escapes what follows it.
    begins = np.flatnonzero(np.diff(slashes, prepend=-2) != 1)
    lengths = np.diff(begins, append=len(slashes))
    after = slashes[begins] + lengths  # the byte behind each run
    odd = after[lengths % 2 == 1]
    return np.setdiff1d(quotes, odd, assume_unique=True), bool(len(odd) and odd[-1] == len(block))
