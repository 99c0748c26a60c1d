"""A batch on its way out of a worker process, with all its pixels in one block of shared memory.

torch sends each tensor as a file of its own, which costs both processes about half a millisecond,
however small it is.
"""

from __future__ import annotations

import io
import itertools
import pickle
from typing import Any

import numpy as np
import torch
from torch import Tensor

_LARGE = 1 << 16  # bytes; smaller arrays travel in the pickle, so that keeping one keeps no block
_ALIGNMENT = 64  # of bytes in the block
_AS_ARRAYS = {torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32, torch.float64}


class Parcel:
    """A batch, packed; `unpack` gives it back, its large tensors and arrays in place.

    Args:
        batch: anything that can be pickled.
    """

    def __init__(self, batch: Any) -> None:
        large: list[memoryview] = []

        def take(buffer: pickle.PickleBuffer) -> bool:
            """Whether it stays in the pickle."""
            raw = buffer.raw()
            if raw.nbytes >= _LARGE:
                large.append(raw)
            return raw.nbytes < _LARGE

        file = io.BytesIO()
        _Pickler(file, protocol=5, buffer_callback=take).dump(batch)
        self._pickle = file.getvalue()
        self._sizes = [raw.nbytes for raw in large]
        storage = torch.UntypedStorage._new_shared(max(sum(map(_padded, self._sizes)), 1))
        self._block = torch.empty(0, dtype=torch.uint8).set_(storage)  # pyright: ignore[reportArgumentType]
        for place, raw in zip(self._places(), large, strict=True):
            place[:] = np.frombuffer(raw, np.uint8)

    def unpack(self) -> Any:
        """The batch."""
        return pickle.loads(self._pickle, buffers=self._places())

    def _places(self) -> list[np.ndarray]:
        """The bytes of each large array in the block."""
        block = self._block.numpy()
        starts = itertools.accumulate(map(_padded, self._sizes), initial=0)
        return [block[i : i + n] for i, n in zip(starts, self._sizes, strict=False)]


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


class _Pickler(pickle.Pickler):
    """Pickles plain tensors as numpy arrays."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is not Tensor or obj.dtype not in _AS_ARRAYS:
            return NotImplemented
        if obj.device.type != "cpu" or obj.layout != torch.strided or obj.requires_grad:
            return NotImplemented
        return torch.from_numpy, (obj.contiguous().resolve_neg().numpy(),)
