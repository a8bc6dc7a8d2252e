"""A recording to a trace file: read twice, once to survey it, once in order; an event a line.

Recordings may be larger than memory: nothing is kept that is not under way.
"""

from __future__ import annotations

import contextlib
import gzip
import heapq
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO

from handlergen.errors import HandlergenError
from handlergen.performance.recordings import Span, read_file, span_files
from handlergen.performance.trace.events import events_of
from handlergen.runtime.telemetry.stages import BY_PREDICTOR, LAST, ON_DEVICE

_CHUNK = 512  # events a write
_DISORDER = 2048
"""Spans of one file that are held back to put them in order. A worker writes them batch after batch; within a batch
they stand as they ended."""


@dataclass
class Process:
    """One process that recorded: a worker, or whoever predicts for several of them.

    Attributes:
        worker: TorchServe's name for it, else its pid.
        models: Whose spans it recorded.
        stages: Which ones.
    """

    pid: int
    worker: str
    models: set[str] = field(default_factory=set)
    stages: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        """`digits worker`; Perfetto adds the pid. One that does nothing but predict for others is a predictor."""
        role = "predictor" if self.stages <= set(BY_PREDICTOR) else "worker"
        own = "" if self.worker == str(self.pid) else f" {self.worker}"
        return f"{', '.join(sorted(self.models))} {role}{own}"


@dataclass(frozen=True)
class Survey:
    """What a directory held when it was surveyed.

    Attributes:
        files: With the bytes each had then.
        start_ns, end_ns: First start and last end of all models' spans, `time.monotonic_ns()`.
        processes: By pid.
        devices: Keys of the devices predicted on.
        torn: Last lines that a killed worker left unfinished.
    """

    files: Mapping[Path, int]
    start_ns: int
    end_ns: int
    processes: Mapping[int, Process]
    devices: tuple[str, ...]
    torn: int

    @property
    def models(self) -> list[str]:
        return sorted({model for process in self.processes.values() for model in process.models})


def survey(directory: Path | str) -> Survey:
    """Read a recording through.

    Raises:
        HandlergenError: There is none, it is empty, or a line in it is not a span.
    """
    files = {file: file.stat().st_size for file in span_files(directory)}
    processes: dict[int, Process] = {}
    devices: set[str] = set()
    start = end = None
    for file, size in files.items():
        for span in read_file(file, size=size):
            start = span.start_ns if start is None else min(start, span.start_ns)
            end = span.end_ns if end is None else max(end, span.end_ns)
            process = processes.get(span.pid)
            if process is None:
                process = processes[span.pid] = Process(span.pid, span.worker)
            process.models.add(span.model)
            process.stages.add(span.stage)
            if span.stage in ON_DEVICE:
                devices.add(span.device)
    if start is None or end is None:
        raise HandlergenError(
            f"the recording in {directory} is empty",
            hint="spans are written when a request is answered: send some",
        )
    torn = sum(_torn(file, size) for file, size in files.items())
    return Survey(files, start, end, processes, tuple(sorted(devices)), torn)


def in_order(recording: Survey) -> Iterator[Span]:
    """Every span of the recording, by its start.

    Should a file be in greater disorder than it can be, a span comes late; none is lost.
    """
    return heapq.merge(
        *(_sorted(file, size) for file, size in recording.files.items()), key=attrgetter("start_ns", "end_ns")
    )


def _sorted(file: Path, size: int) -> Iterator[Span]:
    held: list[tuple[int, int, int, Span]] = []  # the third keeps equal times in the order of the file
    for number, span in enumerate(read_file(file, size=size)):
        entry = (span.start_ns, span.end_ns, number, span)
        if len(held) < _DISORDER:
            heapq.heappush(held, entry)
        else:
            yield heapq.heappushpop(held, entry)[-1]
    yield from (heapq.heappop(held)[-1] for _ in range(len(held)))


def _torn(file: Path, size: int) -> bool:
    with file.open("rb") as lines:
        lines.seek(max(0, size - 1))
        return lines.read(1) not in (b"\n", b"")


@dataclass
class DeviceTotals:
    """How a device was used. Spans must come by their start.

    Attributes:
        predicts: How often predict ran.
        total_ns: The time they took together.
        busy_ns: Time during which at least one ran; as much as `total_ns` when none overlap.
        overlaps: How often one started while another one ran: never, with `lock: device`.
    """

    predicts: int = 0
    total_ns: int = 0
    busy_ns: int = 0
    overlaps: int = 0
    _until_ns: int = field(default=0, repr=False)

    def add(self, span: Span) -> None:
        """One more predict."""
        self.predicts += 1
        self.total_ns += span.end_ns - span.start_ns
        self.overlaps += span.start_ns < self._until_ns
        self.busy_ns += max(0, span.end_ns - max(span.start_ns, self._until_ns))
        self._until_ns = max(self._until_ns, span.end_ns)


@dataclass
class TraceSummary:
    """What a trace shows.

    Attributes:
        requests: Answered requests (whose `encode` is in it).
        spans: All slices of the workers' rows.
        start_ns, end_ns: First start and last end, `time.monotonic_ns()`.
        pids: Of the processes.
        devices: By key.
        torn: Lines that killed workers left unfinished; left out.
        backwards: Spans that end before they start; left out.
    """

    requests: int = 0
    spans: int = 0
    start_ns: int = 0
    end_ns: int = 0
    pids: set[int] = field(default_factory=set)
    devices: dict[str, DeviceTotals] = field(default_factory=dict)
    torn: int = 0
    backwards: int = 0

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9

    def busy_share(self, device: str) -> float:
        """The part of the time, 0..1, during which the device predicted."""
        return self.devices[device].busy_ns / max(1, self.end_ns - self.start_ns)

    def add(self, span: Span) -> None:
        """One more span."""
        self.start_ns = min(self.start_ns, span.start_ns) if self.spans else span.start_ns
        self.end_ns = max(self.end_ns, span.end_ns)
        self.spans += 1
        self.pids.add(span.pid)
        self.requests += span.stage == LAST
        if span.stage in ON_DEVICE:
            self.devices.setdefault(span.device, DeviceTotals()).add(span)


@dataclass(frozen=True)
class Trace:
    """Which spans of a recording are wanted.

    Attributes:
        directory: Where the spans were recorded.
        model: Only this model's.
        last_s: Only the last so many seconds.
        from_s, to_s: Only what runs between these times, in seconds since the recording's start; None is open.
    """

    directory: Path
    model: str | None = None
    last_s: float | None = None
    from_s: float | None = None
    to_s: float | None = None

    def window(self, recording: Survey) -> tuple[float, float]:
        """Start and end of what is wanted, as `time.monotonic_ns()`."""
        if self.last_s is not None:
            return recording.end_ns - self.last_s * 1e9, recording.end_ns
        start = recording.start_ns if self.from_s is None else recording.start_ns + self.from_s * 1e9
        end = recording.end_ns if self.to_s is None else recording.start_ns + self.to_s * 1e9
        return start, end


def write_trace(trace: Trace, output: BinaryIO) -> TraceSummary:
    """Write the trace as JSON.

    A span that reaches into the window is shown whole. Times are microseconds since the recording's start.

    Args:
        output: Gets UTF-8; an event a line.

    Raises:
        HandlergenError: There is no recording, a line in it is not a span, or nothing in it is wanted.
        OSError: `output` cannot be written.
    """
    recording = survey(trace.directory)
    if trace.model is not None and trace.model not in recording.models:
        raise HandlergenError(
            f"the recording has no spans of the model {trace.model}",
            hint=f"it has those of {', '.join(recording.models)}",
        )
    summary = TraceSummary(torn=recording.torn)
    wanted = _wanted(trace, recording, summary)
    first = next(wanted, None)
    if first is None:
        length = (recording.end_ns - recording.start_ns) / 1e9
        raise HandlergenError(
            "no span lies in that time", hint=f"the recording goes from second 0 to second {length:.3f}"
        )
    events = events_of(
        chain([first], wanted),
        groups={pid: process.name for pid, process in recording.processes.items()},
        devices=recording.devices,
        start_ns=recording.start_ns,
    )
    # Perfetto reads no key that the format does not name before `traceEvents`.
    output.write(b'{"displayTimeUnit":"ms","traceEvents":[\n')
    _write_lines(output, events)
    other = {"recorded_with": "handlergen", "start_monotonic_ns": str(recording.start_ns)}
    output.write(b'\n],"otherData":' + json.dumps(other).encode() + b"}\n")
    return summary


@contextlib.contextmanager
def open_output(path: Path) -> Iterator[BinaryIO]:
    """A file to write a trace to, packed when its name ends in .gz; it appears when all is written.

    Raises:
        HandlergenError: It cannot be written.
    """
    # What is no regular file (/dev/stdout, a pipe) is written to, not replaced.
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


def _wanted(trace: Trace, recording: Survey, summary: TraceSummary) -> Iterator[Span]:
    start, end = trace.window(recording)
    for span in in_order(recording):
        if trace.model not in (None, span.model) or span.end_ns < start or span.start_ns > end:
            continue
        if span.end_ns < span.start_ns:
            summary.backwards += 1
            continue
        summary.add(span)
        yield span


def _write_lines(output: BinaryIO, lines: Iterable[str]) -> None:
    pending: list[str] = []
    separator = ""
    for line in lines:
        pending.append(line)
        if len(pending) == _CHUNK:
            output.write((separator + ",\n".join(pending)).encode())
            pending.clear()
            separator = ",\n"
    if pending:
        output.write((separator + ",\n".join(pending)).encode())
