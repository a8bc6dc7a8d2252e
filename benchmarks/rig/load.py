"""A closed loop of N clients against one address, cheap enough to share two cores with the server it loads.

Raw HTTP/1.1 over kept connections, one thread, one selector: about 20 µs of CPU a request, where an asyncio
client library takes 200 and more. Every answer is compared with the one that belongs to its request.
"""

from __future__ import annotations

import json
import math
import selectors
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_LONGEST_ANSWER_S = 30.0
_HEAD_END = b"\r\n\r\n"


class Exchange:
    """A request and the answer that must come back.

    Args:
        path: What is asked, such as `/predictions/digits`.
        body: Sent as JSON.
        answer: The JSON value that must come back, however it is written.
    """

    def __init__(self, path: str, body: Any, answer: Any) -> None:
        content = json.dumps(body).encode()
        self.request = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        ).encode() + content
        self._answer = answer
        self._right: bytes | None = None

    def is_right(self, content: bytes) -> bool:
        """Is this the answer? The same bytes are only parsed once."""
        if content == self._right:
            return True
        try:
            right: bool = json.loads(content) == self._answer
        except ValueError:
            return False
        if right:
            self._right = content
        return right


@dataclass(frozen=True)
class Answer:
    """One answered (or failed) request.

    Attributes:
        started_ns, ended_ns: `time.monotonic_ns()`.
        outcome: `right`, `wrong`, `status 503`, or what broke.
    """

    started_ns: int
    ended_ns: int
    outcome: str


@dataclass(frozen=True)
class Figures:
    """What the answers within a window say.

    Attributes:
        requests_per_s: Right answers per second.
        latency_ms: Percentile (50, 95, 99) -> ms, of the right answers.
        outcomes: How many of each kind.
    """

    requests_per_s: float
    latency_ms: dict[int, float]
    outcomes: dict[str, int]


@dataclass
class Load:
    """The answers of one closed loop, and what the client itself cost.

    Attributes:
        started_ns, ended_ns: From the first request to the moment when no more were sent.
        client_cpu_s: CPU time of this process meanwhile.
    """

    started_ns: int
    ended_ns: int = 0
    client_cpu_s: float = 0.0
    answers: list[Answer] = field(default_factory=list)

    def steady(self, *, skip_first_s: float, skip_last_s: float) -> tuple[int, int]:
        """The window, in ns, without the start (batches and queues fill up) and the end (clients stop one by one).

        Raises:
            ValueError: Nothing is left.
        """
        window = (self.started_ns + int(skip_first_s * 1e9), self.ended_ns - int(skip_last_s * 1e9))
        if window[0] >= window[1]:
            raise ValueError("the load was shorter than what is cut off")
        return window

    def figures(self, window: tuple[int, int]) -> Figures:
        """The figures of the answers that came within a window."""
        start_ns, end_ns = window
        inside = [answer for answer in self.answers if start_ns <= answer.ended_ns < end_ns]
        right = [answer.ended_ns - answer.started_ns for answer in inside if answer.outcome == "right"]
        return Figures(
            requests_per_s=len(right) / ((end_ns - start_ns) / 1e9),
            latency_ms={p: percentile(right, p) / 1e6 for p in (50, 95, 99)} if right else {},
            outcomes=dict(Counter(answer.outcome for answer in inside)),
        )


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` % of the values do not exceed (nearest rank).

    Raises:
        ValueError: No values, or `percent` is not in 0..100.
    """
    if not values or not 0 <= percent <= 100:
        raise ValueError("a percentile needs values and a percentage")
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


class _Client:
    """One connection with one request under way."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self.socket = self._connect()
        self.exchange: Exchange
        self.started_ns = 0
        self._received = b""

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(self._address, timeout=_LONGEST_ANSWER_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def send(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self._received = b""
        self.started_ns = time.monotonic_ns()
        self.socket.sendall(exchange.request)

    def receive(self) -> str | None:
        """Read what has come: the outcome, or None while the answer is not complete."""
        chunk = self.socket.recv(65536)
        if not chunk:
            return "connection closed"
        self._received += chunk
        head_end = self._received.find(_HEAD_END)
        if head_end < 0:
            return None
        content_at = head_end + len(_HEAD_END)
        length = content_length(self._received[:head_end])
        if length is None:
            return "no content length"
        if len(self._received) < content_at + length:
            return None
        status = self._received[9:12]
        if status != b"200":
            return f"status {status.decode('latin-1')}"
        content = self._received[content_at : content_at + length]
        return "right" if self.exchange.is_right(content) else "wrong"


def content_length(head: bytes) -> int | None:
    """The Content-Length of a response's head, None when it names none."""
    at = head.lower().find(b"\r\ncontent-length:")
    if at < 0:
        return None
    return int(head[at + 17 :].split(b"\r\n", 1)[0])


def run_load(
    address: tuple[str, int], exchanges: Sequence[Exchange], *, clients: int, seconds: float
) -> Load:
    """Keep `clients` requests under way for `seconds`; each client sends the next one when its answer is there.

    A connection that breaks is an outcome of its own and ends that client's part.

    Raises:
        OSError: The server cannot be reached.
        TimeoutError: No answer for 30 s.
    """
    selector = selectors.DefaultSelector()
    connections = [_Client(address) for _ in range(clients)]
    for connection in connections:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
    cpu_before = time.process_time()
    load = Load(time.monotonic_ns())
    stop_ns = load.started_ns + int(seconds * 1e9)
    turn = 0
    for connection in connections:
        connection.send(exchanges[turn % len(exchanges)])
        turn += 1
    under_way = clients
    add = load.answers.append
    try:
        while under_way:
            ready = selector.select(_LONGEST_ANSWER_S)
            if not ready:
                raise TimeoutError(f"{under_way} requests without an answer for {_LONGEST_ANSWER_S:g} s")
            for key, _events in ready:
                connection = key.data
                outcome = connection.receive()
                if outcome is None:
                    continue
                now = time.monotonic_ns()
                add(Answer(connection.started_ns, now, outcome))
                if now < stop_ns and outcome != "connection closed":
                    connection.send(exchanges[turn % len(exchanges)])
                    turn += 1
                else:
                    selector.unregister(connection.socket)
                    under_way -= 1
    finally:
        load.ended_ns = min(stop_ns, time.monotonic_ns())
        load.client_cpu_s = time.process_time() - cpu_before
        selector.close()
        for connection in connections:
            connection.socket.close()
    return load
