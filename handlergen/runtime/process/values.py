"""Values between two processes of this user: pickled, with the buffers of tensors and arrays beside it (PEP 574).

torch's own pickling copies a tensor into the stream and takes five times as long for a small one. Nothing that a client
sends is ever unpickled: what is unpickled here was pickled by the other end of a connection, whose user was checked.
"""

from __future__ import annotations

import ctypes
import io
import pickle
from collections.abc import Callable, Iterable
from types import MappingProxyType
from typing import Any, ClassVar

import torch


def pack(value: Any) -> tuple[bytes, list[memoryview]]:
    """A value as its pickled part and its buffers, which are views of the value's own memory.

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
    """The value of `pack`. Its tensors and arrays lie in `buffers`, which must be writable."""
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


def _strided(
    buffer: Any, dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...]
) -> torch.Tensor:
    return torch.frombuffer(buffer, dtype=dtype).as_strided(shape, stride)
