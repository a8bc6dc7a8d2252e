"""When requests are sent: by clients that wait for their answers, or at times of their own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass


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
