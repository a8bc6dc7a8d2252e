"""Reading what TorchServe sends this worker: many fields with one system call, and a batch in one go."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Any

_LENGTH = struct.Struct("!i")
_NOTHING_MORE = -1
_AHEAD = 1 << 16
"""Bytes that are asked for at once. Longer fields are received where they stay."""


def read_ahead() -> None:
    """Let TorchServe's worker receive ahead, and read a batch that is there as a whole.

    Its own functions ask the system for each length and each field of a request alone
    (ts/protocol/otf_message_handler.py, `_retrieve_buffer`): 27 calls for a request of three headers, and four more for
    each further header, a third of what a worker spends on a request whose model does nothing. Going through the
    fields then still takes 17 µs, and 5 in one function (`_retrieve_inference_msg`).

    Nothing may have been received in part: to be called while TorchServe waits for its model to be loaded, and with
    TS_DECODE_INPUT_REQUEST off. Where those functions are not found, nothing happens.
    """
    from ts.protocol import otf_message_handler as protocol

    if hasattr(protocol, "_retrieve_buffer") and not isinstance(protocol._retrieve_buffer, ReadAhead):
        ahead = protocol._retrieve_buffer = ReadAhead(protocol._retrieve_buffer)
        if hasattr(protocol, "_retrieve_inference_msg"):
            protocol._retrieve_inference_msg = Batches(ahead, protocol._retrieve_inference_msg)


class ReadAhead:
    """Keeps what was received and not asked for yet.

    Args:
        own: The function whose place it takes; is asked when TorchServe has gone, and ends the process.
    """

    def __init__(self, own: Callable[[socket.socket, int], bytearray]) -> None:
        self._own = own
        self._connection: socket.socket | None = None
        self._received = memoryview(bytearray(_AHEAD))
        self._start = 0
        self._end = 0

    def __call__(self, connection: socket.socket, length: int) -> bytearray:
        """The next bytes of a connection; waits until they are there.

        Args:
            connection: TorchServe's; a worker has one at a time.
            length: How many.
        """
        if connection is not self._connection:
            self._connection = connection
            self._start = self._end = 0
        start = self._start
        end = start + max(0, length)  # -1 says that there is nothing
        if end > self._end:
            return self._wait_for(connection, length)
        self._start = end
        return bytearray(self._received[start:end])

    def there(self, connection: socket.socket) -> bytes:
        """What has come of a connection and was not asked for; nothing when it is as much as can be received ahead."""
        if connection is not self._connection or self._end - self._start >= _AHEAD // 2:
            return b""
        return bytes(self._received[self._start : self._end])

    def skip(self, length: int) -> None:
        """So many bytes of `there` have been read."""
        self._start += length

    def _wait_for(self, connection: socket.socket, length: int) -> bytearray:
        here = self._received[self._start : self._end]
        there = len(here)
        if length >= _AHEAD:
            field = bytearray(length)
            field[:there] = here
            self._start = self._end = 0
            missing = memoryview(field)[there:]
            while missing:
                missing = missing[self._receive(connection, missing) :]
            return field
        self._received[:there] = bytes(here)  # where it lies now may overlap
        self._start, self._end = length, there
        while self._end < length:
            self._end += self._receive(connection, self._received[self._end :])
        return bytearray(self._received[:length])

    def _receive(self, connection: socket.socket, into: memoryview) -> int:
        return connection.recv_into(into) or len(self._own(connection, 1))


class Batches:
    """Reads what follows the command of a prediction: in one go where all of it is there, as it is for small requests.

    Args:
        ahead: Receives.
        own: The function whose place it takes; reads what is not there as a whole.
    """

    def __init__(self, ahead: ReadAhead, own: Callable[[socket.socket], list[dict[str, Any]]]) -> None:
        self._ahead = ahead
        self._own = own

    def __call__(self, connection: socket.socket) -> list[dict[str, Any]]:
        """The requests of a batch, as TorchServe's own function gives them.

        Args:
            connection: TorchServe's.
        """
        try:
            requests, length = _batch(self._ahead.there(connection))
        except struct.error:
            return self._own(connection)
        self._ahead.skip(length)
        return requests


def _batch(received: bytes) -> tuple[list[dict[str, Any]], int]:
    """The requests, and how many bytes they take.

    Raises:
        struct.error: They are not there as a whole.
    """
    length_at = _LENGTH.unpack_from
    place = 0

    def field() -> bytearray | None:
        nonlocal place
        (length,) = length_at(received, place)
        start = place + _LENGTH.size
        place = start + max(0, length)
        return None if length == _NOTHING_MORE else bytearray(received[start:place])

    requests = []
    while (request_id := field()) is not None:
        headers = []
        while (name := field()) is not None:
            headers.append({"name": name, "value": field() or bytearray()})
        parameters = []
        while (name := field()) is not None:
            kind, value = field() or bytearray(), field() or bytearray()
            parameters.append({"name": name.decode(), "contentType": kind.decode(), "value": value})
        requests.append({"requestId": request_id, "headers": headers, "parameters": parameters})
    return requests, place
