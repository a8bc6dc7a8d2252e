"""Shared memory for large buffers: anonymous (memfd), passed over the connection, reused.

An anonymous segment has no name that could be left behind, whatever is killed. It is used again when the receiver has
let go of everything that lay in it: the page faults of fresh memory cost more than the copy (4.8 MB: 1.6 ms against
0.6 ms). The receiver tells that by the life of the object through which its tensors see the memory.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from collections import deque
from collections.abc import Sequence

ALIGNMENT = 64
"""Bytes; what vector instructions like."""

_SMALLEST = 1 << 18
_KEPT = 8
_KEPT_BYTES = 128 << 20
"""What free segments may keep of the machine's memory, for each direction of a connection."""


def aligned(size: int) -> int:
    """`size` rounded up to the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def available() -> bool:
    """Whether this system has anonymous shared memory (Linux; elsewhere buffers go through the socket)."""
    return hasattr(os, "memfd_create")


class _Segment:
    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.size = size
        self.descriptor = os.memfd_create(f"handlergen-{number}", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.descriptor, size)
            self.memory = mmap.mmap(self.descriptor, size)
        except BaseException:
            os.close(self.descriptor)
            raise

    def close(self) -> None:
        self.memory.close()
        os.close(self.descriptor)


class Outgoing:
    """The segments that one end of a connection has made. Not thread-safe: the connection's own lock guards it."""

    def __init__(self) -> None:
        self._free: list[_Segment] = []
        self._lent: dict[int, _Segment] = {}
        self._next = 1

    def lay_down(self, buffers: Sequence[memoryview]) -> tuple[int, int | None]:
        """Copy the buffers into a segment, each at the next aligned place.

        Returns:
            The segment's number, and its file descriptor if the receiver has not seen it yet.

        Raises:
            OSError: No memory.
        """
        total = sum(aligned(buffer.nbytes) for buffer in buffers)
        fitting = [segment for segment in self._free if segment.size >= total]
        new = not fitting
        if fitting:
            segment = min(fitting, key=lambda each: each.size)
            self._free.remove(segment)
        else:
            segment = _Segment(self._next, max(_SMALLEST, 1 << (total - 1).bit_length()))
            self._next += 1
        self._lent[segment.number] = segment
        place = 0
        with memoryview(segment.memory) as memory:
            for buffer in buffers:
                memory[place : place + buffer.nbytes] = buffer
                place += aligned(buffer.nbytes)
        return segment.number, segment.descriptor if new else None

    def returned(self, number: int) -> None:
        """The receiver has let go of a segment."""
        segment = self._lent.pop(number, None)
        if segment is not None:
            self._free.append(segment)

    def surplus(self) -> list[int]:
        """Forget free segments beyond those that are kept; the receiver is to do so too.

        The smallest of too many, for the others are more often of use; the largest when they take too much memory.
        """
        forgotten = []
        free = sorted(self._free, key=lambda each: each.size)
        while free and (len(free) > _KEPT or sum(each.size for each in free) > _KEPT_BYTES):
            segment = free.pop(0 if len(free) > _KEPT else -1)
            self._free.remove(segment)
            forgotten.append(segment.number)
            segment.close()
        return forgotten

    def close(self) -> None:
        """Let go of all; what the receiver still sees stays until it lets go."""
        for segment in [*self._free, *self._lent.values()]:
            segment.close()
        self._free.clear()
        self._lent.clear()


class Incoming:
    """The segments that the other end has made.

    Attributes:
        released: Numbers of segments that nothing refers to any more; to be sent back.
    """

    def __init__(self) -> None:
        self._known: dict[int, mmap.mmap] = {}
        self.released: deque[int] = deque()

    def add(self, number: int, descriptor: int) -> None:
        """Map a new segment; takes the descriptor over."""
        try:
            self._known[number] = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)

    def views(self, number: int, sizes: Sequence[int]) -> list[memoryview]:
        """The buffers that lie in a segment; it is released when the last object that uses one is gone."""
        memory = self._known[number]
        # A memoryview cannot be watched, a ctypes array can; every view of it keeps it alive.
        whole = (ctypes.c_char * len(memory)).from_buffer(memory)
        weakref.finalize(whole, self.released.append, number).atexit = False
        everything = memoryview(whole).cast("B")
        views, place = [], 0
        for size in sizes:
            views.append(everything[place : place + size])
            place += aligned(size)
        return views

    def forget(self, number: int) -> None:
        """The other end will not use a segment again."""
        self._known.pop(number, None)

    def close(self) -> None:
        """Let go of all; what something still lies in stays until it is gone."""
        self._known.clear()
