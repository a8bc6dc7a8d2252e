"""What one process records of a model's requests: spans, as JSON lines of monotonic times, and metrics.

Metrics are the times of requests as counters in TorchServe's `/metrics`.
TorchServe's own histogram needs a printed line for each observation, which the frontend parses: six for each request,
at a higher cost than a small model's predict; and its buckets begin at 5 (of any unit). So the buckets are kept here,
and once a second each process prints their growth. In Prometheus they are counters with the label `le`, like a
histogram's: `histogram_quantile(0.99, sum by (le) (rate(handlergen_stage_seconds_bucket[5m])))`. Counters add up over
workers, and those of a worker that died remain.

The format of a line: ts/metrics/caching_metric.py and the frontend's Metric.parse, which drops a dimension with a
second colon and rejects a metric that lacks one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import socket
import threading
import time
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..contract import RuntimeSettings
from ..device.device import Device
from ..device.lock import lock_directory
from ..diagnostics import logger, printer
from ..server_process import ProcessFiles, started, torchserve_version
from .stages import STAGE_NAMES

_logger = logger()
TRACE_DIR_VARIABLE = "HANDLERGEN_TRACE_DIR"
PERIOD_S = 1.0
SWITCH_VARIABLE = "HANDLERGEN_METRICS"
_UNTYPED = "untyped"
"""Its value where lines name no type: TorchServe 0.9 cannot read those that do (Metric.java)."""

SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
"""Upper bounds of the buckets of stage times, in seconds."""

SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
"""Upper bounds of the buckets of batch sizes."""

STAGE, BATCH = "handlergen_stage_seconds", "handlergen_batch_size"
ANSWERS, LOCK_TIMEOUTS = "handlergen_answers_total", "handlergen_lock_timeouts_total"
EXAMPLES = "handlergen_examples_right"
COPIES, MEMORY = "handlergen_model_copies", "handlergen_model_memory_bytes"

_Kept = TypeVar("_Kept")
_SEPARATORS = re.compile(r"[^A-Za-z0-9_./+-]")


class Spans:
    """Writes a process's spans to `spans-MODEL-PID.jsonl`, one line per span.

    `flush` writes them in one piece, after a batch: a write between two predictions would cost tens of microseconds. A
    worker that is killed loses the spans of its current batch. Spans that cannot be written (disk full) are lost with
    one warning: requests are answered nevertheless.

    Args:
        directory: The file's; made if missing, private to the user.
        model, device: The model's name and the device's key, in every line.

    Raises:
        OSError: The directory cannot be made or written.
    """

    def __init__(self, directory: Path, *, model: str, device: str) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        pid = os.getpid()
        path = directory / f"spans-{model}-{pid}.jsonl"
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        tail = {"pid": pid, "worker": str(pid), "device": device, "model": model}
        self._tail = json.dumps(tail)[1:]
        self._kept: deque[tuple[str, str, int, int, int]] = deque()
        self._size = os.fstat(self._descriptor).st_size
        self._losing = False

    def record(self, stage: str, request_id: str, start_ns: int, end_ns: int) -> None:
        """Keep one span of a stage of `stages.py`; called in any thread.

        Args:
            request_id: The request's id; several, joined by commas, for one predict of a batch.
            start_ns, end_ns: `time.monotonic_ns()` at its start and end.
        """
        self._kept.append((stage, request_id, start_ns, end_ns, threading.get_ident()))

    def flush(self) -> None:
        """Write the kept spans in one piece: lines of several threads never mix."""
        lines = []
        while self._kept:
            stage, request_id, start_ns, end_ns, thread = self._kept.popleft()
            lines.append(
                f'{{"stage": "{stage}", "start_ns": {start_ns}, "end_ns": {end_ns}, '
                f'"request_id": {json.dumps(request_id)}, "thread": {thread}, {self._tail}\n'
            )
        try:
            self._write("".join(lines).encode())
        except OSError as error:
            if not self._losing:
                _logger.warning("spans are lost until they can be written: %s", error)
            self._losing = True
        else:
            self._losing = False

    def _write(self, text: bytes) -> None:
        """Write all of the text or nothing: half a line would make the file unreadable."""
        written = os.write(self._descriptor, text)
        if written == len(text):
            self._size += written
            return
        try:
            os.write(self._descriptor, text[written:])  # raises the error
            self._size += len(text)
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise


def spans_from_environment(model: str, device: str, environ: Mapping[str, str] = os.environ) -> Spans | None:
    """Return `Spans` when `HANDLERGEN_TRACE_DIR` is set, else None; the pipeline then takes no times.

    None, with a warning, when the directory cannot be written: that is no reason not to predict.
    """
    directory = environ.get(TRACE_DIR_VARIABLE)
    if not directory:
        return None
    try:
        return Spans(Path(directory), model=model, device=device)
    except OSError as error:
        _logger.warning("no spans are recorded: %s", error)
        return None


def switched_on(declared: Any = None) -> bool:
    """Return whether the server serves these metrics; child processes inherit the answer.

    A server logs and drops each line of a metric that its metrics file does not declare (WorkerLifeCycle.ReaderThread).
    `HANDLERGEN_METRICS=off` switches the metrics off.

    Args:
        declared: TorchServe's `context.metrics`, which has read the metrics file; None if unknown.
    """
    if not is_declared(ANSWERS, declared):
        os.environ[SWITCH_VARIABLE] = "off"
    elif () < torchserve_version() < (0, 10) and os.environ.get(SWITCH_VARIABLE) != "off":
        os.environ[SWITCH_VARIABLE] = _UNTYPED
    return os.environ.get(SWITCH_VARIABLE) != "off"


def is_declared(metric: str, declared: Any) -> bool:
    """Return whether the server's metrics file has a metric; True if that is unknown. See `switched_on`."""
    cache = getattr(declared, "cache", None)
    return not isinstance(cache, Mapping) or any(metric in metrics for metrics in cache.values())


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
        self._gauges: list[Callable[[], Mapping[str, float]]] = []
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
        """Also write these gauges, by name; none of them when `gauges` raises OSError."""
        self._gauges.append(gauges)

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
            gauges: dict[str, float] = {}
            for each in self._gauges:
                with contextlib.suppress(OSError):
                    gauges.update(each())
            lines = [self._line(name, "Count", value, {}, kind="GAUGE") for name, value in gauges.items()]
            lines += self._grown()
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

    def _line(self, name: str, unit: str, value: float, labels: Mapping[str, str], *, kind: str = "COUNTER") -> str:
        dimensions = ",".join(f"{key}:{text}" for key, text in {**labels, **self._labels}.items())
        kind = "" if os.environ.get(SWITCH_VARIABLE) == _UNTYPED else f"|#type:{kind}"
        return (
            f"[METRICS]{name}.{unit}:{_number(value)}|#{dimensions}{kind}|#hostname:{self._host},{int(time.time())}\n"
        )


def _number(value: float) -> str:
    """Format a number without an exponent: the frontend's pattern has no plus sign."""
    return str(value) if isinstance(value, int) else f"{value:.9f}".rstrip("0").rstrip(".")


def _drained(kept: deque[_Kept]) -> list[_Kept]:
    return [kept.popleft() for _ in range(len(kept))]


@dataclass
class Counts:
    """The numbers of requests that one worker has answered.

    Attributes:
        requests: Predictions and explanations; a KServe request counts once, however many instances it has.
        failures: Failed requests by status.
        metrics: Also counts the answers.
    """

    requests: int = 0
    failures: Counter[int] = field(default_factory=Counter)
    metrics: Metrics | None = None

    def answered(self, status: int) -> None:
        """Count an answer."""
        if status >= 400:
            self.failures[status] += 1
        if self.metrics is not None:
            self.metrics.answered(status)


Recorder = Callable[[str, str, int, int], None]
"""Receives the time of one stage, in any thread. See `Spans.record` for the arguments."""


class Recording:
    """Everything that one process records of a model.

    Args:
        device_key: The key of the device that predicts.
        metrics: Also count for TorchServe's `/metrics`, unless that is switched off.
        write: Writes the lines of metrics; standard output by default.

    Attributes:
        metrics: The counters, if there are any.
        recorder: Receives times; None: no times are taken.
    """

    def __init__(
        self, settings: RuntimeSettings, device_key: str, *, metrics: bool, write: Callable[[str], None] | None = None
    ) -> None:
        self._spans = spans_from_environment(settings.name, device_key)
        self.metrics: Metrics | None = None
        if metrics and switched_on():
            self.metrics = Metrics(model=settings.name, version=settings.version, device=device_key, write=write)
        self._copies: ProcessFiles | None = None
        records = [each.record for each in (self._spans, self.metrics) if each is not None]

        def record(stage: str, request_id: str, start_ns: int, end_ns: int) -> None:
            for each in records:
                each(stage, request_id, start_ns, end_ns)

        self.recorder: Recorder | None = record if len(records) > 1 else next(iter(records), None)

    def start(self) -> None:
        """Write metrics from now on."""
        if self.metrics is not None:
            self.metrics.start()

    def has_copy(self, settings: RuntimeSettings, device: Device, server: int) -> None:
        """Count this process's copy of the model, and measure its memory; `server` is the frontend's process id."""
        if self.metrics is None:
            return
        try:
            identity = f"{server} {started(server)}"
            copies = ProcessFiles(lock_directory(), "copies", identity, settings.name, settings.version, device.key)
            copies.add()
        except OSError as error:  # no reason not to predict
            _logger.warning("copies of the model are not counted: %s", error)
            self.metrics.watch(lambda: {MEMORY: memory_of(device)})
            return
        self._copies = copies
        self.metrics.watch(lambda: {COPIES: copies.count(), MEMORY: memory_of(device)})

    def flush(self) -> None:
        """Write the spans of a batch."""
        if self._spans is not None:
            self._spans.flush()

    def close(self) -> None:
        """Write the last spans and metrics."""
        self.flush()
        if self.metrics is not None:
            self.metrics.close()
        if self._copies is not None:
            self._copies.close()


def memory_of(device: Device) -> int:
    """Return the bytes that this process holds on the device: torch's reserved GPU memory, else the resident memory."""
    if not device.is_cpu:
        return int(torch.cuda.memory_reserved(device.torch))
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])  # proc_pid_statm(5)
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return pages * resource.getpagesize()
