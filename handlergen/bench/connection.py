"""One kept HTTP/1.1 connection with one request under way, for a selector."""

from __future__ import annotations

import socket
import time
from typing import Any

CLOSED = "connection closed"
_HEAD_END = b"\r\n\r\n"
_CONNECT_S = 10.0


class Connection:
    """A connection that does not block.

    Attributes:
        exchange: What is under way, the caller's to set.
        started_ns: When that was due, the caller's to set.
        sent_ns: When it was sent.
        content: The body of the last complete answer.
        ended: No further request can be sent.

    Raises:
        OSError: Nobody answers.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=_CONNECT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.exchange: Any = None
        self.started_ns = self.sent_ns = 0
        self.content = b""
        self.ended = False
        self._received = b""
        self._unsent: memoryview | None = None

    def send(self, request: bytes) -> bool:
        """Send; False when a rest is left for `send_rest`, to be called when the connection takes more."""
        self._received = b""
        self.sent_ns = time.monotonic_ns()
        try:
            sent = self.socket.send(request)
        except BlockingIOError:
            sent = 0
        except OSError:
            return True  # receive() finds out
        if sent == len(request):
            return True
        self._unsent = memoryview(request)[sent:]
        return False

    def send_rest(self) -> bool:
        """Send on; True when nothing is left."""
        if self._unsent is None:
            return True
        try:
            self._unsent = self._unsent[self.socket.send(self._unsent) :]
        except BlockingIOError:
            return False
        except OSError:
            self._unsent = None
            return True
        if len(self._unsent):
            return False
        self._unsent = None
        return True

    def receive(self) -> str | None:
        """Read what has come: the outcome, "" for an answer in `content`, or None while it is not complete."""
        try:
            chunk = self.socket.recv(262_144)
        except BlockingIOError:
            return None
        except OSError:
            chunk = b""
        if not chunk:
            self.ended = True
            return CLOSED
        received = self._received = self._received + chunk if self._received else chunk
        head_end = received.find(_HEAD_END)
        if head_end < 0:
            return None
        head = received[:head_end].lower()
        content = _content(received, head_end + 4, head)
        if content is None:
            return None
        self._received = b""
        self.ended = b"\r\nconnection: close" in head
        self.content = content
        status = head[9:12]
        return "" if status.startswith(b"2") else f"status {status.decode('latin-1')}"

    def close(self) -> None:
        self.socket.close()


def _content(received: bytes, at: int, head: bytes) -> bytes | None:
    """The body that starts at `at`, None while it is not complete."""
    length = content_length(head)
    if length is not None:
        return received[at : at + length] if len(received) >= at + length else None
    if b"\r\ntransfer-encoding: chunked" not in head:
        return b""  # such as 204
    parts: list[bytes] = []
    while True:
        line_end = received.find(b"\r\n", at)
        if line_end < 0:
            return None
        size = int(received[at:line_end].split(b";", 1)[0], 16)
        at = line_end + 2 + size + 2
        if len(received) < at:
            return None
        if size == 0:
            return b"".join(parts)
        parts.append(received[line_end + 2 : at - 2])


def content_length(head: bytes) -> int | None:
    """The Content-Length of a response's head (lower case), None when it names none."""
    at = head.find(b"\r\ncontent-length:")
    if at < 0:
        return None
    return int(head[at + 17 :].split(b"\r\n", 1)[0])
