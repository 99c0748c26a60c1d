"""Reading weight files of every known format without running anything that they hold."""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from segdet.errors import CheckpointError


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a weight file.

    `.safetensors` and `.pkl` (a pickle of numpy arrays) go by their suffix; any other file is read
    as torch saves them.

    Returns:
        `model`: the tensors by name, on the CPU; `matching_heuristics`: True where the file asks
        for suffix matching; and what else the file holds (`iteration`, `trainer`, ...).

    Raises:
        CheckpointError: the file is damaged, of another kind, or refers to code.
    """
    readers = {".safetensors": safetensors.torch.load_file, ".pkl": _read_pickle}
    try:
        content = readers.get(path.suffix, _read_torch)(path)
    except _Refused as error:
        raise CheckpointError(
            f"{path}: refers to the Python object {error}, which weights have no need of; the file "
            f"was not loaded. Save a plain dict of tensors with the program that it comes from"
        ) from None
    except Exception as error:  # a damaged file can fail in any way
        reason = (str(error).splitlines() or [""])[0]
        raise CheckpointError(
            f"{path}: cannot be read; it is cut short, damaged or no weight file "
            f"({type(error).__name__}: {reason})"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dict of weights")
    checkpoint = _unwrap(content)
    checkpoint["model"] = _to_tensors(checkpoint["model"], path)
    return checkpoint


def _unwrap(content: dict[str, Any]) -> dict[str, Any]:
    """Bring the known layouts to one, with the weights under `model`."""
    if isinstance(content.get("model"), dict):  # segdet, detectron2, its zoo
        return dict(content)
    if isinstance(content.get("model_state"), dict):  # pycls
        return {"model": content["model_state"], "matching_heuristics": True}
    for wrapper in ("state_dict", "blobs"):  # many training scripts; Detectron
        if isinstance(content.get(wrapper), dict):
            return {"model": content[wrapper]}
    return {"model": content}


def _to_tensors(weights: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The same dict (torch keeps module versions in an attribute of it), holding tensors."""
    for name, value in weights.items():
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
            weights[name] = torch.tensor(value)
        elif not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: {name!r} is of type {type(value).__name__}, not a tensor; "
                f"this is no file of weights"
            )
    return weights


class _Refused(Exception):
    """A file refers to this object, which is not on the list."""


_RECONSTRUCT = np.zeros(1).__reduce__()[0]
_SCALAR = np.float64(0).__reduce__()[0]


def _read_torch(path: Path) -> Any:
    numpy_names: list[Any] = [np.ndarray, np.dtype, bytes, _RECONSTRUCT, _SCALAR]
    numpy_names += {type(np.dtype(code)) for code in "?bhilqBHILQefdFD"}
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # numpy 1 and 2
        numpy_names += [(_RECONSTRUCT, f"{module}._reconstruct"), (_SCALAR, f"{module}.scalar")]
    try:
        with torch.serialization.safe_globals(numpy_names):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise _Refused(refused[1]) from None
        raise pickle.UnpicklingError(str(error).rpartition("error:")[2].strip()) from error


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        return _Unpickler(file, encoding="latin1").load()  # the zoo's files are of Python 2


class _Unpickler(pickle.Unpickler):
    """Knows numbers, strings, containers and numpy arrays of numbers; refuses all else."""

    def find_class(self, module: str, name: str) -> Any:
        known = module.replace("numpy._core", "numpy.core").replace("__builtin__", "builtins")
        if (known, name) not in _PICKLED:
            raise _Refused(f"{module}.{name}")
        return _PICKLED[known, name]


def _number_type(code: Any, *_: Any) -> np.dtype:
    dtype = np.dtype(code, copy=True)  # a copy: the pickle goes on to change it
    if dtype.kind not in "biufcSU":
        raise _Refused(f"numpy.dtype({code!r})")
    return dtype


def _empty_array(*_: Any) -> np.ndarray:
    return np.empty(0, np.int8)  # the pickle goes on to fill it


def _array(buffer: Any, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)  # type: ignore[call-overload]


def _scalar(dtype: np.dtype, data: bytes | str) -> np.generic:
    return np.frombuffer(_latin1(data), dtype)[0]


def _latin1(data: bytes | str, encoding: str = "latin1") -> bytes:
    return data.encode("latin1") if isinstance(data, str) else data


def _no_bytes() -> bytes:
    return b""  # which old protocols cannot write down


_PICKLED: dict[tuple[str, str], Callable[..., Any] | str] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): "ndarray",  # only ever an argument of _reconstruct
    ("numpy", "dtype"): _number_type,
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _array,
    ("_codecs", "encode"): _latin1,
    ("builtins", "bytes"): _no_bytes,
}
