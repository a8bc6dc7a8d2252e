"""A server as a queueing network, simulated: workers, one device, some cores.

Each worker takes a batch from the queue, which costs TorchServe some time, then passes through its stages:

    dispatch -> preprocess -> (passage ->) [ device: predict ] (-> passage) -> postprocess

The device serves one worker at a time, first come first served. The part of a stage that computes shares the cores
with whatever else computes (processor sharing, at most one core a worker); the part that waits does not. Preprocess
of a batch waits once for all of its requests, and computes for each: its threads share one interpreter.
"""

from __future__ import annotations

import heapq
import itertools
import random
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from handlergen.bench.answers import percentile

_END = 10**9


@dataclass(frozen=True)
class Stage:
    """How long a stage takes for one request, alone, in ms: waiting, and computing."""

    wait_ms: float
    cpu_ms: float

    @property
    def total_ms(self) -> float:
        return self.wait_ms + self.cpu_ms


DISPATCH = Stage(wait_ms=0.5, cpu_ms=0.7)
"""What passes in a worker from the end of one answer to the beginning of the next request, of which TorchServe and its
sockets compute a part. Measured: 1.2 to 1.3 ms by the median, under 100 requests a second and under 2 900."""

PASSAGE = Stage(wait_ms=0.25, cpu_ms=0.15)
"""From a worker to the process that predicts, and the same back. Measured by the median, with stages of 10 ms: 0.52 ms
there, the lock included, and 0.40 back; under a module that does nothing, whose processes hardly sleep, 0.1 each."""

NO_PASSAGE = Stage(0.0, 0.0)

MAX_BATCH_DELAY_MS = 1
"""How long a worker that has a request waits for more of a batch, in every recommendation: a busy device fills batches
by itself, since requests wait, and an idle one gains nothing."""

RETURN_MS = 0.3
"""From one new request to the next when a batch was answered: TorchServe's frontend passes them on one by one. Its CPU
time for each is 0.4 ms, measured, on up to two cores. With 0.3 the simulated throughput and latency are those of
benchmarks/tuning.py's workload L: 450 requests/s where 428 were measured (were they to come at once: 534)."""

HANDOVER_MS = 0.1
"""From the end of one worker's predict to the start of another's. Measured: 0.10 to 0.11 ms by the median."""


@dataclass(frozen=True)
class Work:
    """A model's stages.

    Attributes:
        before: Decode and preprocess, one entry a measured request.
        predict: With one request.
        after: Postprocess and encode.
        batch_ms: Requests in a predict -> its length in ms; only {1: ...} where predict sees one at a time, and a
            batch then takes as long as its requests do one after the other.
    """

    before: Sequence[Stage]
    predict: Sequence[Stage]
    after: Sequence[Stage]
    batch_ms: dict[int, float]

    def hold_factor(self, requests: int) -> float:
        """How many times as long as one request a predict over so many takes; between measured sizes, a line."""
        sizes = sorted(self.batch_ms)
        if len(sizes) == 1:
            return float(requests)
        at = min(max(1, bisect_left(sizes, requests)), len(sizes) - 1)
        low, high = sizes[at - 1], sizes[at]
        slope = (self.batch_ms[high] - self.batch_ms[low]) / (high - low)
        return max(0.0, self.batch_ms[low] + slope * (requests - low)) / self.batch_ms[1]


@dataclass(frozen=True)
class Server:
    """What is simulated: settings, and the machine.

    Attributes:
        workers: On one device.
        batch_size: The most requests that a worker takes at once.
        cores: For the workers of one device; a part of one is possible.
        dispatch: What TorchServe costs: the waiting a batch, the computing each of its requests.
        passage: To a process that predicts for the workers, and the same back.
        together: The most requests of several workers that one predict takes; 1: those of one worker at a time.
    """

    workers: int
    batch_size: int
    cores: float
    dispatch: Stage = DISPATCH
    passage: Stage = NO_PASSAGE
    together: int = 1


@dataclass(frozen=True)
class Prediction:
    """What the server would do.

    Attributes:
        requests_per_s: Of one device.
        device_busy: 0..1.
        p50_ms, p99_ms: Latency, the wait in the queue included.
    """

    requests_per_s: float
    device_busy: float
    p50_ms: float
    p99_ms: float


def closed_loop(work: Work, server: Server, *, clients: int, requests: int = 1500) -> Prediction:
    """A server that is never without requests: so many clients, each asking again when it is answered."""
    return _Simulation(work, server, requests).run([0.0] * clients, again=True)


def open_loop(work: Work, server: Server, *, rate: float, requests: int = 3000) -> Prediction:
    """A server that is asked so often a second, at random intervals."""
    chance = random.Random(1)  # noqa: S311 - arrival times, no secret
    gaps = (chance.expovariate(rate) * 1e3 for _ in range(requests))
    return _Simulation(work, server, requests).run(list(itertools.accumulate(gaps)), again=False)


class _Simulation:
    """Events in ms; one run."""

    def __init__(self, work: Work, server: Server, requests: int) -> None:
        self._work = work
        self._server = server
        self._wanted = requests
        self._numbers = itertools.count()
        self._now = 0.0
        self._timers: list[tuple[float, int, int]] = []
        self._computing: dict[int, float] = {}
        self._steps: dict[int, Iterator[tuple[str, float]]] = {}
        self._queue: deque[float] = deque()
        self._idle = deque(range(server.workers))
        self._device: int | None = None
        self._before_device: deque[tuple[int, int]] = deque()
        self._carried: set[int] = set()
        self._answered: list[tuple[float, float]] = []
        self._held: list[tuple[float, float]] = []

    def run(self, arrivals: list[float], *, again: bool) -> Prediction:
        self._again = again
        for at in arrivals:
            heapq.heappush(self._timers, (at, next(self._numbers), -1))
        while len(self._answered) < self._wanted and (self._timers or self._computing):
            self._advance()
        return self._summary()

    def _advance(self) -> None:
        """To the next event: a timer, or somebody who has computed enough."""
        share = min(1.0, self._server.cores / max(1, len(self._computing)))
        least = min(self._computing.values(), default=float(_END))
        computed_at = self._now + least / share if self._computing else float(_END)
        timer_at = self._timers[0][0] if self._timers else float(_END)
        at = min(computed_at, timer_at)
        done = (at - self._now) * share
        self._now = at
        finished = []
        for worker in self._computing:
            self._computing[worker] -= done
            if self._computing[worker] <= 1e-9:
                finished.append(worker)
        for worker in finished:
            del self._computing[worker]
        if timer_at <= computed_at:
            worker = heapq.heappop(self._timers)[2]
            if worker < 0:
                self._queue.append(self._now)
            else:
                finished.append(worker)
        for worker in finished:
            self._step(worker)
        while self._queue and self._idle:
            self._begin(self._idle.popleft())

    def _begin(self, worker: int) -> None:
        self._steps[worker] = self._batch(worker, self._take(self._server.batch_size))
        self._step(worker)

    def _take(self, most: int) -> list[float]:
        """When each of those came that a worker takes from the queue."""
        return [self._queue.popleft() for _ in range(min(most, len(self._queue)))]

    def _batch(self, worker: int, taken: list[float]) -> Iterator[tuple[str, float]]:
        """What a worker does with a batch: (`wait` or `cpu`, ms) or (`device`, requests) to queue for the device."""
        if len(taken) < self._server.batch_size:
            yield "wait", MAX_BATCH_DELAY_MS
            taken += self._take(self._server.batch_size - len(taken))
        work, many = self._work, len(taken)
        number = len(self._answered)
        before, predict, after = (
            [stages[(number + index) % len(stages)] for index in range(many)]
            for stages in (work.before, work.predict, work.after)
        )
        yield "wait", self._server.dispatch.wait_ms
        yield "cpu", self._server.dispatch.cpu_ms * many  # each request is received and answered by itself
        yield from _beside(before)
        yield from _once(self._server.passage)
        yield "device", float(many)
        if worker in self._carried:
            self._carried.remove(worker)  # its predict was part of another worker's
        else:
            since = self._now
            others = self._board(many)
            all_of_them = many + sum(requests for _, requests in others)
            factor = work.hold_factor(all_of_them) / many
            yield "wait", sum(stage.wait_ms for stage in predict) * factor
            yield "cpu", sum(stage.cpu_ms for stage in predict) * factor
            self._held.append((since, self._now))
            self._hand_over()
            for other, _ in others:
                self._carried.add(other)
                heapq.heappush(self._timers, (self._now, next(self._numbers), other))
        yield from _once(self._server.passage)
        yield from _beside(after)
        for index, came in enumerate(taken):
            self._answered.append((came, self._now))
            if self._again:
                # One after the other: a worker that is free finds the first of them, not all.
                heapq.heappush(self._timers, (self._now + index * RETURN_MS, next(self._numbers), -1))
        self._idle.append(worker)

    def _step(self, worker: int) -> None:
        """On to the worker's next piece of work that takes time."""
        for kind, length in self._steps[worker]:
            if kind == "device":
                if self._device is not None:
                    self._before_device.append((worker, int(length)))
                    return
                self._device = worker
            elif length > 0:
                if kind == "cpu":
                    self._computing[worker] = length
                else:
                    heapq.heappush(self._timers, (self._now + length, next(self._numbers), worker))
                return

    def _board(self, many: int) -> list[tuple[int, int]]:
        """Which waiting workers' requests, and how many, are predicted along with so many: in order, all or none."""
        taken = []
        while self._before_device and many + self._before_device[0][1] <= self._server.together:
            taken.append(self._before_device.popleft())
            many += taken[-1][1]
        return taken

    def _hand_over(self) -> None:
        self._device = self._before_device.popleft()[0] if self._before_device else None
        if self._device is not None:
            heapq.heappush(self._timers, (self._now + HANDOVER_MS, next(self._numbers), self._device))

    def _summary(self) -> Prediction:
        answered = self._answered[len(self._answered) // 5 :]  # the first fifth: queues fill up
        start = self._answered[len(self._answered) // 5 - 1][1] if len(self._answered) >= 5 else 0.0
        length = max(1e-6, answered[-1][1] - start)
        held = sum(max(0.0, end - max(begin, start)) for begin, end in self._held)
        took = [end - came for came, end in answered]
        return Prediction(
            requests_per_s=len(answered) / length * 1e3,
            device_busy=min(1.0, held / length),
            p50_ms=percentile(took, 50),
            p99_ms=percentile(took, 99),
        )


def _once(stage: Stage) -> Iterator[tuple[str, float]]:
    yield "wait", stage.wait_ms
    yield "cpu", stage.cpu_ms


def _beside(stages: Sequence[Stage]) -> Iterator[tuple[str, float]]:
    """A stage of several requests in the threads of one worker."""
    yield "wait", max(stage.wait_ms for stage in stages)
    yield "cpu", sum(stage.cpu_ms for stage in stages)
