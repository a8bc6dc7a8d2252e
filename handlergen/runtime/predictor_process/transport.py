"""A connection between a worker and a predictor process: numbered messages over a Unix socket.

A message is a header, the sizes of its buffers, the buffers, and the pickled part (`serialization`). Large buffers are
passed in anonymous shared memory (memfd) instead, whose descriptor goes along with the header. A segment of shared
memory has no name that could be left behind, whatever is killed, and is reused once the receiver has let go of all that
lay in it: the page faults of fresh memory cost more than the copy (4.8 MB: 1.6 ms against 0.6 ms).
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import select
import socket
import struct
import threading
import weakref
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ..descriptors import closed_in_children
from .serialization import pack, unpack

SHARED_FROM = 65536
"""Bytes of buffers from which shared memory costs less than the socket."""
FIRST_KIND = 16
"""Kinds of messages below are the transport's own."""

_RELEASED, _FORGET = 1, 2
_HEADER = struct.Struct(
    "=IIQQII"
)  # kind, number of buffers, request, bytes that follow, segment, whether that is new
_SIZE = struct.Struct("=Q")
_SHARED_ALIGNMENT = 64  # bytes; what vector instructions like
_INLINE_ALIGNMENT = 16  # as malloc's: compiled code may rely on aligned numbers
_MOST_PIECES = 512  # of one sendmsg; the system takes 1024 (IOV_MAX)
_ANCILLARY = socket.CMSG_SPACE(32 * array("i").itemsize)
_AT_ONCE = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)  # plain integers: an enum's `|` takes 2 µs
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
    """What was received.

    Attributes:
        kind: See `protocol`.
        number: The request that it belongs to.
        value: Anything; `Unreadable` when it could not be unpickled here.
    """

    kind: int
    number: int
    value: Any


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
        total = sum(aligned(buffer.nbytes) for buffer in buffers)
        fitting = [segment for segment in self._free if segment.size >= total]
        if fitting:
            segment = min(fitting, key=lambda each: each.size)
            self._free.remove(segment)
        else:
            segment = _Segment(self._next, max(_SMALLEST_SEGMENT, 1 << (total - 1).bit_length()))
            self._next += 1
        self._lent[segment.number] = segment
        offset = 0
        with memoryview(segment.memory) as memory:
            for buffer in buffers:
                memory[offset : offset + buffer.nbytes] = buffer
                offset += aligned(buffer.nbytes)
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
        everything = memoryview(whole).cast("B")
        views, offset = [], 0
        for size in sizes:
            views.append(everything[offset : offset + size])
            offset += aligned(size)
        return views

    def forget(self, number: int) -> None:
        """Unmap a segment that the other end will not use again."""
        self._known.pop(number, None)

    def close(self) -> None:
        """Let go of all segments; one that an object still refers to stays until the object is gone."""
        self._known.clear()


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
                sizes = b"".join(_SIZE.pack(buffer.nbytes) for buffer in buffers)
                if sum(buffer.nbytes for buffer in buffers) >= SHARED_FROM and shared_memory_available():
                    segment, new = self._pool.copy(buffers)
                    body = [sizes, pickled]
                else:
                    body = [*_padded([sizes, *buffers]), pickled]
            length = sum(len(part) for part in body)
            header = _HEADER.pack(kind, len(buffers), number, length, segment, new is not None)
            # The pool's own messages are collected last: they would be lost if anything before failed.
            self._transmit([*self._about_segments(), header, *body], new)

    def _about_segments(self) -> list[bytes]:
        """Return the messages about shared memory that are due."""
        messages = []
        released = self._segments.released
        while released:
            messages.append(_HEADER.pack(_RELEASED, 0, released.popleft(), 0, 0, 0))
        for number in self._pool.surplus():
            messages.append(_HEADER.pack(_FORGET, 0, number, 0, 0, 0))
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
        """Receive as many bytes as `target` has."""
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
        if segment:
            return unpack(body[head:], self._segments.views(segment, sizes))
        buffers, offset = [], _up(head, _INLINE_ALIGNMENT) if sizes else head
        for size in sizes:
            buffers.append(body[offset : offset + size])
            offset += _up(size, _INLINE_ALIGNMENT)
        return unpack(body[offset:], buffers)

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
        one.send(FIRST_KIND, 0, value)
        received = other.receive().value
        if isinstance(received, Unreadable):
            raise received.error
        return received
    finally:
        one.close()
        other.close()


def aligned(size: int) -> int:
    """Return `size` rounded up to the alignment of buffers in shared memory."""
    return _up(size, _SHARED_ALIGNMENT)


def shared_memory_available() -> bool:
    """Return whether this system has anonymous shared memory (Linux); elsewhere buffers go through the socket."""
    return hasattr(os, "memfd_create")


def _up(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _padded(parts: Sequence[Any]) -> Iterator[Any]:
    """Yield the parts, each followed by what brings the next one to its alignment."""
    for part in parts:
        yield part
        missing = -len(part) % _INLINE_ALIGNMENT
        if missing:
            yield bytes(missing)


def _ancillary(descriptor: int | None) -> list[tuple[int, int, array[int]]]:
    return [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [descriptor]))]
