"""Pickles put together opcode by opcode, and the files that hold them."""

import pickle
import struct
import zipfile

import numpy as np

CONTAINERS = ["a.pkl", "zipped.pth", "legacy.pth"]


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def name(module: str, attribute: str) -> bytes:
    return b"c" + f"{module}\n{attribute}\n".encode()


def args(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def call(module: str, attribute: str, *values: bytes) -> bytes:
    return name(module, attribute) + args(*values) + b"R"


def number(value: int) -> bytes:
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def array_of(dtype: bytes, data: bytes) -> bytes:
    """As numpy writes arrays, of this dtype and content."""
    empty = call(
        "numpy.core.multiarray", "_reconstruct", name("numpy", "ndarray"), args(b"K\0"), text("b")
    )
    return empty + args(b"K\1", args(b"K\1"), dtype, b"\x89", data) + b"b"


FLOAT = call("numpy", "dtype", text("f4"), b"\x89", b"\x88")
OBJECT = call("numpy", "dtype", text("O8"), b"\x89", b"\x88")
ORDERED = name("collections", "OrderedDict") + b")R"
STORAGE = (
    args(text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), b"K\4") + b"Q"
)


def tensor(size: int, stride: int, offset: int) -> bytes:
    shape = args(number(size)), args(number(stride))
    return call(
        "torch._utils", "_rebuild_tensor_v2", STORAGE, number(offset), *shape, b"\x89", ORDERED
    )


def write(path, body: bytes, *, place: str = "model") -> None:
    """A file whose dict has the object of `body` at `place`."""
    weights = text("model") + b"}s" if place != "model" else b""
    data = b"\x80\x02}" + weights + text(place) + b"}" + text("a") + body + b"ss."
    values = np.arange(4, dtype=np.float32).tobytes()
    if path.name == "zipped.pth":
        with zipfile.ZipFile(path, "w") as archive:
            for entry, content in {"data.pkl": data, "data/0": values, "version": b"3\n"}.items():
                archive.writestr(f"archive/{entry}", content)
    elif path.name == "legacy.pth":
        info = {"protocol_version": 1001, "little_endian": True}
        start = b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, info))
        path.write_bytes(start + data + pickle.dumps(["0"], 2) + struct.pack("<q", 4) + values)
    else:
        path.write_bytes(data)
