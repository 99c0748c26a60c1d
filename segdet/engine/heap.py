"""What becomes of memory that was freed."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

MUCH = 512 << 20  # bytes in use
LARGE = 16 << 20  # bytes of a block
END = 64 << 20  # bytes of the heap's end
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def return_free_memory(much: int = MUCH) -> None:
    """Give the system back what the C library keeps for later of memory that was freed.

    By itself glibc keeps blocks of up to 32 MiB, and between those in use there are gaps that fit
    no other. From the first time on, large ones go back as soon as they are freed. To fetch pages
    again takes a sixth of a small model's step, so processes that have few keep them. With another
    C library nothing happens.

    Args:
        much: bytes in use from which on memory is given back.
    """
    libc = _glibc()
    if libc is None:
        return
    info = libc.mallinfo2()
    if info.uordblks + info.hblkhd >= much:
        libc.mallopt(_M_MMAP_THRESHOLD, LARGE)
        libc.mallopt(_M_TRIM_THRESHOLD, END)  # which setting the other one would make 128 KiB
        libc.malloc_trim(0)


class _Info(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


@functools.cache
def _glibc() -> Any:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        return None
    libc.mallinfo2.restype = _Info
    return libc
