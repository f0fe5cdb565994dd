"""What the allocator does with blocks that are freed among blocks that stay, seen from outside the process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FREED = """
import ctypes, psutil
from secateur.allocator import return_freed_memory

changed = {ask} and return_freed_memory()
malloc, free = (getattr(ctypes.CDLL(None), name) for name in ("malloc", "free"))
malloc.restype, malloc.argtypes, free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def block(megabytes):
    address = malloc(megabytes << 20)
    ctypes.memset(address, 1, megabytes << 20)
    return address

free(block(16))  # from here on glibc takes blocks as large from the heap
before = psutil.Process().memory_info().rss
large = []
for _ in range(20):
    large.append(block(8))
    ctypes.memset(malloc(100_000), 1, 100_000)  # stays, and keeps the heap from being trimmed
for address in large:
    free(address)
print(int(changed), (psutil.Process().memory_info().rss - before) >> 20)
"""


def held(*, ask: bool, **environment: str) -> tuple[int, int]:
    """Whether the allocator was changed, and the megabytes still held of 160 that were freed."""
    code = FREED.format(ask=ask)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | environment
    )
    changed, megabytes = map(int, done.stdout.split())
    return changed, megabytes


glibc = pytest.mark.skipif(
    "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}), reason="the allocator is not glibc's"
)


@glibc
def test_freed_blocks_go_back_to_the_system_where_they_would_have_stayed():
    assert held(ask=False)[1] > 100
    changed, megabytes = held(ask=True)
    assert changed
    assert megabytes < 20


@glibc
def test_who_has_decided_otherwise_is_left_alone():
    assert held(ask=True, MALLOC_MMAP_THRESHOLD_=str(32 << 20))[0] == 0
