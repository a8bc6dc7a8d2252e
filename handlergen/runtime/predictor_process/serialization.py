"""Values between two processes of this user: pickled, with the buffers of tensors and arrays beside it (PEP 574).

Large buffers lie in anonymous shared memory (memfd). A segment of it has no name that could be left behind, whatever is
killed, and is reused once the receiver has let go of all that lay in it: the page faults of fresh memory cost more than
the copy (4.8 MB: 1.6 ms against 0.6 ms).

torch's own pickling copies a tensor into the stream and takes five times as long for a small one. Nothing that a client
sends is ever unpickled: what is unpickled here was pickled by the other end of a connection, whose user was checked.
"""

from __future__ import annotations

import ctypes
import io
import mmap
import os
import pickle
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch

_ALIGNMENT = 64  # bytes; what vector instructions like
_SMALLEST_SEGMENT = 1 << 18
_FREE_SEGMENTS = 8
_FREE_BYTES = 128 << 20
"""How many free segments, and how much memory in them, each direction of a connection keeps."""


def pack(value: Any) -> tuple[bytes, list[memoryview]]:
    """Return a value as its pickled part and its buffers, which are views of the value's own memory.

    Raises:
        Exception: It cannot be pickled (pickle raises PicklingError, TypeError, AttributeError and others).
    """
    buffers: list[memoryview] = []

    def keep(buffer: pickle.PickleBuffer) -> None:
        buffers.append(buffer.raw())

    target = io.BytesIO()
    _Pickler(target, protocol=5, buffer_callback=keep).dump(value)
    return target.getvalue(), buffers


def unpack(pickled: bytes | bytearray | memoryview, buffers: Iterable[Any]) -> Any:
    """Return the value that was packed. Its tensors and arrays lie in `buffers`, which must be writable."""
    return pickle.loads(pickled, buffers=buffers)  # noqa: S301 - see above


def _reduce_tensor(value: torch.Tensor) -> Any:
    if not _is_plain(value):
        return value.__reduce_ex__(5)  # type: ignore[no-untyped-call]
    if not value.numel():
        return _empty, (value.dtype, tuple(value.shape))
    if value.is_contiguous():
        raw = _bytes(value)
        return _contiguous, (pickle.PickleBuffer(raw), value.dtype, tuple(value.shape))
    # Strides travel along: a kernel may round otherwise for another layout of the same numbers.
    order = sorted(range(value.dim()), key=value.stride, reverse=True)
    laid_out = value.permute(order)
    if not laid_out.is_contiguous():  # a slice: only what it shows crosses, not all of its storage
        shown = value
        for dim in range(value.dim()):
            if value.stride(dim) == 0:  # expanded: the same numbers again and again
                shown = shown.narrow(dim, 0, 1)
        if _overlaps(shown):
            return value.__reduce_ex__(5)  # type: ignore[no-untyped-call]
        raw = _bytes(shown.contiguous())
        return _spread, (
            pickle.PickleBuffer(raw),
            value.dtype,
            tuple(shown.shape),
            tuple(value.shape),
            value.stride(),
        )
    raw = _bytes(laid_out)
    return _strided, (pickle.PickleBuffer(raw), value.dtype, tuple(value.shape), value.stride())


class _Pickler(pickle.Pickler):
    dispatch_table: ClassVar[dict[type, Callable[[Any], Any]]] = {  # type: ignore[misc]
        torch.Tensor: _reduce_tensor,
        torch.layout: lambda value: (_layout, (str(value).removeprefix("torch."),)),  # of a sparse tensor
        MappingProxyType: lambda value: (_read_only, (dict(value),)),
    }


def _is_plain(value: torch.Tensor) -> bool:
    return (
        value.device.type == "cpu"
        and value.layout is torch.strided
        and not value.requires_grad
        and not value.is_quantized
        and not value.is_conj()
        and not value.is_neg()
        and not value.is_nested
        and not value.__dict__  # what the user's code has put there travels too
    )


def _read_only(items: dict[Any, Any]) -> Any:
    return MappingProxyType(items)  # which pickle cannot name


def _layout(name: str) -> Any:
    return getattr(torch, name)


def _empty(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype)


def _contiguous(buffer: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.frombuffer(buffer, dtype=dtype).view(shape)


def _bytes(value: torch.Tensor) -> Any:
    """Return a contiguous tensor's memory as a buffer, which keeps the tensor alive.

    By ctypes, since `Tensor.numpy` needs numpy, which torch does not install (and takes five times as long: 12 µs).
    """
    memory: Any = (ctypes.c_ubyte * (value.numel() * value.element_size())).from_address(value.data_ptr())
    memory.tensor = value
    return memory


def _overlaps(value: torch.Tensor) -> bool:
    """Whether two elements share memory, as in a sliding window."""
    extent = 1
    for stride, size in sorted(zip(value.stride(), value.shape, strict=True)):
        if size > 1 and stride < extent:
            return True
        extent += (size - 1) * stride
    return False


def _spread(
    buffer: Any,
    dtype: torch.dtype,
    shown: tuple[int, ...],
    shape: tuple[int, ...],
    stride: tuple[int, ...],
) -> torch.Tensor:
    """A tensor with gaps, as it was."""
    value = torch.empty_strided(shown, stride, dtype=dtype)
    value.copy_(torch.frombuffer(buffer, dtype=dtype).view(shown))
    return value.as_strided(shape, stride)


def _strided(buffer: Any, dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
    return torch.frombuffer(buffer, dtype=dtype).as_strided(shape, stride)


def aligned(size: int) -> int:
    """Return `size` rounded up to the alignment of buffers."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def aligned_views(memory: memoryview, sizes: Iterable[int]) -> Iterator[memoryview]:
    """Yield the buffers of these sizes, which lie in `memory` one after the other, each at an aligned offset."""
    offset = 0
    for size in sizes:
        yield memory[offset : offset + size]
        offset += aligned(size)


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


class SharedMemoryPool:
    """The segments of shared memory that one end of a connection has made.

    Not thread-safe: the connection's own lock guards it.
    """

    def __init__(self) -> None:
        self._free: list[_Segment] = []
        self._lent: dict[int, _Segment] = {}
        self._next = 1

    def copy(self, buffers: Sequence[memoryview]) -> tuple[int, int | None]:
        """Copy buffers into a segment, each at the next aligned offset.

        Returns:
            The segment's number, and its descriptor if the receiver has not seen the segment yet.

        Raises:
            OSError: There is no memory.
        """
        sizes = [buffer.nbytes for buffer in buffers]
        total = sum(map(aligned, sizes))
        fitting = [segment for segment in self._free if segment.size >= total]
        if fitting:
            segment = min(fitting, key=lambda each: each.size)
            self._free.remove(segment)
        else:
            segment = _Segment(self._next, max(_SMALLEST_SEGMENT, 1 << (total - 1).bit_length()))
            self._next += 1
        self._lent[segment.number] = segment
        with memoryview(segment.memory) as memory:
            for view, buffer in zip(aligned_views(memory, sizes), buffers, strict=True):
                view[:] = buffer
                view.release()
        return segment.number, None if fitting else segment.descriptor

    def returned(self, number: int) -> None:
        """Take back a segment that the receiver has let go of."""
        segment = self._lent.pop(number, None)
        if segment is not None:
            self._free.append(segment)

    def surplus(self) -> list[int]:
        """Forget free segments beyond those that are kept; the receiver is to forget them too.

        The smallest of too many, because the others are of use more often; the largest when they take too much memory.
        """
        forgotten = []
        free = sorted(self._free, key=lambda each: each.size)
        while free and (len(free) > _FREE_SEGMENTS or sum(each.size for each in free) > _FREE_BYTES):
            segment = free.pop(0 if len(free) > _FREE_SEGMENTS else -1)
            self._free.remove(segment)
            forgotten.append(segment.number)
            segment.close()
        return forgotten

    def close(self) -> None:
        """Let go of all segments; what the receiver still sees stays until it lets go."""
        for segment in [*self._free, *self._lent.values()]:
            segment.close()
        self._free.clear()
        self._lent.clear()


class ReceivedSegments:
    """The segments of shared memory that the other end has made.

    Attributes:
        released: Numbers of segments that nothing refers to any more; to be sent back.
    """

    def __init__(self) -> None:
        self._known: dict[int, mmap.mmap] = {}
        self.released: deque[int] = deque()

    def add(self, number: int, descriptor: int) -> None:
        """Map a new segment; the descriptor is closed."""
        try:
            self._known[number] = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)

    def views(self, number: int, sizes: Sequence[int]) -> list[memoryview]:
        """Return the buffers in a segment, which is released when the last object that uses one of them is gone."""
        memory = self._known[number]
        # A memoryview cannot have a finalizer, a ctypes array can; every view of the array keeps it alive.
        whole = (ctypes.c_char * len(memory)).from_buffer(memory)
        weakref.finalize(whole, self.released.append, number).atexit = False
        return list(aligned_views(memoryview(whole).cast("B"), sizes))

    def forget(self, number: int) -> None:
        """Unmap a segment that the other end will not use again."""
        self._known.pop(number, None)

    def close(self) -> None:
        """Let go of all segments; one that an object still refers to stays until the object is gone."""
        self._known.clear()
