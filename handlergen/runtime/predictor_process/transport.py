"""A connection between a worker and a predictor process: numbered messages over a Unix socket, and what they may be.

A message is a header, the sizes of its buffers, the buffers, and the pickled part (`serialization`). Large buffers are
passed in shared memory instead, whose descriptor goes along with the header. (`socket.send_fds` and `recv_fds` ignore
their flags in Python 3.11, so `sendmsg` and `recvmsg` are called directly.)

`Prepared`, `Predicted`, `RawRequest` and `RawAnswer`, of which each request has two, are sent as plain tuples: pickle
looks up the class of a named tuple at both ends (5 µs a request, and a multiple of it after a pause).
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
from array import array
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..codec.errors import Failure
from ..descriptors import closed_in_children
from .serialization import ReceivedSegments, SharedMemoryPool, aligned, aligned_views, pack, unpack

SHARED_FROM = 65536
"""Bytes of buffers from which shared memory costs less than the socket."""
_FIRST = 16  # kinds below are the transport's own
# From a worker.
HELLO = _FIRST
"""The worker's process id."""
PREDICT, EXPLAIN, REQUEST, DESCRIBE, HEALTH, CANCEL = range(_FIRST + 1, _FIRST + 7)
# From the predictor process.
WELCOME, REFUSED, ANSWER, CHUNK = range(_FIRST + 16, _FIRST + 20)
UNSENDABLE = _FIRST + 20
"""In place of an ANSWER: a value of the request or of its answer cannot be sent; the text says which, and why."""
LOG, METRICS = _FIRST + 21, _FIRST + 22
"""A record for TorchServe's model log: the logger's name, the level, the text with the traceback if there is one; and
lines of metrics for TorchServe's frontend, which reads them from a worker's standard output."""

_RELEASED, _FORGET = 1, 2
_HEADER = struct.Struct("=IIQQII")
"""Kind, number of buffers, request, bytes that follow, segment of shared memory, whether the segment is new."""
_SIZE = struct.Struct("=Q")
_MOST_PIECES = 512  # of one sendmsg; the system takes 1024 (IOV_MAX)
_ANCILLARY = socket.CMSG_SPACE(32 * array("i").itemsize)
_AT_ONCE = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)  # plain integers: an enum's `|` takes 2 µs


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


class Welcome(NamedTuple):
    """WELCOME: the model is loaded. The message's number is that of the connection, for the status file.

    Attributes:
        pid: The predictor process.
        device_key: The device, as in the key of its lock.
    """

    pid: int
    device_key: str


class Refused(NamedTuple):
    """REFUSED: the model cannot be loaded.

    Attributes:
        reason: One line: the exception.
        traceback: The user's own.
    """

    reason: str
    traceback: str


class Prepared(NamedTuple):
    """PREDICT and EXPLAIN: a request that a worker has preprocessed.

    Attributes:
        model_index: The number of the flow's model that is to predict; 0 in all other forms.
        inputs: What `preprocess` returned.
        ready_ns: When it returned it, on the monotonic clock that all processes share.
        request_id, properties, metadata: Of the request.
        data, files, entry, http: Of the item, where a hook reads them.
        outlet: Whether chunks of the answer can be sent to the client.
        wish: What a gRPC client asks for about chunks; None when it does not say.
    """

    model_index: int
    inputs: Any
    ready_ns: int
    request_id: str
    properties: Mapping[str, Any]
    metadata: dict[str, Any] | None
    data: Any
    files: Any
    entry: Mapping[str, Any] | None
    http: Any
    outlet: bool
    wish: Any


class Predicted(NamedTuple):
    """The ANSWER to PREDICT and EXPLAIN.

    Attributes:
        outputs: What `predict` returned.
        failure: Why there are none.
        metadata: The request's, as the hook left it; None when the hook never asked for it.
        sent: Chunks have been sent.
        state: `HttpRequest.state`, as the hook left it; None when no hook there asks for the `Request`.
    """

    outputs: Any
    failure: Failure | None
    metadata: dict[str, Any] | None
    sent: bool
    state: Any


class RawRequest(NamedTuple):
    """REQUEST: a request as TorchServe handed it over; the predictor process runs all of its stages.

    Attributes:
        entry, properties, request_id: As TorchServe has them.
        outlet: Whether chunks of the answer can be sent to the client.
    """

    entry: Mapping[str, Any]
    properties: Mapping[str, Any]
    request_id: str
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
                if sum(buffer.nbytes for buffer in buffers) >= SHARED_FROM and shared_memory_available():
                    segment, new = self._pool.copy(buffers)
                else:
                    parts += buffers
                body = [*_padded(parts), pickled]
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
        rest = body[aligned(head) :]
        if segment:
            return unpack(rest, self._segments.views(segment, sizes))
        return unpack(rest[sum(map(aligned, sizes)) :], aligned_views(rest, sizes))

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
        one.send(HELLO, 0, value)
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


def shared_memory_available() -> bool:
    """Return whether this system has anonymous shared memory (Linux); elsewhere buffers go through the socket."""
    return hasattr(os, "memfd_create")


def _padded(parts: Sequence[Any]) -> Iterator[Any]:
    """Yield the parts, each followed by what brings the next one to its alignment."""
    for part in parts:
        yield part
        missing = aligned(len(part)) - len(part)
        if missing:
            yield bytes(missing)


def _ancillary(descriptor: int | None) -> list[tuple[int, int, array[int]]]:
    return [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [descriptor]))]
