"""Files of `torch.save`, of the zip format and of the one before, read without torch's unpickler.

Source: torch/serialization.py, which writes them.
"""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from segdet.checkpoint.unpickling import PLAIN, Refused, Unpickler, known_table

ZIP_START = b"PK\x03\x04"
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001

_DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "complex64", "complex128", "bool"),
    *("uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"),
    *("float8_e4m3fn", "float8_e5m2"),
)
_STORAGES = {  # what torch calls the memory of a dtype
    ("torch", "DoubleStorage"): torch.float64,
    ("torch", "FloatStorage"): torch.float32,
    ("torch", "HalfStorage"): torch.float16,
    ("torch", "BFloat16Storage"): torch.bfloat16,
    ("torch", "ComplexFloatStorage"): torch.complex64,
    ("torch", "ComplexDoubleStorage"): torch.complex128,
    ("torch", "BoolStorage"): torch.bool,
    ("torch", "ByteStorage"): torch.uint8,
    ("torch", "CharStorage"): torch.int8,
    ("torch", "ShortStorage"): torch.int16,
    ("torch", "IntStorage"): torch.int32,
    ("torch", "LongStorage"): torch.int64,
    ("torch.storage", "UntypedStorage"): torch.uint8,
}


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Tensor):
        raise TypeError("its storage is none")
    return storage.as_strided(tuple(size), tuple(stride), offset)  # refuses to leave the storage


def _rebuild_tensor_of_dtype(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> Tensor:
    return _rebuild_tensor(storage.view(dtype.value), offset, size, stride)


def _device(kind: Any, index: Any = 0) -> str:
    if type(kind) is not str or type(index) is not int:  # str() of nested lists has no bound
        raise Refused("torch.device of other objects")
    return f"{kind}:{index}"


def _rebuild_parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise TypeError("its data is no tensor")
    return data


def _rebuild_from_type(function: Any, kind: Any, args: Any, state: Any) -> Tensor:
    if getattr(function, "call", None) not in (_rebuild_tensor, _rebuild_tensor_of_dtype):
        raise Refused("torch._tensor._rebuild_from_type_v2 of another function")
    return function.call(*args)


TORCH = PLAIN | known_table(
    {
        ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_of_dtype,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
        ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
        ("torch", "Size"): lambda size=(): tuple(size),
        ("torch", "device"): _device,
        ("torch", "Tensor"): "Tensor",  # only ever an argument
        ("torch.nn.parameter", "Parameter"): "Parameter",
        **_STORAGES,
        **{("torch", name): getattr(torch, name) for name in _DTYPES if hasattr(torch, name)},
    }
)


class _TorchUnpickler(Unpickler):
    """Tensors lie in storages beside the pickle.

    Args:
        file: at the beginning of the pickle.
        storage: key and bytes -> that storage's memory, (bytes,) uint8.
        size: bytes of the whole file.
    """

    def __init__(self, file: BinaryIO, storage: Callable[[str, int], Tensor], size: int) -> None:
        super().__init__(file, TORCH, size)
        self._storage = storage

    def persistent_load(self, pid: Any) -> Tensor:
        """The storage that ("storage", type, key, device, elements) means, as a (elements,)."""
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"):
            return super().persistent_load(pid[0] if isinstance(pid, tuple) and pid else pid)
        _, kind, key, _, count, *view = pid
        dtype = getattr(kind, "value", None)
        if not isinstance(dtype, torch.dtype) or type(key) is not str:
            return super().persistent_load(key)
        if type(count) is not int or count < 0:
            return super().persistent_load(key)
        if view and view[0] is not None:
            raise pickle.UnpicklingError("has storages that are parts of others (PyTorch 0.1)")
        return self._storage(key, count * dtype.itemsize).view(dtype)


def read_zip(path: Path) -> Any:
    """The object of a file of PyTorch 1.6 or later: a zip of `data.pkl` and `data/KEY`."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = {one.filename: one for one in archive.infolist()}
        pickles = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
        if any(name.endswith("/constants.pkl") or "/code/" in name for name in entries):
            raise Refused("TorchScript archive, which holds code")
        if len(pickles) != 1:
            raise pickle.UnpicklingError("is a zip without the data.pkl of torch.save")
        plain = all(one.compress_type == zipfile.ZIP_STORED for one in entries.values())
        if not plain or sum(one.file_size for one in entries.values()) > size:
            raise pickle.UnpicklingError("has compressed parts, which torch.save does not write")
        top = pickles[0].removesuffix("data.pkl")
        order = f"{top}byteorder"
        if order in entries and archive.read(order).decode() != sys.byteorder:
            raise pickle.UnpicklingError("was written on a machine of the other byte order")
        storages: dict[str, Tensor] = {}

        def storage(key: str, count: int) -> Tensor:
            if key not in storages:
                data = bytearray(archive.read(f"{top}data/{key}"))
                storages[key] = torch.frombuffer(data or bytearray(1), dtype=torch.uint8)
                storages[key] = storages[key][: len(data)]
            if len(storages[key]) < count:
                raise EOFError(f"storage {key} ends early")
            return storages[key][:count]

        return _TorchUnpickler(io.BytesIO(archive.read(pickles[0])), storage, size).load()


def read_legacy(file: BinaryIO) -> Any:
    """The object of a file from before PyTorch 1.6: pickles, then the storages.

    Args:
        file: behind the first pickle, the magic number.
    """
    if Unpickler(file, PLAIN).load() != _PROTOCOL:
        raise pickle.UnpicklingError("has another version of torch's format")
    system = Unpickler(file, PLAIN).load()
    if not system.get("little_endian", True):
        raise pickle.UnpicklingError("was written on a machine of the other byte order")
    size = _size(file)
    storages: dict[str, Tensor] = {}
    left = size

    def storage(key: str, count: int) -> Tensor:
        nonlocal left
        if key not in storages:
            left -= count
            if left < 0:
                raise EOFError("it ends early")
            storages[key] = torch.empty(count, dtype=torch.uint8)
        if len(storages[key]) != count:
            raise pickle.UnpicklingError(f"has two sizes for storage {key}")
        return storages[key]

    content = _TorchUnpickler(file, storage, size).load()
    for key in Unpickler(file, PLAIN).load():
        memory = storages[key]
        file.read(8)  # the number of elements
        if file.readinto(memory.numpy()) != len(memory):  # type: ignore[attr-defined]
            raise EOFError("it ends early")
    return content


def is_legacy(first: Any) -> bool:
    """Whether the first pickle of a file says that torch wrote it."""
    return first == _MAGIC


def _size(file: BinaryIO) -> int:
    here = file.tell()
    size = file.seek(0, 2)
    file.seek(here)
    return size
