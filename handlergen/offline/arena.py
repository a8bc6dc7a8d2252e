"""Memory that a process shares with those that it forks, in slots that are used again.

torch would make a shared memory segment for each batch and fetch its descriptor from a thread of the process that made
it, which waits for its turn behind the preparation of the next rows: 5 ms a segment on two busy cores. Here the memory
is there before the fork. It is not in /dev/shm, of which a container has 64 MB unless told otherwise.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import weakref
from collections.abc import Sequence

from handlergen.runtime.predictor_process.transport import aligned

SLOT_BYTES = 128 << 20
"""The most that a slot takes: 32 MB a row in the smallest piece. What is never written takes no memory."""

_FLAGS = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
_NORESERVE = 0x4000 if sys.platform == "linux" else 0  # mmap(2); Python names it from 3.13 on


class Arena:
    """The slots of several writers, each of which is a forked process; the process that makes this reads.

    Args:
        writers: How many.
        slots: How many each of them has.
        slot_bytes: The most that lies in one.

    Raises:
        OSError: The system promises no more memory.
    """

    def __init__(self, writers: int, slots: int, slot_bytes: int = SLOT_BYTES) -> None:
        self._per_writer = slots
        self._taken = mmap.mmap(
            -1, writers * slots
        )  # a byte a slot, written by the writer, cleared by the reader
        self._slots = [mmap.mmap(-1, slot_bytes, flags=_FLAGS | _NORESERVE) for _ in range(writers * slots)]

    def lay_down(self, writer: int, buffers: Sequence[memoryview]) -> int | None:
        """Copy buffers into a free slot, each at the next aligned place; by the writer.

        Args:
            writer: Which it is, from 0.

        Returns:
            The slot, for the reader; None when none is free, or when they are too much.
        """
        first = writer * self._per_writer
        total = sum(aligned(buffer.nbytes) for buffer in buffers)
        # The first that is free, so that no more of them fill up than are needed at a time.
        slot = self._taken.find(b"\0", first, first + self._per_writer)
        if slot < 0 or total > len(self._slots[slot]):
            return None
        place = 0
        with memoryview(self._slots[slot]) as memory:
            for buffer in buffers:
                memory[place : place + buffer.nbytes] = buffer
                place += aligned(buffer.nbytes)
        self._taken[slot] = 1
        return slot

    def views(self, slot: int, sizes: Sequence[int]) -> list[memoryview]:
        """The buffers in a slot, writable; it is free when the last object that uses one is gone. By the reader, once.

        Args:
            slot: What `lay_down` returned.
            sizes: Of the buffers, in bytes.
        """
        # A memoryview cannot be watched, a ctypes array can; every view of it keeps it alive.
        whole = (ctypes.c_char * sum(map(aligned, sizes))).from_buffer(self._slots[slot])
        weakref.finalize(whole, self._free, slot).atexit = False
        everything = memoryview(whole).cast("B")
        views, place = [], 0
        for size in sizes:
            views.append(everything[place : place + size])
            place += aligned(size)
        return views

    def _free(self, slot: int) -> None:
        self._taken[slot] = 0
