"""A batch on its way out of a worker process, with all its pixels in one block of shared memory.

torch sends each tensor as a file of its own, which costs both processes about half a millisecond,
however small it is.
"""

from __future__ import annotations

import io
import itertools
import pickle
from typing import Any

import torch
from torch import Tensor

_LARGE = 1 << 16  # bytes; smaller tensors travel in the pickle, so that keeping one keeps no block
_ALIGNMENT = 64  # of bytes in the block
_AS_ARRAYS = {torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32, torch.float64}


class Parcel:
    """A batch, packed; `unpack` gives it back, its large tensors in place.

    Args:
        batch: anything that can be pickled.
    """

    def __init__(self, batch: Any) -> None:
        file = io.BytesIO()
        pickler = _Pickler(file)
        pickler.dump(batch)
        self._pickle = file.getvalue()
        self._sizes = [tensor.nbytes for tensor in pickler.large]
        storage = torch.UntypedStorage._new_shared(max(sum(map(_padded, self._sizes)), 1))
        self._block = torch.empty(0, dtype=torch.uint8).set_(storage)  # pyright: ignore[reportArgumentType]
        for place, tensor in zip(self._places(), pickler.large, strict=True):
            place.view(tensor.dtype).view(tensor.shape).copy_(tensor)

    def pin_memory(self) -> Parcel:
        """Itself, its block in page-locked memory; torch's loader calls it."""
        self._block = self._block.pin_memory()
        return self

    def unpack(self) -> Any:
        """The batch."""
        return _Unpickler(io.BytesIO(self._pickle), self._places()).load()

    def _places(self) -> list[Tensor]:
        """The bytes of each large tensor in the block."""
        starts = itertools.accumulate(map(_padded, self._sizes), initial=0)
        return [self._block[i : i + n] for i, n in zip(starts, self._sizes, strict=False)]


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


class _Pickler(pickle.Pickler):
    """Leaves large tensors to `large`; pickles small ones as arrays, which is faster."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.large: list[Tensor] = []

    def persistent_id(self, obj: Any) -> tuple[int, torch.dtype, torch.Size] | None:
        if not _is_plain(obj) or obj.nbytes < _LARGE:
            return None
        self.large.append(obj)
        return len(self.large) - 1, obj.dtype, obj.shape

    def reducer_override(self, obj: Any) -> Any:
        if not _is_plain(obj) or obj.dtype not in _AS_ARRAYS:
            return NotImplemented
        return torch.from_numpy, (obj.contiguous().resolve_neg().numpy(),)


class _Unpickler(pickle.Unpickler):
    """Takes the large tensors from their `places`."""

    def __init__(self, file: io.BytesIO, places: list[Tensor]) -> None:
        super().__init__(file)
        self._places = places

    def persistent_load(self, pid: tuple[int, torch.dtype, torch.Size]) -> Tensor:
        index, dtype, shape = pid
        return self._places[index].view(dtype).view(shape)


def _is_plain(obj: Any) -> bool:
    """Whether it is a tensor of numbers in this process' memory, and nothing else."""
    if type(obj) is not Tensor or obj.requires_grad:
        return False
    return obj.device.type == "cpu" and obj.layout == torch.strided and not obj.is_quantized
