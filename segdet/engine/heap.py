"""What becomes of memory that was freed."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

LARGE = 16 << 20  # bytes of a block
END = 64 << 20  # bytes of the heap's end
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def return_free_memory() -> None:
    """Give the system back what the C library keeps for later of memory that was freed.

    By itself glibc keeps blocks of up to 32 MiB, and between those in use there are gaps that fit
    no other. From the first call on, large ones go back as soon as they are freed. With another C
    library nothing happens.
    """
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@functools.cache
def _glibc() -> Any:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        return None
    libc.mallopt(_M_MMAP_THRESHOLD, LARGE)
    libc.mallopt(_M_TRIM_THRESHOLD, END)  # which setting the other one would make 128 KiB
    return libc
