"""What a model's requests took, as counters in TorchServe's `/metrics`.

TorchServe's own histogram takes one printed line an observation, which the frontend parses: six a request, more than a
small model's predict costs; and its buckets begin at 5 (of whatever unit). So the buckets are kept here, and once a
second each process prints by how much they have grown. In Prometheus they are counters with the label `le`, as a
histogram's are: `histogram_quantile(0.99, sum by (le) (rate(handlergen_stage_seconds_bucket[5m])))`. Counters add
up over workers, and those of a worker that died stay.

The format of a line is read in ts/metrics/caching_metric.py and the frontend's Metric.parse.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

PERIOD_S = 1.0

SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
"""Upper bounds of the buckets of stage times, in seconds."""

SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
"""Upper bounds of the buckets of batch sizes."""

STAGE, BATCH = "handlergen_stage_seconds", "handlergen_batch_size"
ANSWERS, LOCK_TIMEOUTS = "handlergen_answers", "handlergen_lock_timeouts"
COPIES, MEMORY = "handlergen_model_copies", "handlergen_model_memory_bytes"


class Histogram:
    """Counts of values, by bucket, since they were last taken.

    Args:
        bounds: Upper bounds, ascending; one more bucket holds all that is larger.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._names = [*(f"{bound:g}" for bound in bounds), "+Inf"]
        self._clear()

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def taken(self) -> tuple[list[tuple[str, int]], float, int]:
        """`(le, growth)` of each bucket, cumulated as Prometheus has them; the sum; the number. Then zero."""
        counts, total = self._counts, self._sum
        self._clear()
        running, cumulated = 0, []
        for name, count in zip(self._names, counts, strict=True):
            running += count
            cumulated.append((name, running))
        return cumulated, total, running

    def _clear(self) -> None:
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0


class Metrics:
    """The counters of one process.

    Args:
        model, version, device: Labels of every metric.
        write: Takes the lines; standard output, which TorchServe reads, when left out.
    """

    def __init__(
        self, *, model: str, version: str, device: str, write: Callable[[str], None] | None = None
    ) -> None:
        self._labels = {"model": model, "version": version, "device": device}
        self._write = write or _print
        self._times: deque[tuple[str, int]] = deque()
        self._sizes: deque[int] = deque()
        self._answers: Counter[int] = Counter()
        self._timeouts = 0
        self._stages: dict[str, Histogram] = {}
        self._batches = Histogram(SIZES)
        self._gauges: Callable[[], Mapping[str, float]] = dict
        self._changing = threading.Lock()
        self._ended = threading.Event()
        self._host = socket.gethostname()

    def start(self) -> None:
        """Write from now on, once a second, what has been counted."""
        threading.Thread(target=self._run, name="handlergen-metrics", daemon=True).start()

    def watch(self, gauges: Callable[[], Mapping[str, float]]) -> None:
        """Ask for gauges too, by name, whenever something is written."""
        self._gauges = gauges

    def record(self, stage: str, request_id: str, start_ns: int, end_ns: int) -> None:
        """Count the time of a stage; `request_id` has several ids, joined by commas, for one predict of a batch."""
        self._times.append((stage, end_ns - start_ns))
        if stage == "predict":
            self._sizes.append(request_id.count(",") + 1)

    def forked(self) -> None:
        """Nobody counts in a process that was forked off this one."""

    def answered(self, status: int) -> None:
        """Count an answer."""
        with self._changing:
            self._answers[status] += 1

    def lock_timed_out(self) -> None:
        """Count a request that did not get the device in time."""
        with self._changing:
            self._timeouts += 1

    def close(self) -> None:
        """Write the last, and no more."""
        self._ended.set()
        self.emit()

    def emit(self) -> None:
        """Write by how much everything has grown."""
        lines = [*self._grown(), *self._measured()]
        if lines:
            self._write("".join(lines))

    def _run(self) -> None:
        while not self._ended.wait(PERIOD_S):
            self.emit()

    def _grown(self) -> list[str]:
        with self._changing:
            for stage, took_ns in _drained(self._times):
                histogram = self._stages.get(stage)
                if histogram is None:
                    histogram = self._stages[stage] = Histogram(SECONDS)
                histogram.add(took_ns / 1e9)
            for size in _drained(self._sizes):
                self._batches.add(size)
            answers, self._answers = self._answers, Counter()
            timeouts, self._timeouts = self._timeouts, 0
        lines: list[str] = []
        for stage, histogram in self._stages.items():
            lines += self._histogram(STAGE, "Seconds", histogram, {"stage": stage})
        lines += self._histogram(BATCH, "Count", self._batches, {})
        lines += [self._line(ANSWERS, "Count", n, {"status": str(code)}) for code, n in answers.items()]
        if timeouts:
            lines.append(self._line(LOCK_TIMEOUTS, "Count", timeouts, {}))
        return lines

    def _histogram(self, name: str, unit: str, histogram: Histogram, labels: dict[str, str]) -> list[str]:
        buckets, total, count = histogram.taken()
        if not count:
            return []
        lines = [
            self._line(f"{name}_bucket", unit, grown, {**labels, "le": le}) for le, grown in buckets if grown
        ]
        lines.append(self._line(f"{name}_sum", unit, total, labels))
        lines.append(self._line(f"{name}_count", unit, count, labels))
        return lines

    def _measured(self) -> list[str]:
        return [self._line(name, "Count", value, {}, kind="GAUGE") for name, value in self._gauges().items()]

    def _line(
        self, name: str, unit: str, value: float, labels: Mapping[str, str], *, kind: str = "COUNTER"
    ) -> str:
        dimensions = ",".join(f"{key}:{text}" for key, text in {**labels, **self._labels}.items())
        return (
            f"[METRICS]{name}.{unit}:{_number(value)}|#{dimensions}|#type:{kind}|#hostname:{self._host},"
            f"{int(time.time())}\n"
        )


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _number(value: float) -> str:
    """Without an exponent: the frontend's pattern has no plus sign."""
    return str(value) if isinstance(value, int) else f"{value:.9f}".rstrip("0").rstrip(".")


_Kept = TypeVar("_Kept")


def _drained(kept: deque[_Kept]) -> list[_Kept]:
    taken = []
    while kept:
        taken.append(kept.popleft())
    return taken
