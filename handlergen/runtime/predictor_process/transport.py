"""Messages between a worker and a predictor process: what they may be, and how they are sent over a Unix socket.

A message is a header, the sizes of its buffers, the buffers, and the pickled part: a value is pickled with the buffers
of its tensors and arrays beside it (PEP 574). torch's own pickling copies a tensor into the stream and takes five times
as long for a small one. Nothing that a client sends is ever unpickled: the pickle comes from the other end of the
connection, whose user was checked.

Large buffers lie in anonymous shared memory (memfd) instead, whose descriptor goes along with the header. A segment has
no name that a killed process could leave behind, and is reused once the receiver has let go of all that lay in it: the
page faults of fresh memory cost more than the copy (4.8 MB: 1.6 ms against 0.6 ms). (`socket.send_fds` and `recv_fds`
ignore their flags in Python 3.11, so `sendmsg` and `recvmsg` are called directly.)

`Prepared`, `Predicted`, `RawRequest` and `RawAnswer`, of which each request has two, are sent as plain tuples: pickle
looks up the class of a named tuple at both ends (5 µs a request, and a multiple of it after a pause).
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import mmap
import os
import pickle
import select
import socket
import struct
import threading
import weakref
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch

from ..codec.errors import Failure
from ..descriptors import closed_in_children
from ..pipeline.request_context import Changes

SHARED_FROM = 65536
"""Bytes of buffers from which shared memory costs less than the socket."""


class Kind:
    """What a message is. Kinds below 16 are the transport's own."""

    # From a worker. HELLO has the worker's process id.
    HELLO, PREDICT, EXPLAIN, REQUEST, DESCRIBE, HEALTH, CANCEL = range(16, 23)
    # From the predictor process. UNSENDABLE comes in place of an ANSWER: a value of the request or of its answer cannot
    # be sent; the text says which, and why.
    WELCOME, REFUSED, ANSWER, CHUNK, UNSENDABLE = range(32, 37)
    # LOG is a record for TorchServe's model log: the logger's name, the level, the text with the traceback if there is
    # one. METRICS are lines for TorchServe's frontend, which reads them from a worker's standard output.
    LOG, METRICS = range(37, 39)


_RELEASED, _FORGET = 1, 2
_HEADER = struct.Struct("=IIQQII")
"""Kind, number of buffers, request, bytes that follow, segment of shared memory, whether the segment is new."""
_SIZE = struct.Struct("=Q")
_MOST_PIECES = 512  # of one sendmsg; the system takes 1024 (IOV_MAX)
_ANCILLARY = socket.CMSG_SPACE(32 * array("i").itemsize)
_AT_ONCE = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)  # plain integers: an enum's `|` takes 2 µs

_ALIGNMENT = 64  # bytes; what vector instructions like
_SHARED_MEMORY = hasattr(os, "memfd_create")  # Linux; elsewhere all buffers go through the socket
_SMALLEST_SEGMENT = 1 << 18
_FREE_SEGMENTS = 8
_FREE_BYTES = 128 << 20
"""How many free segments, and how much memory in them, each direction of a connection keeps."""


class Gone(Exception):
    """The other end has closed the connection, or died."""


class Unreadable(NamedTuple):
    """Stands for a value that this process cannot unpickle: of a class that only the other one can import, say."""

    error: Exception


class Message(NamedTuple):
    """A received message; its value is `Unreadable` when it could not be unpickled here."""

    kind: int
    number: int
    value: Any


class Welcome(NamedTuple):
    """WELCOME: the model is loaded. The message's number is that of the connection, for the status file."""

    pid: int
    device_key: str


class Refused(NamedTuple):
    """REFUSED: the model cannot be loaded, for this exception; the traceback is reduced to the user's code."""

    reason: str
    traceback: str


class Prepared(NamedTuple):
    """PREDICT and EXPLAIN: a request that a worker has preprocessed.

    Attributes:
        model_index: The number of the flow's model that is to predict; 0 in all other forms.
        ready_ns: When `preprocess` returned the inputs, on the monotonic clock that all processes share.
        data, files, entry, http: Of the item, where a hook reads them.
        outlet: Whether chunks of the answer can be sent to the client.
        wish: What a gRPC client asks for about chunks; None when it does not say.
        changes: What hooks have set in the request's context.
    """

    model_index: int
    inputs: Any
    ready_ns: int
    torchserve_id: str
    properties: Mapping[str, Any]
    metadata: dict[str, Any] | None
    data: Any
    files: Any
    entry: Mapping[str, Any] | None
    http: Any
    outlet: bool
    wish: Any
    changes: Changes | None


class Predicted(NamedTuple):
    """The ANSWER to PREDICT and EXPLAIN: the outputs or a failure, and whether chunks have been sent.

    Attributes:
        metadata: The request's, as the hook left it; None when the hook never asked for it.
        state: `HttpRequest.state`, as the hook left it; None when no hook there asks for the `Request`.
    """

    outputs: Any
    failure: Failure | None
    metadata: dict[str, Any] | None
    sent: bool
    state: Any
    changes: Changes | None


class RawRequest(NamedTuple):
    """REQUEST: a request as TorchServe handed it over; the predictor process runs all of its stages."""

    entry: Mapping[str, Any]
    properties: Mapping[str, Any]
    torchserve_id: str
    outlet: bool


class RawAnswer(NamedTuple):
    """The ANSWER to REQUEST: the item's `reply` or `failure`, and whether chunks have been sent."""

    reply: Any
    failure: Failure | None
    sent: bool


class Transport:
    """One end of a connection.

    `send` may be called from any thread and never waits for the receiver: what the socket does not take at once, a
    sender thread sends. `receive` waits, and belongs to one reader thread.

    Args:
        connection: A connected Unix stream socket, which the transport owns from then on.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._sending = threading.Lock()
        self._backlog: deque[tuple[memoryview, int | None]] = deque()
        self._pool = SharedMemoryPool()
        self._segments = ReceivedSegments()
        self._descriptors: deque[int] = deque()
        self._closed = False
        closed_in_children(connection)

    def send(self, kind: int, number: int, value: Any = None) -> None:
        """Send a message.

        Raises:
            Gone: The other end is.
            Exception: The value cannot be pickled; nothing has been sent then.
        """
        pickled, buffers = pack(value)
        with self._sending:
            if self._closed:
                raise Gone
            segment, new = 0, None
            body: list[Any] = [pickled]
            if buffers:
                parts: list[Any] = [b"".join(_SIZE.pack(buffer.nbytes) for buffer in buffers)]
                if sum(buffer.nbytes for buffer in buffers) >= SHARED_FROM and _SHARED_MEMORY:
                    segment, new = self._pool.copy(buffers)
                else:
                    parts += buffers
                body = []
                for part in parts:
                    body += [part, bytes(_aligned(len(part)) - len(part))]
                body.append(pickled)
            length = sum(len(part) for part in body)
            header = _HEADER.pack(kind, len(buffers), number, length, segment, new is not None)
            # The pool's own messages are collected last: they would be lost if anything before failed.
            self._transmit([*self._about_segments(), header, *body], new)

    def _about_segments(self) -> list[bytes]:
        messages = [_HEADER.pack(_FORGET, 0, number, 0, 0, 0) for number in self._pool.surplus()]
        while released := self._segments.released:
            messages.append(_HEADER.pack(_RELEASED, 0, released.popleft(), 0, 0, 0))
        return messages

    def _transmit(self, pieces: list[Any], descriptor: int | None) -> None:
        """Send what the socket takes at once, and leave the rest to the sender thread; under the lock."""
        if self._backlog:  # in order: behind what waits already
            self._backlog.append((memoryview(b"".join(pieces)), descriptor))
            return
        if len(pieces) > _MOST_PIECES:
            pieces = [b"".join(pieces)]
        try:
            sent = self._socket.sendmsg(pieces, _ancillary(descriptor), _AT_ONCE)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._closed = True
            raise Gone from error
        if sent:
            descriptor = None
        if sent < sum(len(piece) for piece in pieces):
            # A copy: the sender's memory is the sender's again when `send` returns.
            self._backlog.append((memoryview(b"".join(pieces))[sent:], descriptor))
            threading.Thread(target=self._send_backlog, name="handlergen-sender", daemon=True).start()

    def _send_backlog(self) -> None:
        while True:
            with self._sending:
                if self._closed or not self._backlog:
                    return
                piece, descriptor = self._backlog[0]
            try:
                sent = self._socket.sendmsg([piece], _ancillary(descriptor), socket.MSG_NOSIGNAL)
            except OSError:
                self._closed = True
                return
            with self._sending:
                self._backlog.popleft()
                if sent < piece.nbytes:
                    self._backlog.appendleft((piece[sent:], None))
                elif not self._backlog:
                    return

    def wait(self, seconds: float) -> bool:
        """Return whether there is something to receive, waiting for so many seconds."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def receive(self) -> Message:
        """Wait for the next message; by one thread only.

        Raises:
            Gone: The other end is, and everything that it sent has been received.
        """
        while True:
            kind, count, number, length, segment, new = _HEADER.unpack(self._header())
            if kind == _RELEASED:
                with self._sending:
                    self._pool.returned(number)
                continue
            if kind == _FORGET:
                self._segments.forget(number)
                continue
            body = bytearray(length)
            self._fill(memoryview(body))
            if new:
                if not self._descriptors:  # this process has too many open files: the descriptor was dropped
                    raise Gone
                self._segments.add(segment, self._descriptors.popleft())
            try:
                value = self._value(memoryview(body), count, segment)
            except Exception as error:
                value = Unreadable(error)
            return Message(kind, number, value)

    def _header(self) -> bytes:
        """Receive a header. Descriptors arrive with the first byte of what was sent, which a header always is."""
        try:
            data, ancillary, _, _ = self._socket.recvmsg(_HEADER.size, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            raise Gone from error
        for _level, _type, raw in ancillary:
            descriptors = array("i")
            descriptors.frombytes(raw[: len(raw) - len(raw) % descriptors.itemsize])
            self._descriptors.extend(descriptors)
        if not data:
            raise Gone
        if len(data) < _HEADER.size:
            rest = bytearray(_HEADER.size - len(data))
            self._fill(memoryview(rest))
            data += rest
        return data

    def _fill(self, target: memoryview) -> None:
        while target.nbytes:
            try:
                size = self._socket.recv_into(target, 0, socket.MSG_WAITALL)
            except OSError as error:
                raise Gone from error
            if not size:
                raise Gone
            target = target[size:]

    def _value(self, body: memoryview, count: int, segment: int) -> Any:
        head = count * _SIZE.size
        sizes = [size for (size,) in _SIZE.iter_unpack(body[:head])]
        rest = body[_aligned(head) :]
        if segment:
            return unpack(rest, self._segments.views(segment, sizes))
        return unpack(rest[sum(map(_aligned, sizes)) :], _aligned_views(rest, sizes))

    def close(self) -> None:
        """End the connection; a thread that waits in `receive` gets `Gone`."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with self._sending:
            self._socket.close()
            while self._descriptors:
                os.close(self._descriptors.popleft())
            self._pool.close()
            self._segments.close()


def round_trip(value: Any) -> Any:
    """Send a value through a connection within this process, and return what arrives.

    Raises:
        Exception: The value cannot be sent, or what arrives cannot be read.
    """
    one, other = (Transport(end) for end in socket.socketpair(socket.AF_UNIX))
    try:
        one.send(Kind.HELLO, 0, value)
        received = other.receive().value
        if isinstance(received, Unreadable):
            raise received.error
        return received
    finally:
        one.close()
        other.close()


def describe_error(error: BaseException) -> str:
    """Return an error's type and text."""
    return f"{type(error).__name__}: {error}"


def _ancillary(descriptor: int | None) -> list[tuple[int, int, array[int]]]:
    return [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [descriptor]))]


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
    return pickle.loads(pickled, buffers=buffers)  # noqa: S301 - from a process of this user


def _reduce_tensor(value: torch.Tensor) -> Any:
    if not _is_plain(value):
        return value.__reduce_ex__(5)  # type: ignore[no-untyped-call]
    if not value.numel():
        return _strided, (None, value.dtype, tuple(value.shape), value.stride())
    dense = value
    if not value.is_contiguous():
        dense = value.permute(sorted(range(value.dim()), key=value.stride, reverse=True))
    if dense.is_contiguous():
        return _strided, (pickle.PickleBuffer(_bytes(dense)), value.dtype, tuple(value.shape), value.stride())
    # A slice: only what it shows crosses, not all of its storage. Of an expanded tensor only one copy does.
    shown = value
    for dim in range(value.dim()):
        if value.stride(dim) == 0:
            shown = shown.narrow(dim, 0, 1)
    if _overlaps(shown):
        return value.__reduce_ex__(5)  # type: ignore[no-untyped-call]
    buffer = pickle.PickleBuffer(_bytes(shown.contiguous()))
    return _spread, (buffer, value.dtype, tuple(shown.shape), tuple(value.shape), value.stride())


class _Pickler(pickle.Pickler):
    dispatch_table: ClassVar[dict[type, Callable[[Any], Any]]] = {  # type: ignore[misc]
        torch.Tensor: _reduce_tensor,
        torch.layout: lambda value: str(value).removeprefix("torch."),  # of a sparse tensor: a global of torch
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


def _strided(buffer: Any, dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
    """Return the tensor with its strides: a kernel may round otherwise for another layout of the same numbers."""
    if buffer is None:
        return torch.empty_strided(shape, stride, dtype=dtype)
    return torch.frombuffer(buffer, dtype=dtype).as_strided(shape, stride)


def _spread(
    buffer: Any,
    dtype: torch.dtype,
    shown: tuple[int, ...],
    shape: tuple[int, ...],
    stride: tuple[int, ...],
) -> torch.Tensor:
    """Return a tensor with gaps."""
    value = torch.empty_strided(shown, stride, dtype=dtype)
    value.copy_(torch.frombuffer(buffer, dtype=dtype).view(shown))
    return value.as_strided(shape, stride)


def _bytes(value: torch.Tensor) -> Any:
    """Return a contiguous tensor's memory as a buffer, which keeps the tensor alive.

    By ctypes, since `Tensor.numpy` needs numpy, which torch does not install (and takes five times as long: 12 µs).
    """
    memory: Any = (ctypes.c_ubyte * (value.numel() * value.element_size())).from_address(value.data_ptr())
    memory.tensor = value
    return memory


def _overlaps(value: torch.Tensor) -> bool:
    """Return whether two elements share memory, as in a sliding window."""
    extent = 1
    for stride, size in sorted(zip(value.stride(), value.shape)):
        if size > 1 and stride < extent:
            return True
        extent += (size - 1) * stride
    return False


def _aligned(size: int) -> int:
    """Return `size` rounded up to the alignment of buffers."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _aligned_views(memory: memoryview, sizes: Iterable[int]) -> Iterator[memoryview]:
    """Yield the buffers of these sizes, which lie in `memory` one after the other, each at an aligned offset."""
    offset = 0
    for size in sizes:
        yield memory[offset : offset + size]
        offset += _aligned(size)


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
        total = sum(map(_aligned, sizes))
        fitting = [segment for segment in self._free if segment.size >= total]
        if fitting:
            segment = min(fitting, key=lambda each: each.size)
            self._free.remove(segment)
        else:
            segment = _Segment(self._next, max(_SMALLEST_SEGMENT, 1 << (total - 1).bit_length()))
            self._next += 1
        self._lent[segment.number] = segment
        with memoryview(segment.memory) as memory:
            for view, buffer in zip(_aligned_views(memory, sizes), buffers):
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
        return list(_aligned_views(memoryview(whole).cast("B"), sizes))

    def forget(self, number: int) -> None:
        """Unmap a segment that the other end will not use again."""
        self._known.pop(number, None)

    def close(self) -> None:
        """Let go of all segments; one that an object still refers to stays until the object is gone."""
        self._known.clear()
