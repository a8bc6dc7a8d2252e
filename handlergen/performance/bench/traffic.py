"""When a load test sends requests, and the answers it got: their times, and the figures of a window."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

from handlergen.performance.recordings import percentile


@dataclass(frozen=True)
class Closed:
    """A closed loop: each client sends its next request when it has its answer.

    A slow server gets fewer requests: this measures throughput, not the latency of independent users.
    """

    clients: int


@dataclass(frozen=True)
class Open:
    """An open loop: requests are due at given times, whether or not earlier ones have been answered.

    Latency counts from the time a request was due: a client that waits for a slow server before it sends the next
    request would leave out the waits that the server caused ("coordinated omission").

    Attributes:
        rate: Requests/s.
        even: Evenly spaced; else with exponentially distributed gaps (independent users), the same in each run.
    """

    rate: float
    even: bool = False

    def due_ns(self) -> Iterator[int]:
        """Yield times since the start, in ns, without end."""
        gap = 1e9 / self.rate
        chance = random.Random(0)  # noqa: S311 - arrival times, not secrets
        at = 0.0
        while True:
            yield int(at)
            at += gap if self.even else chance.expovariate(1.0) * gap


Pace = Closed | Open


RIGHT = "right"
PERCENTILES = (50, 90, 95, 99)


class TimedAnswer(NamedTuple):
    """One answered (or failed) request.

    Attributes:
        started_ns, ended_ns: `time.monotonic_ns()` when it was sent (open loop: due), and completely answered.
        outcome: `right`, `wrong`, `status 503`, or what failed.
    """

    started_ns: int
    ended_ns: int
    outcome: str


@dataclass(frozen=True)
class Figures:
    """The figures of the answers within a window.

    Attributes:
        requests_per_s: Right answers per second.
        latency_ms: Percentile (`PERCENTILES`; 100: the maximum) -> ms, of the right answers; empty without any.
        outcomes: Number of answers by outcome.
        due_per_s: All answers per second; in an open loop, the requested rate.
    """

    requests_per_s: float
    latency_ms: dict[int, float]
    outcomes: dict[str, int]
    due_per_s: float


@dataclass
class Load:
    """The answers of one load.

    Attributes:
        started_ns, ended_ns: From the first request to the moment when no more were sent.
        client_cpu_s: CPU time of this process meanwhile.
        late_ns: Open loop: how long after it was due each request was sent.
    """

    started_ns: int
    ended_ns: int = 0
    open_loop: bool = False
    client_cpu_s: float = 0.0
    answers: list[TimedAnswer] = field(default_factory=list)
    late_ns: array[int] = field(default_factory=lambda: array("q"))

    def steady(self, *, skip_first_s: float, skip_last_s: float = 0.0) -> tuple[int, int]:
        """Return the window, in ns, without the start (queues fill up) and the end (clients stop one by one)."""
        window = (self.started_ns + int(skip_first_s * 1e9), self.ended_ns - int(skip_last_s * 1e9))
        if window[0] >= window[1]:
            raise ValueError("the load was shorter than what is cut off")
        return window

    def inside(self, window: tuple[int, int]) -> list[TimedAnswer]:
        """Return the answers within a window: in a closed loop by their end, in an open loop by when they were due.

        An open loop's answers that end within a window would leave out the slowest requests of an overloaded server.
        """
        when = attrgetter("started_ns" if self.open_loop else "ended_ns")
        return [answer for answer in self.answers if window[0] <= when(answer) < window[1]]

    def figures(self, window: tuple[int, int]) -> Figures:
        """Return the figures of the answers `inside` a window; the rate counts answers that ended within it."""
        start_ns, end_ns = window
        inside = self.inside(window)
        took = sorted(answer.ended_ns - answer.started_ns for answer in inside if answer.outcome == RIGHT)
        came = sum(start_ns <= a.ended_ns < end_ns and a.outcome == RIGHT for a in self.answers)
        seconds = (end_ns - start_ns) / 1e9
        return Figures(
            requests_per_s=came / seconds,
            latency_ms={p: percentile(took, p) / 1e6 for p in (*PERCENTILES, 100)} if took else {},
            outcomes=dict(Counter(answer.outcome for answer in inside)),
            due_per_s=len(inside) / seconds,
        )
