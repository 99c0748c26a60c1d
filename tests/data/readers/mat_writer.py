"""Writes MATLAB files of version 5, as far as tests need it."""

import struct
import zlib
from pathlib import Path

import numpy as np

CLASSES = {"f8": 6, "f4": 7, "i1": 8, "u1": 9, "i2": 10, "u2": 11, "i4": 12, "u4": 13}
TYPES = {"i1": 1, "u1": 2, "i2": 3, "u2": 4, "i4": 5, "u4": 6, "f4": 7, "f8": 9}
CELL, STRUCT, CHAR, MATRIX, COMPRESSED = 1, 2, 4, 14, 15


def element(kind: int, data: bytes, order: str = "<") -> bytes:
    if 0 < len(data) <= 4:
        return struct.pack(f"{order}I", len(data) << 16 | kind) + data.ljust(4, b"\0")
    return struct.pack(f"{order}II", kind, len(data)) + data + bytes(-len(data) % 8)


def array(kind: int, shape: tuple[int, ...], name: str, rest: bytes, order: str = "<") -> bytes:
    flags = element(6, struct.pack(f"{order}II", kind, 0), order)
    sizes = element(5, struct.pack(f"{order}{len(shape)}i", *shape), order)
    return element(MATRIX, flags + sizes + element(1, name.encode(), order) + rest, order)


def numbers(values: np.ndarray, stored: str = "", order: str = "<") -> bytes:
    """An array; MATLAB stores whole doubles as bytes, so `stored` may be a smaller type."""
    letter = values.dtype.str[1:]
    data = values.astype(f"{order}{stored or letter}").tobytes(order="F")
    content = element(TYPES[stored or letter], data, order)
    return array(CLASSES[letter], values.shape, "", content, order)


def structure(name: str, fields: dict[str, bytes], order: str = "<") -> bytes:
    names = b"".join(one.encode().ljust(32, b"\0") for one in fields)
    content = element(5, struct.pack(f"{order}i", 32), order) + element(1, names, order)
    return array(STRUCT, (1, 1), name, content + b"".join(fields.values()), order)


def write_mat(file: Path, *variables: bytes, packed: bool = True, order: str = "<") -> None:
    mark = b"\x00\x01IM" if order == "<" else b"\x01\x00MI"
    body = b""
    for one in variables:
        small = zlib.compress(one)
        body += struct.pack(f"{order}II", COMPRESSED, len(small)) + small if packed else one
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + mark + body)
