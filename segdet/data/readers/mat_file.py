"""Reads numbers from MATLAB's files of version 5 (what `save` writes), without running anything.

Source: MathWorks, "MAT-File Format", chapter 1, "Level 5 MAT-File Format".
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segdet.data.defects import Defect

HEADER = 128  # bytes; the last two tell the byte order
LARGEST = 1 << 28  # bytes of an unpacked variable; more is damage or malice
# Numbers in the file: type -> numpy's letter.
_TYPES = {
    **{1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"},
}
_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCT, _SPARSE = 1, 2, 5
_NUMERIC = range(6, 16)  # classes of arrays: double to uint64
_COMPLEX = 0x0800


def read_mat_struct(file: str | os.PathLike[str], name: str) -> dict[str, np.ndarray]:
    """The fields of a 1 x 1 structure that are plain arrays of real numbers.

    Args:
        file: written by `save`, packed or not.
        name: of the variable.

    Returns:
        (rows, columns, ...) arrays by name; fields of other kinds (cells, text, sparse) are left
        out.

    Raises:
        DataError: the file is absent, damaged, of another version, or has no such structure.
    """
    try:
        content = Path(file).read_bytes()
        if content[124:128] not in (b"\x00\x01IM", b"\x01\x00MI"):
            raise ValueError("it is no MATLAB file of version 5; save with -v6 or -v7")
        order = "<" if content[126:128] == b"IM" else ">"
        for element in _variables(content, order):
            array = _Array.read(element)
            if array.name == name and array.kind == _STRUCT and math.prod(array.shape) == 1:
                return array.fields()
        raise ValueError(f"it has no 1 x 1 structure {name}")
    except OSError as error:
        reason = error.strerror or error
        raise Defect("file-unreadable", f"{file}: cannot be read ({reason})") from None
    except (struct.error, zlib.error, IndexError, ValueError) as error:
        raise Defect("file-unreadable", f"{file}: cannot be read ({error})") from None


@dataclass(frozen=True)
class _Element:
    """A piece of the file: a type and bytes."""

    type: int
    data: bytes
    order: str  # of bytes: "<" or ">"

    def numbers(self) -> np.ndarray:
        if self.type not in _TYPES:
            raise ValueError(f"numbers of type {self.type}")
        return np.frombuffer(self.data, f"{self.order}{_TYPES[self.type]}")

    def elements(self) -> Iterator[_Element]:
        return _elements(self.data, self.order)


def _elements(data: bytes, order: str) -> Iterator[_Element]:
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        start = at + 8
        if kind >> 16:  # at most 4 bytes, packed into the tag
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
        if start + size > len(data) or (start == at + 4 and size > 4):
            raise ValueError("cut short")
        yield _Element(kind, data[start : start + size], order)
        is_padded = kind != _COMPRESSED and start == at + 8
        at = at + 8 if start == at + 4 else start + size + (-size % 8 if is_padded else 0)


def _variables(content: bytes, order: str) -> Iterator[_Element]:
    for element in _elements(content[HEADER:], order):
        if element.type == _COMPRESSED:
            unpacker = zlib.decompressobj()
            data = unpacker.decompress(element.data, LARGEST)
            if unpacker.unconsumed_tail:
                raise ValueError(f"a variable of more than {LARGEST} bytes")
            yield from (one for one in _elements(data, order) if one.type == _MATRIX)
        elif element.type == _MATRIX:
            yield element


@dataclass(frozen=True)
class _Array:
    """A variable, or a field of one."""

    kind: int
    is_complex: bool
    shape: tuple[int, ...]
    name: str
    rest: list[_Element]

    @classmethod
    def read(cls, element: _Element) -> _Array:
        flags, shape, name, *rest = element.elements()
        word = int(flags.numbers()[0])
        sizes = tuple(int(n) for n in shape.numbers())
        if any(n < 0 for n in sizes):
            raise ValueError(f"an array of shape {sizes}")
        text = name.data.decode("ascii")
        return cls(word & 0xFF, bool(word & _COMPLEX), sizes, text, rest)

    def fields(self) -> dict[str, np.ndarray]:
        """Of a structure."""
        length, names, *values = self.rest
        width = int(length.numbers()[0])
        if width < 1:
            raise ValueError(f"names of {width} letters")
        cut = (names.data[i : i + width] for i in range(0, len(names.data), width))
        found: dict[str, Any] = {}
        for letters, value in zip(cut, values, strict=True):
            name = letters.rstrip(b"\0").decode("ascii")
            array = _Array.read(value) if value.data else None  # an empty one may be left out
            if array is not None and array.kind in _NUMERIC and not array.is_complex:
                found[name] = array.numbers()
        return found

    def numbers(self) -> np.ndarray:
        """Of an array of numbers."""
        values = self.rest[0].numbers()
        if len(values) != math.prod(self.shape):
            raise ValueError(f"{len(values)} numbers in an array of shape {self.shape}")
        return values.reshape(self.shape, order="F")
