"""A pickle reader that knows plain containers, numbers and arrays, and calls nothing else."""

from __future__ import annotations

import os
import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
from torch import Tensor

_ATOMS = (str, int, float, complex, bool, bytes, type(None))
_DEEPEST = 100  # containers in containers, of which real files have about ten
_SPARE = 1 << 26  # bytes that a small file may grow by


class Refused(Exception):
    """A file refers to this object, which is not on the list of those that weights need."""

    def __init__(self, name: str) -> None:
        printable = "".join(one if one.isprintable() else "?" for one in name[:200])
        super().__init__(printable)


@dataclass(frozen=True, eq=False)
class Known:
    """What stands for one of the Python objects that a file may name.

    Attributes:
        name: of the object in the file.
        call: takes the arguments that the file gives; None: it is only ever an argument.
        value: what it tells whom it is an argument of.
    """

    name: str
    call: Callable[..., Any] | None = None
    value: Any = None


class Unpickler(pickle._Unpickler):
    """Reads one pickle after another from a file.

    Nothing is looked up in Python's modules: each name that a file may use stands in a table, with
    a function of ours. No instances are made, no attributes set, and what a file makes us
    allocate is bounded by its size.

    Args:
        file: opened for reading, at the beginning of a pickle.
        table: (module, name) -> what it stands for.
        size: bytes of the file as a whole, where the pickle is only a part of it.
    """

    # What pickle's own class works on.
    stack: list[Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    readline: Callable[[], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(
        self, file: BinaryIO, table: Mapping[tuple[str, str], Known], size: int = 0
    ) -> None:
        bounded = _BoundedFile(file)
        super().__init__(bounded, encoding="latin1")  # Python 2 wrote bytes as text
        self._table = table
        self._budget = 8 * max(size, bounded.size) + _SPARE

    def load(self) -> Any:
        """The next object, of dicts, lists, tuples, sets, numbers, text, arrays and tensors."""
        return _plain(super().load(), {}, 0)

    def spend(self, count: int) -> None:
        """Note that `count` bytes were allocated.

        Raises:
            UnpicklingError: a file of this size has no need of so much.
        """
        self._budget -= count
        if self._budget < 0:
            raise pickle.UnpicklingError("asks for far more memory than the file's size")

    def find_class(self, module: str, name: str) -> Any:
        """What the table has for a name."""
        today = module.replace("numpy._core", "numpy.core").replace("__builtin__", "builtins")
        known = self._table.get((today, name))
        if known is None:
            raise Refused(f"{module}.{name}")
        return known

    def get_extension(self, code: int) -> None:
        """Refuse the names that another program gave a number (`copyreg.add_extension`)."""
        raise Refused(f"copyreg extension {code}")

    def persistent_load(self, pid: Any) -> Any:
        """Refuse objects outside the pickle; files of torch have storages there."""
        raise Refused(f"persistent id {_short(pid)}")

    def _load_reduce(self) -> None:
        args = self.stack.pop()
        function = self.stack[-1]
        if not isinstance(function, Known) or function.call is None:
            raise Refused(f"call of {_describe(function)}")
        try:
            result = function.call(*args)
        except (TypeError, ValueError, KeyError, IndexError, RuntimeError, OverflowError) as error:
            reason = str(error).partition("\n")[0][:200]
            raise pickle.UnpicklingError(f"bad arguments of {function.name}: {reason}") from None
        self.spend(_size(result))
        self.stack[-1] = result

    def _load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, _Array | _Dtype):
            target.set_state(state)
            self.spend(_size(target))
        elif isinstance(target, OrderedDict) and isinstance(state, dict):
            for key in set(state) - {"_metadata"}:
                raise Refused(f"collections.OrderedDict.{key}")
            target._metadata = state.get("_metadata")  # type: ignore[attr-defined]
        else:
            raise Refused(f"{_describe(target)}.__setstate__")

    def _load_instance(self) -> None:
        named = (one for one in reversed(self.stack) if isinstance(one, Known))
        raise Refused(f"instance of {_describe(next(named, None))}")

    def _load_inst(self) -> None:
        module, name = (self.readline()[:-1].decode("ascii", "replace") for _ in range(2))
        self.find_class(module, name)
        raise Refused(f"instance of {module}.{name}")

    def _load_obj(self) -> None:
        raise Refused(f"instance of {_describe(next(iter(self.pop_mark()), None))}")

    def _load_bytearray(self) -> None:
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))

    def _load_append(self) -> None:
        value = self.stack.pop()
        _as(list, self.stack[-1]).append(value)

    def _load_appends(self) -> None:
        items = self.pop_mark()
        _as(list, self.stack[-1]).extend(items)

    def _load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _put(_as(dict, self.stack[-1]), [(key, value)])

    def _load_setitems(self) -> None:
        items = self.pop_mark()
        _put(_as(dict, self.stack[-1]), zip(items[::2], items[1::2], strict=True))

    def _load_dict(self) -> None:
        items = self.pop_mark()
        self.append(_put({}, zip(items[::2], items[1::2], strict=True)))

    def _load_additems(self) -> None:
        items = self.pop_mark()
        _as(set, self.stack[-1]).update(map(_hashable, items))

    def _load_frozenset(self) -> None:
        self.append(frozenset(map(_hashable, self.pop_mark())))

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch) | {
        pickle.REDUCE[0]: _load_reduce,
        pickle.BUILD[0]: _load_build,
        pickle.NEWOBJ[0]: _load_instance,
        pickle.NEWOBJ_EX[0]: _load_instance,
        pickle.INST[0]: _load_inst,
        pickle.OBJ[0]: _load_obj,
        pickle.BYTEARRAY8[0]: _load_bytearray,
        pickle.APPEND[0]: _load_append,
        pickle.APPENDS[0]: _load_appends,
        pickle.SETITEM[0]: _load_setitem,
        pickle.SETITEMS[0]: _load_setitems,
        pickle.DICT[0]: _load_dict,
        pickle.ADDITEMS[0]: _load_additems,
        pickle.FROZENSET[0]: _load_frozenset,
    }


class _BoundedFile:
    """Reads no more than there is: a damaged length must not allocate memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        here = file.tell()
        self.size = file.seek(0, os.SEEK_END)
        file.seek(here)
        self.readline = file.readline

    def read(self, count: int) -> bytes:
        if count > 1 and count > self.size - self._file.tell():
            raise EOFError("it ends early")
        return self._file.read(count)

    def readinto(self, buffer: bytearray) -> int:
        return self._file.readinto(buffer)  # type: ignore[attr-defined]


def _as(kind: type[Any], target: Any) -> Any:
    if not isinstance(target, kind):
        raise pickle.UnpicklingError(f"puts items into {_describe(target)}")
    return target


def _put(target: dict[Any, Any], items: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    target.update((_hashable(key), value) for key, value in items)
    return target


def _hashable(key: Any) -> Any:
    """A key that is cheap to hash: of a tuple of tuples of tuples ... that may take years."""
    parts = key if type(key) is tuple else (key,)
    if not all(type(one) in _ATOMS for one in parts):
        raise pickle.UnpicklingError("has a key that is no text and no number")
    return key


def _describe(target: Any) -> str:
    return target.name if isinstance(target, Known) else type(target).__name__


def _short(value: Any) -> str:
    return repr(value)[:80] if type(value) in _ATOMS else type(value).__name__


def _size(value: Any) -> int:
    """Bytes that a value takes, beyond what the file's own bytes account for."""
    if isinstance(value, bytes | bytearray | str):
        return len(value)
    if isinstance(value, _Array):
        value = value.value
    return value.nbytes if isinstance(value, np.ndarray | Tensor) else 64


def _plain(value: Any, done: dict[int, Any], depth: int) -> Any:
    """The same value without stand-ins; what is shared stays shared."""
    if type(value) in _ATOMS or isinstance(value, Tensor):
        return value
    if id(value) in done:
        if done[id(value)] is _plain:
            raise pickle.UnpicklingError("has a container that contains itself")
        return done[id(value)]
    if depth > _DEEPEST:
        raise pickle.UnpicklingError(f"has containers nested deeper than {_DEEPEST}")
    done[id(value)] = _plain  # being made
    done[id(value)] = plain = _plain_container(value, done, depth + 1)
    return plain


def _plain_container(value: Any, done: dict[int, Any], depth: int) -> Any:
    if isinstance(value, OrderedDict):
        made = OrderedDict((key, _plain(one, done, depth)) for key, one in value.items())
        if versions := getattr(value, "_metadata", None):
            made._metadata = _versions(versions)  # type: ignore[attr-defined]
        return made
    if isinstance(value, dict):  # Counter keeps its type
        return type(value)({key: _plain(one, done, depth) for key, one in value.items()})
    if type(value) in (list, tuple):
        return type(value)(_plain(one, done, depth) for one in value)
    if isinstance(value, set | frozenset | bytearray):
        return value
    if isinstance(value, _Array | _Dtype | np.generic):
        return value if isinstance(value, np.generic) else value.value
    if isinstance(value, Known) and value.value is not None:
        return value.value
    raise Refused(_describe(value))


def _versions(metadata: Any) -> OrderedDict[str, dict[str, Any]]:
    """What torch notes beside a state dict: module -> {"version": ...}."""
    if not isinstance(metadata, dict):
        raise Refused("collections.OrderedDict._metadata")
    return OrderedDict(
        (module, {"version": entry["version"]})
        for module, entry in metadata.items()
        if isinstance(entry, dict) and isinstance(entry.get("version"), int)
    )


class _Dtype:
    """A dtype of numbers or text in the making."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.value = np.dtype(code if isinstance(code, str) else "O")
        if self.value.kind not in "biufcSU":
            raise Refused(f"numpy.dtype({_short(code)})")

    def set_state(self, state: Any) -> None:
        if state[1] in ("<", ">", "=", "|"):
            self.value = self.value.newbyteorder(state[1])
        if any(one is not None for one in state[2:5]):
            raise Refused("numpy.dtype with fields")


class _Array:
    """An array of numbers in the making."""

    def __init__(self, *_: Any) -> None:
        self.value = np.empty(0, np.int8)

    def set_state(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        if isinstance(data, str | bytes):
            order = "F" if is_fortran else "C"
            self.value = _from_buffer(_encode(data), dtype, shape, order)
        else:
            raise Refused(f"numpy.ndarray of {_describe(data)}")


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(dtype, _Dtype):
        raise Refused(f"numpy.dtype({_short(dtype)})")
    return np.frombuffer(bytearray(_encode(buffer)), dtype.value).reshape(shape, order=order)


def _make_array(buffer: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.value = _from_buffer(buffer, dtype, shape, order)
    return array


def _scalar(dtype: Any, data: bytes | str) -> np.generic:
    return _from_buffer(_encode(data), dtype, (1,), "C")[0]


def _encode(data: bytes | str, encoding: str = "latin1") -> bytes:
    if not isinstance(data, (str, bytes, bytearray)):  # bytes(10**9) takes a gigabyte
        raise TypeError(f"bytes of {_describe(data)}")
    return data.encode("latin1") if isinstance(data, str) else bytes(data)


def _bytes(data: Any = b"", *_: Any) -> bytes:
    return _encode(data)


def _set(items: Iterable[Any] = ()) -> set[Any]:
    return set(map(_hashable, _as(list, items)))


def _frozenset(items: Iterable[Any] = ()) -> frozenset[Any]:
    return frozenset(map(_hashable, _as(list, items)))


def _ordered(items: Iterable[Any] = ()) -> OrderedDict[Any, Any]:
    made: OrderedDict[Any, Any] = OrderedDict()
    _put(made, items.items() if isinstance(items, dict) else (tuple(one) for one in items))
    return made


def _counter(counts: Any = None) -> Counter[Any]:
    return Counter(_as(dict, {} if counts is None else counts))


def known_table(entries: Mapping[tuple[str, str], Any]) -> dict[tuple[str, str], Known]:
    """A table for `Unpickler`; functions are called, anything else is only a value."""
    return {
        (module, name): (
            Known(f"{module}.{name}", call=entry)
            if callable(entry)
            else Known(f"{module}.{name}", value=entry)
        )
        for (module, name), entry in entries.items()
    }


# The names that a file of plain containers and numpy arrays may use.
PLAIN = known_table(
    {
        ("builtins", "bytes"): _bytes,
        ("builtins", "bytearray"): lambda data=b"", *_: bytearray(_encode(data)),
        ("builtins", "complex"): complex,
        ("builtins", "frozenset"): _frozenset,
        ("builtins", "set"): _set,
        ("collections", "Counter"): _counter,
        ("collections", "OrderedDict"): _ordered,
        ("_codecs", "encode"): _encode,
        ("numpy", "dtype"): _Dtype,
        ("numpy", "ndarray"): "ndarray",  # only ever an argument of _reconstruct
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy.core.multiarray", "scalar"): _scalar,
        ("numpy.core.numeric", "_frombuffer"): _make_array,
    }
)


def read_pickle(path: Path) -> Any:
    """The object of a pickle of plain containers and numpy arrays."""
    with path.open("rb") as file:
        return Unpickler(file, PLAIN).load()
