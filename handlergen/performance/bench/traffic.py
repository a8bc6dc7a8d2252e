"""When a load test sends requests, and what came back: answers with their times, and the figures of a window."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from handlergen.performance.recordings import nearest_rank


@dataclass(frozen=True)
class Closed:
    """A closed loop: each client sends its next request when it has its answer.

    How many are under way is fixed, and a slow server is asked less often: it measures what a server can do, not
    how long somebody waits who comes whenever he likes.
    """

    clients: int


@dataclass(frozen=True)
class Open:
    """An open loop: requests are due at times of their own, whether or not earlier ones have been answered.

    Latency counts from when a request was due. A client that waits for a slow server before it sends the next
    request leaves out the waits that it caused ("coordinated omission").

    Attributes:
        rate: Requests a second.
        even: Evenly spaced; else at random (exponentially distributed gaps: as of many independent users), the
            same times in each run.
    """

    rate: float
    even: bool = False

    def due_ns(self) -> Iterator[int]:
        """Times from the start, in ns, without end."""
        gap = 1e9 / self.rate
        chance = random.Random(0)  # noqa: S311 - arrival times, no secret
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
        started_ns: `time.monotonic_ns()` when it was sent; in an open loop when it was due, whenever it was sent.
        ended_ns: The same when the answer was complete.
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
        latency_ms: Percentile (`PERCENTILES`, 100 for the longest) -> ms, of the right answers; empty without any.
        outcomes: How many of each kind.
        due_per_s: All of them, per second; in an open loop what was asked for.
    """

    requests_per_s: float
    latency_ms: dict[int, float]
    outcomes: dict[str, int]
    due_per_s: float


@dataclass
class Load:
    """The answers of one load, and what the client itself cost.

    Attributes:
        started_ns, ended_ns: From the first request to the moment when no more were sent.
        open_loop: Requests were sent at times of their own, whether or not earlier ones had been answered.
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
        """The window, in ns, without the start (batches and queues fill up) and the end (clients stop one by one).

        Raises:
            ValueError: Nothing is left.
        """
        window = (self.started_ns + int(skip_first_s * 1e9), self.ended_ns - int(skip_last_s * 1e9))
        if window[0] >= window[1]:
            raise ValueError("the load was shorter than what is cut off")
        return window

    def inside(self, window: tuple[int, int]) -> list[TimedAnswer]:
        """The answers that came within a window; of an open loop those of the requests that were due in it.

        In a closed loop both are alike. In an open loop that the server does not keep up with, the answers that
        come within a window leave out the slowest ones of its requests.
        """
        start_ns, end_ns = window
        if self.open_loop:
            return [answer for answer in self.answers if start_ns <= answer.started_ns < end_ns]
        return [answer for answer in self.answers if start_ns <= answer.ended_ns < end_ns]

    def figures(self, window: tuple[int, int]) -> Figures:
        """The figures of the answers within a window (`inside`); the rate counts those that came within it."""
        start_ns, end_ns = window
        inside = self.inside(window)
        took = sorted(answer.ended_ns - answer.started_ns for answer in inside if answer.outcome == RIGHT)
        came = sum(start_ns <= a.ended_ns < end_ns and a.outcome == RIGHT for a in self.answers)
        seconds = (end_ns - start_ns) / 1e9
        return Figures(
            requests_per_s=came / seconds,
            latency_ms={p: nearest_rank(took, p) / 1e6 for p in (*PERCENTILES, 100)} if took else {},
            outcomes=dict(Counter(answer.outcome for answer in inside)),
            due_per_s=len(inside) / seconds,
        )
