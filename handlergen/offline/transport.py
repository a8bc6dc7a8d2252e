"""Prepared rows on their way from a preparing process to the predicting one.

torch would send each tensor through a shared memory segment of its own: a file descriptor and about 100 µs each. Here
a chunk's buffers (tensors, arrays, bytes-like) lie one behind the other in a single segment, and its other values are
pickled (PEP 574, out-of-band buffers).
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch

_ALIGNMENT = 64
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
            start += _aligned(size)
        return pickle.loads(self.pickled, buffers=views)  # noqa: S301 - made by `pack` in a child of this process


def pack(value: Any) -> Packed:
    """Make a value ready to be sent.

    Raises:
        Exception: It cannot be pickled (pickle raises PicklingError, TypeError, AttributeError and others).
    """
    buffers: list[memoryview] = []

    def keep(buffer: pickle.PickleBuffer) -> None:
        buffers.append(buffer.raw())

    target = io.BytesIO()
    _Pickler(target, protocol=5, buffer_callback=keep).dump(value)
    sizes = [buffer.nbytes for buffer in buffers]
    total = sum(_aligned(size) for size in sizes)
    shared = _shared(total) if total > _SMALL else None
    memory = memoryview(bytearray(total) if shared is None else shared.numpy())
    start = 0
    for buffer in buffers:
        memory[start : start + buffer.nbytes] = buffer
        start += _aligned(buffer.nbytes)
    return Packed(target.getvalue(), sizes, bytes(memory) if shared is None else shared)


def _shared(size: int) -> torch.Tensor:
    """Shared memory, made as torch's own collate makes it (torch/utils/data/_utils/collate.py), without a copy."""
    storage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage)


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if type(value) is not torch.Tensor or not _is_plain(value):
            return NotImplemented
        # Strides travel along: a kernel may round otherwise for another layout of the same numbers.
        order = sorted(range(value.dim()), key=value.stride, reverse=True)
        laid_out = value.permute(order)
        if not laid_out.is_contiguous():
            return NotImplemented
        raw = laid_out.reshape(-1).view(torch.uint8).numpy() if value.numel() else None
        buffer = pickle.PickleBuffer(raw) if raw is not None else None
        return _tensor, (buffer, value.dtype, tuple(value.shape), value.stride())


def _is_plain(value: torch.Tensor) -> bool:
    return (
        value.device.type == "cpu"
        and value.layout is torch.strided
        and not value.requires_grad
        and not value.is_quantized
        and not value.is_conj()
        and not value.is_neg()
    )


def _tensor(buffer: Any, dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
    if buffer is None:
        return torch.empty(shape, dtype=dtype)
    flat = torch.frombuffer(buffer, dtype=torch.uint8).view(dtype)
    return flat.as_strided(shape, stride)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
