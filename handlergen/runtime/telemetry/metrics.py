"""Metrics: the times of a model's requests as counters in TorchServe's `/metrics`.

TorchServe's own histogram needs a printed line for each observation, which the frontend parses: six for each request,
at a higher cost than a small model's predict; and its buckets begin at 5 (of any unit). So the buckets are kept here,
and once a second each process prints their growth. In Prometheus they are counters with the label `le`, like a
histogram's: `histogram_quantile(0.99, sum by (le) (rate(handlergen_stage_seconds_bucket[5m])))`. Counters add up over
workers, and those of a worker that died remain.

The format of a line: ts/metrics/caching_metric.py and the frontend's Metric.parse, which drops a dimension with a
second colon and rejects a metric that lacks one.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
import time
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from .stages import STAGE_NAMES

PERIOD_S = 1.0
SWITCH_VARIABLE = "HANDLERGEN_METRICS"

SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
"""Upper bounds of the buckets of stage times, in seconds."""

SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
"""Upper bounds of the buckets of batch sizes."""

STAGE, BATCH = "handlergen_stage_seconds", "handlergen_batch_size"
ANSWERS, LOCK_TIMEOUTS = "handlergen_answers_total", "handlergen_lock_timeouts_total"
COPIES, MEMORY = "handlergen_model_copies", "handlergen_model_memory_bytes"

_Kept = TypeVar("_Kept")
_SEPARATORS = re.compile(r"[^A-Za-z0-9_./+-]")


def switched_on(declared: Any = None) -> bool:
    """Return whether the server serves these metrics; child processes inherit the answer.

    A server logs and drops each line of a metric that its metrics file does not declare (WorkerLifeCycle.ReaderThread).
    `HANDLERGEN_METRICS=off` switches the metrics off.

    Args:
        declared: TorchServe's `context.metrics`, which has read the metrics file; None if unknown.
    """
    cache = getattr(declared, "cache", None)
    if isinstance(cache, Mapping) and not any(ANSWERS in metrics for metrics in cache.values()):
        os.environ[SWITCH_VARIABLE] = "off"
    return os.environ.get(SWITCH_VARIABLE) != "off"


class Histogram:
    """Values since the last `collect`, counted by bucket.

    Args:
        bounds: Upper bounds, ascending; one more bucket has all larger values.
        unit: The values' units in one of the bounds' units.
    """

    def __init__(self, bounds: Sequence[float], *, unit: int = 1) -> None:
        self._limits = [(f"{bound:g}", round(bound * unit)) for bound in bounds]
        self._unit = unit
        self._values: deque[int] = deque()
        self.add = self._values.append
        """Count a value; called in any thread."""

    def collect(self) -> tuple[list[tuple[str, int]], float, int]:
        """Return `(le, growth)` of each bucket, cumulative as in Prometheus; the sum; the number. Start from zero."""
        values = sorted(_drained(self._values))
        buckets = [(name, bisect_right(values, limit)) for name, limit in self._limits]
        return [*buckets, ("+Inf", len(values))], sum(values) / self._unit, len(values)


class Metrics:
    """The counters of one process.

    Counting only appends to a queue, without a lock: it happens between two predictions.

    Args:
        model, version, device: Labels of every metric.
        write: Writes the lines; by default to standard output, which TorchServe reads.
    """

    def __init__(self, *, model: str, version: str, device: str, write: Callable[[str], None] | None = None) -> None:
        labels = {"model": model, "version": version, "device": device}
        self._labels = {name: _SEPARATORS.sub("_", text) or "_" for name, text in labels.items()}
        self._write = write or printer()
        self._stages = {stage: Histogram(SECONDS, unit=10**9) for stage in STAGE_NAMES}
        self._add_time = {stage: histogram.add for stage, histogram in self._stages.items()}
        self._batches = Histogram(SIZES)
        self._answers: deque[int] = deque()
        self._timeouts: deque[None] = deque()
        self._seen: set[str] = set()
        self._gauges: Callable[[], Mapping[str, float]] = dict
        self._writing = threading.Lock()
        self._ended = threading.Event()
        self._host = socket.gethostname()

    def start(self) -> None:
        """Write once a second from now on.

        Counters for alerts start as zero: Prometheus sees no increase in a counter that first appears as 1.
        """
        self._write(self._line(ANSWERS, "Count", 0, {"status": "200"}) + self._line(LOCK_TIMEOUTS, "Count", 0, {}))
        threading.Thread(target=self._run, name="handlergen-metrics", daemon=True).start()

    def watch(self, gauges: Callable[[], Mapping[str, float]]) -> None:
        """Also write gauges, by name; none when `gauges` raises OSError."""
        self._gauges = gauges

    def record(self, stage: str, request_id: str, start_ns: int, end_ns: int) -> None:
        """Count the time of a stage; `request_id` has several ids, joined by commas, for one predict of a batch."""
        self._add_time[stage](end_ns - start_ns)
        if stage == "predict":
            self._batches.add(request_id.count(",") + 1)

    def answered(self, status: int) -> None:
        """Count an answer."""
        self._answers.append(status)

    def lock_timed_out(self) -> None:
        """Count a request that did not get the device in time."""
        self._timeouts.append(None)

    def close(self) -> None:
        """Write the last growth, and stop."""
        self._ended.set()
        self.emit()

    def emit(self) -> None:
        """Write the growth of every counter.

        Gauges come first: a hook may have printed half a line, which spoils the first line written. A gauge is written
        again a second later, a counter's growth only once.
        """
        with self._writing:
            lines = [*self._measured(), *self._grown()]
            if lines:
                self._write("".join(lines))

    def _run(self) -> None:
        while not self._ended.wait(PERIOD_S):
            self.emit()

    def _grown(self) -> list[str]:
        lines: list[str] = []
        for stage, histogram in self._stages.items():
            lines += self._histogram(STAGE, "Seconds", histogram, {"stage": stage})
        lines += self._histogram(BATCH, "Count", self._batches, {})
        answers = Counter(_drained(self._answers))
        lines += [self._line(ANSWERS, "Count", n, {"status": str(code)}) for code, n in answers.items()]
        if timeouts := len(_drained(self._timeouts)):
            lines.append(self._line(LOCK_TIMEOUTS, "Count", timeouts, {}))
        return lines

    def _histogram(self, name: str, unit: str, histogram: Histogram, labels: dict[str, str]) -> list[str]:
        buckets, total, count = histogram.collect()
        if not count:
            return []
        # All buckets once, then those that grow: a quantile is interpolated from zero where a lower bucket is missing.
        series = "".join((name, *labels.values()))
        first = series not in self._seen
        self._seen.add(series)
        lines = [
            self._line(f"{name}_bucket", unit, grown, {**labels, "le": le}) for le, grown in buckets if grown or first
        ]
        lines.append(self._line(f"{name}_sum", unit, total, labels))
        lines.append(self._line(f"{name}_count", unit, count, labels))
        return lines

    def _measured(self) -> list[str]:
        try:
            gauges = self._gauges()
        except OSError:
            return []
        return [self._line(name, "Count", value, {}, kind="GAUGE") for name, value in gauges.items()]

    def _line(self, name: str, unit: str, value: float, labels: Mapping[str, str], *, kind: str = "COUNTER") -> str:
        dimensions = ",".join(f"{key}:{text}" for key, text in {**labels, **self._labels}.items())
        return (
            f"[METRICS]{name}.{unit}:{_number(value)}|#{dimensions}|#type:{kind}|#hostname:{self._host},"
            f"{int(time.time())}\n"
        )


def printer() -> Callable[[str], None]:
    """Return a function that writes to this process's standard output, which TorchServe reads."""
    stream = sys.stdout  # now: a hook may redirect it for a while

    def write(text: str) -> None:
        stream.write(text)
        stream.flush()

    return write


def _number(value: float) -> str:
    """Format a number without an exponent: the frontend's pattern has no plus sign."""
    return str(value) if isinstance(value, int) else f"{value:.9f}".rstrip("0").rstrip(".")


def _drained(kept: deque[_Kept]) -> list[_Kept]:
    return [kept.popleft() for _ in range(len(kept))]
