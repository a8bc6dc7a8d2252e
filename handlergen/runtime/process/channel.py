"""A connection between a worker and a predictor process: numbered messages over a Unix socket.

A frame is a header, the sizes of the message's buffers, the buffers themselves unless they lie in shared memory, and
the pickled part. Buffers begin at multiples of 16 bytes, as `malloc`'s do: compiled code may take it for granted that
numbers are aligned. Sending never waits: what the socket does not take at once a thread sends later, so that a slow
receiver holds up nobody but itself. Nor does a message that has arrived in part: it is put together as it comes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from .forks import closed_in_children
from .segments import Incoming, Outgoing, available
from .values import pack, unpack

SHARED_FROM = 65536
"""Bytes of buffers from which shared memory costs less than the socket."""

_HEADER = struct.Struct(
    "=IIQQII"
)  # kind, number of buffers, request, bytes that follow, segment, segment is new
_SIZE = struct.Struct("=Q")
_READ = 1 << 16
_INLINE_ALIGNMENT = 16
_PADDING = bytes(_INLINE_ALIGNMENT)
_MOST_PIECES = 512
"""Of one sendmsg; the system takes 1024 (IOV_MAX)."""
_MOST_DESCRIPTORS = 32
_ANCILLARY = socket.CMSG_SPACE(_MOST_DESCRIPTORS * array("i").itemsize)
_DONTWAIT = int(socket.MSG_DONTWAIT)  # plain integers: an enum's `|` takes 2 µs
_AT_ONCE = _DONTWAIT | int(socket.MSG_NOSIGNAL)
_WAITING = int(socket.MSG_CMSG_CLOEXEC)
_RELEASED, _FORGET = 1, 2
FIRST_KIND = 16
"""Kinds of messages below are the channel's own."""


class Gone(Exception):
    """The other end has closed the connection, or died."""


class Unreadable(NamedTuple):
    """Stands for a value that this process cannot unpickle: of a class that only the other one can import, say."""

    error: Exception


class Message(NamedTuple):
    """What was received.

    Attributes:
        kind: What it is; the meaning is the sender's and receiver's affair.
        number: The request it belongs to.
        value: Anything; `Unreadable` when it could not be unpickled here.
    """

    kind: int
    number: int
    value: Any


class Channel:
    """One end.

    Args:
        connection: A connected Unix stream socket; taken over.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._sending = threading.Lock()
        self._unsent: deque[tuple[memoryview, int | None]] = deque()
        self._writer: threading.Thread | None = None
        self._outgoing = Outgoing()
        self._incoming = Incoming()
        self._received = bytearray()
        self._long: memoryview | None = (
            None  # what is missing of a long frame whose beginning is in `_received`
        )
        self._descriptors: deque[int] = deque()
        self._closed = False
        closed_in_children(connection)

    def fileno(self) -> int:
        """For polling."""
        return self._socket.fileno()

    @property
    def closed(self) -> bool:
        return self._closed

    def set_wait(self, seconds: float) -> None:
        """How long `receive` waits before it returns nothing."""
        whole = int(seconds)
        micros = int((seconds - whole) * 1_000_000)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", whole, micros))

    def send(self, kind: int, number: int, value: Any = None) -> None:
        """Send a message, from any thread; never waits for the receiver.

        Raises:
            Gone: The other end is.
            Exception: The value cannot be pickled; nothing has been sent then.
        """
        pickled, buffers = pack(value)
        with self._sending:
            if self._closed:
                raise Gone
            segment, new = 0, None
            if not buffers:
                body: list[Any] = [pickled]
            else:
                sizes = b"".join(_SIZE.pack(buffer.nbytes) for buffer in buffers)
                if sum(buffer.nbytes for buffer in buffers) >= SHARED_FROM and available():
                    segment, new = self._outgoing.lay_down(buffers)
                    body = [sizes, pickled]
                else:
                    body = [*_aligned([sizes, *buffers]), pickled]
            length = sum(len(part) for part in body)
            header = _HEADER.pack(kind, len(buffers), number, length, segment, new is not None)
            # Last, because what it takes is lost when anything before it fails.
            frame = [header + pickled] if not buffers and length < _READ else [header, *body]
            self._send_now([*self._housekeeping(), *frame], new)

    def _housekeeping(self) -> list[Any]:
        """Frames about shared memory that go along."""
        frames = []
        released = self._incoming.released
        while released:
            frames.append(_HEADER.pack(_RELEASED, 0, released.popleft(), 0, 0, 0))
        for number in self._outgoing.surplus():
            frames.append(_HEADER.pack(_FORGET, 0, number, 0, 0, 0))
        return frames

    def _send_now(self, frames: list[Any], descriptor: int | None) -> None:
        if self._unsent:  # in order: behind what waits already
            self._keep(frames, descriptor)
            return
        if len(frames) > _MOST_PIECES:
            frames = [b"".join(frames)]
        try:
            if len(frames) == 1 and descriptor is None:
                sent = self._socket.send(frames[0], _AT_ONCE)
            else:
                sent = self._socket.sendmsg(frames, _ancillary(descriptor), _AT_ONCE)
        except BlockingIOError:
            self._keep(frames, descriptor)
        except OSError as error:
            self._closed = True
            raise Gone from error
        else:
            left = []
            for frame in frames:
                if sent < len(frame):
                    left.append(memoryview(frame)[sent:])
                sent = max(0, sent - len(frame))
            if left:
                self._keep(left, None)
        if self._unsent:
            self._writer = threading.Thread(target=self._write, name="handlergen-writer", daemon=True)
            self._writer.start()

    def _keep(self, frames: Sequence[Any], descriptor: int | None) -> None:
        """For the writer; a copy, because the sender's memory is the sender's again when `send` returns."""
        self._unsent.append((memoryview(b"".join(frames)), descriptor))

    def _write(self) -> None:
        """Send what is left, waiting for the receiver."""
        import select

        poll = select.poll()
        try:
            poll.register(self._socket, select.POLLOUT)
        except ValueError:  # closed meanwhile
            return
        while not self._closed:
            poll.poll(1000)
            with self._sending:
                piece, descriptor = self._unsent[0]
                try:
                    sent = self._socket.sendmsg([piece], _ancillary(descriptor), _AT_ONCE)
                except BlockingIOError:
                    continue
                except OSError:
                    self._closed = True
                    return
                self._unsent.popleft()
                if sent < piece.nbytes:
                    self._unsent.appendleft((piece[sent:], None))
                if not self._unsent:
                    return

    def receive(self, *, wait: bool = True) -> list[Message]:
        """The next messages; by one thread at a time.

        Args:
            wait: For at least some bytes, as long as `set_wait` says; else only what is there.

        Returns:
            Complete messages; none when the time is over, or when a message has not arrived as a whole.

        Raises:
            Gone: The other end is, and everything it sent has been received.
        """
        flags = _WAITING if wait else _WAITING | _DONTWAIT
        try:
            if self._long is not None:
                if not self._read_on(flags):
                    return []
            else:
                data, ancillary, _, _ = self._socket.recvmsg(_READ, _ANCILLARY, flags)
                self._take_descriptors(ancillary)
                if not data:
                    raise Gone
                if not self._received and (message := self._only(data)) is not None:
                    return [message]
                self._received += data
        except (BlockingIOError, InterruptedError):
            return []
        except OSError as error:
            raise Gone from error
        return list(self._complete())

    def _read_on(self, flags: int) -> bool:
        """Take more of a long frame, straight to its place; whether it is all there."""
        while self._long is not None:
            size, ancillary, _, _ = self._socket.recvmsg_into([self._long], _ANCILLARY, flags)
            self._take_descriptors(ancillary)
            if not size:
                raise Gone
            left = self._long[size:]
            self._long.release()
            self._long = left if left.nbytes else None
        return True

    def _take_descriptors(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for _level, _type, raw in ancillary:
            descriptors = array("i")
            descriptors.frombytes(raw[: len(raw) - len(raw) % descriptors.itemsize])
            self._descriptors.extend(descriptors)

    def _only(self, data: bytes) -> Message | None:
        """The message, when it came whole, without buffers, and nothing else did; as nearly always."""
        if len(data) < _HEADER.size:
            return None
        kind, count, number, length, _segment, _new = _HEADER.unpack_from(data)
        if count or kind < FIRST_KIND or len(data) != _HEADER.size + length:
            return None
        return Message(kind, number, self._value(memoryview(data)[_HEADER.size :], 0, 0))

    def _complete(self) -> Iterator[Message]:
        received = self._received
        start = 0
        while len(received) - start >= _HEADER.size:
            kind, count, number, length, segment, new = _HEADER.unpack_from(received, start)
            end = start + _HEADER.size + length
            if len(received) < end:
                if length > _READ:
                    there = len(received) - start
                    self._received = whole = received[start:]
                    whole += bytes(end - len(received))
                    self._long = memoryview(whole)[there:]
                    return
                break
            if kind == _RELEASED:
                with self._sending:
                    self._outgoing.returned(number)
            elif kind == _FORGET:
                self._incoming.forget(number)
            else:
                if new:
                    if not self._descriptors:  # this process may open no more files: it was lost on the way
                        raise Gone
                    self._incoming.add(segment, self._descriptors.popleft())
                body = received[start + _HEADER.size : end]
                yield Message(kind, number, self._value(body, count, segment))
            start = end
        del received[:start]

    def _value(self, body: bytearray | memoryview, count: int, segment: int) -> Any:
        try:
            return self._unpacked(body, count, segment) if count else unpack(body, ())
        except Exception as error:
            return Unreadable(error)

    def _unpacked(self, body: bytearray | memoryview, count: int, segment: int) -> Any:
        whole = memoryview(body)
        head = count * _SIZE.size
        sizes = [size for (size,) in _SIZE.iter_unpack(whole[:head])]
        if segment:
            return unpack(whole[head:], self._incoming.views(segment, sizes))
        buffers, place = [], _up(head)
        for size in sizes:
            buffers.append(whole[place : place + size])
            place += _up(size)
        return unpack(whole[place if sizes else head :], buffers)

    def close(self) -> None:
        """End the connection."""
        with self._sending:
            self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        while self._descriptors:
            os.close(self._descriptors.popleft())
        self._outgoing.close()
        self._incoming.close()


def round_trip(value: Any) -> Any:
    """Send a value through a connection within this process, and return what arrives.

    Raises:
        Exception: The value cannot be sent, or what arrives cannot be read.
    """
    ends = [Channel(end) for end in socket.socketpair(socket.AF_UNIX)]
    try:
        ends[0].send(FIRST_KIND, 0, value)
        messages: list[Message] = []
        while not messages:
            messages = ends[1].receive()
        received = messages[0].value
        if isinstance(received, Unreadable):
            raise received.error
        return received
    finally:
        for end in ends:
            end.close()


def _up(size: int) -> int:
    return -(-size // _INLINE_ALIGNMENT) * _INLINE_ALIGNMENT


def _aligned(parts: Sequence[Any]) -> Iterator[Any]:
    """The parts, each followed by what brings the next one to its alignment."""
    for part in parts:
        yield part
        missing = -len(part) % _INLINE_ALIGNMENT
        if missing:
            yield _PADDING[:missing]


def _ancillary(descriptor: int | None) -> list[tuple[int, int, array[int]]]:
    return [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [descriptor]))]
