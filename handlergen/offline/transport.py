"""Prepared rows on their way from a preparing process to the predicting one.

torch would send each tensor through a shared memory segment of its own: a file descriptor and about 100 µs each. Here
a chunk's buffers (tensors, arrays, bytes-like) lie one behind the other in a single segment, and its other values are
pickled (PEP 574, out-of-band buffers).
"""

from __future__ import annotations

from typing import Any

import torch

from handlergen.runtime.process import values
from handlergen.runtime.process.segments import aligned

_SMALL = 65536
"""Bytes below which a copy through the queue costs less than a shared memory segment."""


class Packed:
    """Values in a form that crosses to another process cheaply; `unpack` gives them back.

    Args:
        pickled: Everything but the buffers.
        sizes: Of the buffers, in bytes.
        memory: The buffers; a shared tensor, or bytes when there is little.
    """

    def __init__(self, pickled: bytes, sizes: list[int], memory: torch.Tensor | bytes) -> None:
        self.pickled = pickled
        self.sizes = sizes
        self.memory = memory

    def unpack(self) -> Any:
        """The values; their buffers stay where they are and are writable."""
        memory = self.memory
        whole = memoryview(bytearray(memory) if isinstance(memory, bytes) else memory.numpy())
        views, start = [], 0
        for size in self.sizes:
            views.append(whole[start : start + size])
            start += aligned(size)
        return values.unpack(self.pickled, views)


def pack(value: Any) -> Packed:
    """Make a value ready to be sent.

    Raises:
        Exception: It cannot be pickled (pickle raises PicklingError, TypeError, AttributeError and others).
    """
    pickled, buffers = values.pack(value)
    sizes = [buffer.nbytes for buffer in buffers]
    total = sum(aligned(size) for size in sizes)
    shared = _shared(total) if total > _SMALL else None
    memory = memoryview(bytearray(total) if shared is None else shared.numpy())
    start = 0
    for buffer in buffers:
        memory[start : start + buffer.nbytes] = buffer
        start += aligned(buffer.nbytes)
    return Packed(pickled, sizes, bytes(memory) if shared is None else shared)


def _shared(size: int) -> torch.Tensor:
    """Shared memory, made as torch's own collate makes it (torch/utils/data/_utils/collate.py), without a copy."""
    storage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage)
