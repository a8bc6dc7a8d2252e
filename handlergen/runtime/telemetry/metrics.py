"""What a model's requests took, as counters in TorchServe's `/metrics`.

TorchServe's own histogram takes one printed line an observation, which the frontend parses: six a request, more than a
small model's predict costs; and its buckets begin at 5 (of whatever unit). So the buckets are kept here, and once a
second each process prints by how much they have grown. In Prometheus they are counters with the label `le`, as a
histogram's are: `histogram_quantile(0.99, sum by (le) (rate(handlergen_stage_seconds_bucket[5m])))`. Counters add
up over workers, and those of a worker that died stay.

The format of a line is read in ts/metrics/caching_metric.py and the frontend's Metric.parse, which drops a dimension
with a second colon and refuses a metric that is short of one.
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

_SEPARATORS = re.compile(r"[^A-Za-z0-9_./+-]")


def switched_on(declared: Any = None) -> bool:
    """Whether a server serves these metrics; says so to the processes that this one starts, too.

    A server that does not know a metric logs each of its lines and drops it (WorkerLifeCycle.ReaderThread): on one
    with a metrics file of its own, all of this would be for nothing. `HANDLERGEN_METRICS=off` switches them off.

    Args:
        declared: TorchServe's `context.metrics`, which has read the file; None when nobody knows.
    """
    cache = getattr(declared, "cache", None)
    if isinstance(cache, Mapping) and not any(ANSWERS in metrics for metrics in cache.values()):
        os.environ[SWITCH_VARIABLE] = "off"
    return os.environ.get(SWITCH_VARIABLE) != "off"


class Histogram:
    """Values since they were last taken, to be counted by bucket.

    Args:
        bounds: Upper bounds, ascending; one more bucket holds all that is larger.
        unit: How many of the values' units make one of the bounds'.
    """

    def __init__(self, bounds: Sequence[float], *, unit: int = 1) -> None:
        self._limits = [(f"{bound:g}", round(bound * unit)) for bound in bounds]
        self._unit = unit
        self._values: deque[int] = deque()
        self.add = self._values.append
        """Count a value; from any thread."""

    def taken(self) -> tuple[list[tuple[str, int]], float, int]:
        """`(le, growth)` of each bucket, cumulated as Prometheus has them; the sum; the number. Then zero."""
        values = sorted(_drained(self._values))
        buckets = [(name, bisect_right(values, limit)) for name, limit in self._limits]
        return [*buckets, ("+Inf", len(values))], sum(values) / self._unit, len(values)


class Metrics:
    """The counters of one process.

    Whoever counts only appends to a queue, without a lock: what is counted stands between two predictions.

    Args:
        model, version, device: Labels of every metric.
        write: Takes the lines; standard output, which TorchServe reads, when left out.
    """

    def __init__(
        self, *, model: str, version: str, device: str, write: Callable[[str], None] | None = None
    ) -> None:
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
        """Write from now on, once a second, what has been counted.

        What an alert watches is there from the start, as zero: from a counter that first appears as 1, Prometheus sees
        no increase.
        """
        self._write(
            self._line(ANSWERS, "Count", 0, {"status": "200"}) + self._line(LOCK_TIMEOUTS, "Count", 0, {})
        )
        threading.Thread(target=self._run, name="handlergen-metrics", daemon=True).start()

    def watch(self, gauges: Callable[[], Mapping[str, float]]) -> None:
        """Ask for gauges too, by name, whenever something is written; without them when it raises OSError."""
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
        """Write the last, and no more."""
        self._ended.set()
        self.emit()

    def emit(self) -> None:
        """Write by how much everything has grown.

        Gauges come first: a hook may just have printed half a line, to which the first of these is then added and
        lost. The next second brings another gauge; what a counter has grown by is told only once.
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
        buckets, total, count = histogram.taken()
        if not count:
            return []
        # All buckets once, then those that grow: where a lower one is missing, a quantile is interpolated from zero.
        series = "".join((name, *labels.values()))
        first = series not in self._seen
        self._seen.add(series)
        lines = [
            self._line(f"{name}_bucket", unit, grown, {**labels, "le": le})
            for le, grown in buckets
            if grown or first
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

    def _line(
        self, name: str, unit: str, value: float, labels: Mapping[str, str], *, kind: str = "COUNTER"
    ) -> str:
        dimensions = ",".join(f"{key}:{text}" for key, text in {**labels, **self._labels}.items())
        return (
            f"[METRICS]{name}.{unit}:{_number(value)}|#{dimensions}|#type:{kind}|#hostname:{self._host},"
            f"{int(time.time())}\n"
        )


def printer() -> Callable[[str], None]:
    """Return what writes to this process's standard output, which TorchServe reads of a worker."""
    stream = sys.stdout  # now: a hook may redirect it for a while

    def write(text: str) -> None:
        stream.write(text)
        stream.flush()

    return write


def _number(value: float) -> str:
    """Without an exponent: the frontend's pattern has no plus sign."""
    return str(value) if isinstance(value, int) else f"{value:.9f}".rstrip("0").rstrip(".")


_Kept = TypeVar("_Kept")


def _drained(kept: deque[_Kept]) -> list[_Kept]:
    return [kept.popleft() for _ in range(len(kept))]
