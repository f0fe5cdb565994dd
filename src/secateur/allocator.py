"""Memory that is freed goes back to the system: the C library's allocator is told so, where it is glibc's."""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["return_freed_memory"]

_M_TRIM_THRESHOLD = -1  # numbers of parameters, from glibc's malloc.h
_M_MMAP_THRESHOLD = -3
_LARGE = 1 << 20
_KEPT = 16 << 20


def return_freed_memory() -> bool:
    """Let each large block have pages of its own, which go back when it is freed; whether that could be done.

    glibc learns from the first large block that is freed to take blocks as large from the heap. There the activations of a
    training step lie among what stays, and once freed neither go back nor fit the next step: LoRA on SmolLM2-135M, 4 windows of
    256 tokens, held 4.6 GB where its tensors are 2.6 GB. Blocks of a megabyte and more no longer lie there then, but fresh pages
    take time (`benchmarks/allocator.py`). For programs of our own only, as it holds for the whole process. Who has
    set `MALLOC_MMAP_THRESHOLD_` has decided otherwise.
    """
    if not sys.platform.startswith("linux") or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and all(
        mallopt(parameter, size) for parameter, size in ((_M_MMAP_THRESHOLD, _LARGE), (_M_TRIM_THRESHOLD, _KEPT))
    )
