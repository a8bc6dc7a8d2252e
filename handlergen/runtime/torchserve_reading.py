"""Reading what TorchServe sends this worker, many fields with one system call."""

from __future__ import annotations

import socket
from collections.abc import Callable

_AHEAD = 1 << 16
"""Bytes that are asked for at once. Longer fields are received where they stay."""


def read_ahead() -> None:
    """Let TorchServe's worker receive ahead.

    Its own function asks the system for each length and each field of a request alone
    (ts/protocol/otf_message_handler.py, `_retrieve_buffer`): 27 calls for a request of three headers, and four more for
    each further header, a third of what a worker spends on a request whose model does nothing. Nothing may have been
    received in part: to be called while TorchServe waits for its model to be loaded. Where that function is not found,
    nothing happens.
    """
    from ts.protocol import otf_message_handler as protocol

    if hasattr(protocol, "_retrieve_buffer") and not isinstance(protocol._retrieve_buffer, ReadAhead):
        protocol._retrieve_buffer = ReadAhead(protocol._retrieve_buffer)


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
