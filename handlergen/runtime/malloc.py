"""Keeping freed memory for the next request."""

from __future__ import annotations

import ctypes
import os
import sys

KEPT_BYTES = 64 << 20
"""What a process keeps of the memory that it has freed."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST_MMAP_THRESHOLD = 32 << 20
"""More is refused (mallopt(3): HEAP_MAX_SIZE/2)."""

_OWN_CHOICE = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """Let this process keep up to `KEPT_BYTES` of what it frees; with glibc, and unless its environment says how much.

    By default glibc gives a few megabytes back to the system as soon as they are free, and a request that decodes an
    image asks for them anew: the system clears each page, and the process stumbles over each. Decoding and scaling a
    JPEG of 1024 x 768 took 13.0 ms, and takes 9.2 ms (Pillow 13, on a virtual machine, where this costs most).
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _OWN_CHOICE):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
