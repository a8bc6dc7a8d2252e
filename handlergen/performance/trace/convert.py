"""Convert a recording to a trace file in the Trace Event Format.

The recording is read twice: once for its processes, devices and time range, once for the spans that are wanted, which
are held in memory.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO

from handlergen.errors import HandlergenError
from handlergen.performance.recordings import Span, busy_share, of_stage, overlapping, read_file, span_files
from handlergen.performance.trace.events import events_of
from handlergen.runtime.telemetry.stages import BY_PREDICTOR, LAST, ON_DEVICE


@dataclass
class RecordingProcess:
    """One process that recorded spans; `worker` is TorchServe's name for it, or its pid."""

    pid: int
    worker: str
    models: set[str] = field(default_factory=set)
    stages: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        """`digits worker 9000`, or `digits predictor` for a process that only predicts; Perfetto adds the pid."""
        role = "predictor" if self.stages <= set(BY_PREDICTOR) else "worker"
        own = "" if self.worker == str(self.pid) else f" {self.worker}"
        return f"{', '.join(sorted(self.models))} {role}{own}"


@dataclass(frozen=True)
class Survey:
    """What a recording contained when it was surveyed.

    Attributes:
        files: Each with its size in bytes at that time.
        start_ns, end_ns: First start and last end of all spans, `time.monotonic_ns()`.
        processes: By pid.
        devices: Keys of the devices predicted on.
        torn: Number of last lines that a killed worker left unfinished.
    """

    files: Mapping[Path, int]
    start_ns: int
    end_ns: int
    processes: Mapping[int, RecordingProcess]
    devices: tuple[str, ...]
    torn: int

    @property
    def models(self) -> list[str]:
        return sorted({model for process in self.processes.values() for model in process.models})


def survey(directory: Path | str) -> Survey:
    """Read a recording once.

    Raises:
        HandlergenError: There is no recording, it is empty, or a line in it is not a span.
    """
    files = {file: file.stat().st_size for file in span_files(directory)}
    processes: dict[int, RecordingProcess] = {}
    devices: set[str] = set()
    start, end = math.inf, -math.inf
    for file, size in files.items():
        for span in read_file(file, size=size):
            start, end = min(start, span.start_ns), max(end, span.end_ns)
            process = processes.setdefault(span.pid, RecordingProcess(span.pid, span.worker))
            process.models.add(span.model)
            process.stages.add(span.stage)
            if span.stage in ON_DEVICE:
                devices.add(span.device)
    if not processes:
        raise HandlergenError(
            f"the recording in {directory} is empty",
            hint="spans are written when a request is answered: send some requests",
        )
    torn = sum(_torn(file, size) for file, size in files.items())
    return Survey(files, int(start), int(end), processes, tuple(sorted(devices)), torn)


def _torn(file: Path, size: int) -> bool:
    with file.open("rb") as lines:
        lines.seek(max(0, size - 1))
        return lines.read(1) not in (b"\n", b"")


@dataclass(frozen=True)
class DeviceTotals:
    """How one device was used.

    Attributes:
        predicts: Number of predict calls.
        total_ns: Sum of their durations.
        busy: Share of the trace's time, 0..1, during which at least one ran.
        overlaps: How often one started while another ran: never, with `lock: device`.
    """

    predicts: int
    total_ns: int
    busy: float
    overlaps: int


@dataclass(frozen=True)
class TraceSummary:
    """The figures of a trace.

    Attributes:
        requests: Answered requests (whose `encode` is in the trace).
        spans: Slices in the workers' rows.
        seconds: From the first start to the last end.
        pids: The processes that recorded spans.
        torn: Unfinished lines of killed workers; left out.
        backwards: Spans that end before they start; left out.
    """

    requests: int
    spans: int
    seconds: float
    pids: frozenset[int]
    devices: dict[str, DeviceTotals]
    torn: int
    backwards: int


@dataclass(frozen=True)
class Trace:
    """Which spans of a recording to convert.

    Attributes:
        directory: Where the spans were recorded.
        model: Only this model's spans.
        last_s: Only the last so many seconds.
        from_s, to_s: Only spans that run between these times, in seconds since the recording's start; None: no limit.
    """

    directory: Path
    model: str | None = None
    last_s: float | None = None
    from_s: float | None = None
    to_s: float | None = None

    def window(self, recording: Survey) -> tuple[float, float]:
        """Return the start and end of the time range, as `time.monotonic_ns()`."""
        if self.last_s is not None:
            return recording.end_ns - self.last_s * 1e9, recording.end_ns
        start = recording.start_ns if self.from_s is None else recording.start_ns + self.from_s * 1e9
        end = recording.end_ns if self.to_s is None else recording.start_ns + self.to_s * 1e9
        return start, end


def write_trace(trace: Trace, output: BinaryIO) -> TraceSummary:
    """Write the trace as JSON, one event per line.

    A span that reaches into the time range is shown whole. Times are microseconds since the recording's start.

    Raises:
        HandlergenError: There is no recording, a line in it is not a span, or no span is in the time range.
        OSError: `output` cannot be written.
    """
    recording = survey(trace.directory)
    if trace.model is not None and trace.model not in recording.models:
        raise HandlergenError(
            f"the recording has no spans of the model {trace.model}",
            hint=f"it has those of {', '.join(recording.models)}",
        )
    found = wanted_spans(trace, recording)
    spans = [span for span in found if span.end_ns >= span.start_ns]
    if not spans:
        length = (recording.end_ns - recording.start_ns) / 1e9
        raise HandlergenError(
            "no span is in that time range", hint=f"the recording covers second 0 to second {length:.3f}"
        )
    events = events_of(
        spans,
        groups={pid: process.name for pid, process in recording.processes.items()},
        devices=recording.devices,
        start_ns=recording.start_ns,
    )
    # Perfetto reads no key that the format does not name before `traceEvents`.
    output.write(b'{"displayTimeUnit":"ms","traceEvents":[\n')
    for number, event in enumerate(events):
        output.write(f"{',' if number else ' '}{event}\n".encode())
    other = {"recorded_with": "handlergen", "start_monotonic_ns": str(recording.start_ns)}
    output.write(b'],"otherData":' + json.dumps(other).encode() + b"}\n")
    return _summarize(spans, torn=recording.torn, backwards=len(found) - len(spans))


@contextlib.contextmanager
def open_output(path: Path) -> Iterator[BinaryIO]:
    """Open a file for a trace, compressed if its name ends in .gz. The file appears when it is complete.

    Raises:
        HandlergenError: The file cannot be written.
    """
    # A device or a pipe (/dev/stdout) is written to, not replaced.
    replaced = path.is_file() or not path.exists()
    target = path.with_name(f".{path.name}.{os.getpid()}.part") if replaced else path
    try:
        with target.open("wb") as raw:
            if path.suffix == ".gz":
                with gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
                    yield packed  # type: ignore[misc]  # a GzipFile writes bytes as any binary file does
            else:
                yield raw
        if replaced:
            target.replace(path)
    except OSError as error:
        raise HandlergenError(f"{path} cannot be written: {error}") from error
    finally:
        if replaced:
            target.unlink(missing_ok=True)


def wanted_spans(trace: Trace, recording: Survey) -> list[Span]:
    """Return the spans of the model and the time range, ordered by start."""
    start, end = trace.window(recording)
    found = [
        span
        for file, size in recording.files.items()
        for span in read_file(file, size=size)
        if trace.model in (None, span.model) and span.end_ns >= start and span.start_ns <= end
    ]
    return sorted(found, key=attrgetter("start_ns", "end_ns"))


def _summarize(spans: Sequence[Span], *, torn: int, backwards: int) -> TraceSummary:
    start_ns, end_ns = spans[0].start_ns, max(span.end_ns for span in spans)
    on_device: dict[str, list[Span]] = defaultdict(list)
    for span in of_stage(spans, *ON_DEVICE):
        on_device[span.device].append(span)
    return TraceSummary(
        requests=len(of_stage(spans, LAST)),
        spans=len(spans),
        seconds=(end_ns - start_ns) / 1e9,
        pids=frozenset(span.pid for span in spans),
        devices={
            device: DeviceTotals(
                predicts=len(own),
                total_ns=sum(span.end_ns - span.start_ns for span in own),
                busy=busy_share(own, start_ns, max(end_ns, start_ns + 1)),
                overlaps=len(overlapping(own)),
            )
            for device, own in on_device.items()
        },
        torn=torn,
        backwards=backwards,
    )
