import ctypes
from pathlib import Path

import pytest
import torch

from segdet.engine.heap import return_free_memory

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="only glibc is told"
)


def resident() -> int:
    """Bytes of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) << 10


def test_what_lies_between_blocks_in_use_goes_back():
    blocks = [torch.ones(1 << 16, dtype=torch.uint8) for _ in range(1024)]
    blocks = blocks[::2]  # 32 MiB in gaps of 64 KiB
    held = resident()
    return_free_memory(much=32 << 20)
    assert resident() < held - (20 << 20)
    assert all(map(torch.all, blocks))


def test_a_process_with_little_in_use_keeps_what_it_freed():
    blocks = [torch.ones(1 << 16, dtype=torch.uint8) for _ in range(1024)]
    blocks = blocks[::2]
    held = resident()
    return_free_memory(much=1 << 40)
    assert resident() > held - (1 << 20)
    assert all(map(torch.all, blocks))
