"""Prepared rows on their way from a preparing process to the predicting one.

torch would send each tensor through a shared memory segment of its own: a file descriptor and about 100 µs each. Here
a piece's buffers (tensors, arrays, bytes-like) lie one behind the other, in memory that both processes have when there
are many, and its other values are pickled (PEP 574, out-of-band buffers).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from handlergen.offline.arena import Arena
from handlergen.runtime.predictor_process import serialization
from handlergen.runtime.predictor_process.transport import aligned

_SMALL = 65536
"""Bytes below which a copy through the queue costs less than shared memory."""


class Packed(NamedTuple):
    """Values in a form that crosses to another process cheaply; `unpack` gives them back.

    Attributes:
        pickled: Everything but the buffers.
        sizes: Of the buffers, in bytes.
        memory: The buffers, each at the next aligned place; or the slot of an arena where they lie.
    """

    pickled: bytes
    sizes: list[int]
    memory: bytes | int

    def unpack(self, arena: Arena | None = None) -> Any:
        """The values; their buffers stay where they are and are writable.

        Args:
            arena: Where they may lie.
        """
        if isinstance(self.memory, int):
            assert arena is not None
            return serialization.unpack(self.pickled, arena.views(self.memory, self.sizes))
        whole = memoryview(bytearray(self.memory))
        views, start = [], 0
        for size in self.sizes:
            views.append(whole[start : start + size])
            start += aligned(size)
        return serialization.unpack(self.pickled, views)


def pack(value: Any, lay_down: Callable[[Sequence[memoryview]], int | None] | None = None) -> Packed:
    """Make a value ready to be sent.

    Args:
        lay_down: Puts many bytes into an arena and returns the slot; None when it cannot.

    Raises:
        Exception: It cannot be pickled (pickle raises PicklingError, TypeError, AttributeError and others).
    """
    pickled, buffers = serialization.pack(value)
    sizes = [buffer.nbytes for buffer in buffers]
    if lay_down is not None and sum(sizes) > _SMALL and (slot := lay_down(buffers)) is not None:
        return Packed(pickled, sizes, slot)
    pieces: list[Any] = []
    for buffer, size in zip(buffers, sizes, strict=True):
        pieces += buffer, bytes(aligned(size) - size)
    return Packed(pickled, sizes, b"".join(pieces))
