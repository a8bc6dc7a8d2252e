"""Convert a recording to a trace file in the Trace Event Format, which Perfetto (https://ui.perfetto.dev) opens.

The format: "Trace Event Format", docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU. How
Perfetto reads it: src/trace_processor/importers/json. Slices lie in rows, which are looked up by `tid` alone; arrows
connect the slices of a request, and share name, category and id.

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
from dataclasses import dataclass
from itertools import count
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO

from handlergen.errors import HandlergenError
from handlergen.performance.recordings import Span, busy_share, grouped, of_stage, overlapping, read_file, span_files
from handlergen.runtime.telemetry.stages import BY_PREDICTOR, FIRST, LAST, ON_DEVICE, STAGE_NAMES, label_of

_Event = dict[str, Any]

_Row = tuple[int, int]
"""Its group's `pid` and its own `tid`. No two rows share a tid."""


@dataclass(frozen=True)
class Survey:
    """What a recording contained when it was surveyed.

    Attributes:
        files: Each with its size in bytes at that time.
        start_ns, end_ns: First start and last end of all spans, `time.monotonic_ns()`.
        processes: Pid -> `digits worker 9000`, or `digits predictor` for a process that only predicts.
        devices: Keys of the devices predicted on.
        torn: Number of last lines that a killed worker left unfinished.
    """

    files: Mapping[Path, int]
    start_ns: int
    end_ns: int
    processes: Mapping[int, str]
    models: Sequence[str]
    devices: Sequence[str]
    torn: int


def survey(directory: Path | str) -> Survey:
    """Read a recording once; raise HandlergenError if there is none, it is empty, or a line in it is not a span."""
    files = {file: file.stat().st_size for file in span_files(directory)}
    seen: dict[int, set[tuple[str, str, str]]] = defaultdict(set)
    devices: set[str] = set()
    start, end = math.inf, -math.inf
    for file, size in files.items():
        for span in read_file(file, size=size):
            start, end = min(start, span.start_ns), max(end, span.end_ns)
            seen[span.pid].add((span.worker, span.model, span.stage))
            if span.stage in ON_DEVICE:
                devices.add(span.device)
    if not seen:
        raise HandlergenError(
            f"the recording in {directory} is empty",
            hint="spans are written when a request is answered: send some requests",
        )
    return Survey(
        files,
        int(start),
        int(end),
        processes={pid: _process_name(pid, parts) for pid, parts in seen.items()},
        models=sorted({model for parts in seen.values() for _, model, _ in parts}),
        devices=sorted(devices),
        torn=sum(_is_torn(file, size) for file, size in files.items()),
    )


def _process_name(pid: int, parts: set[tuple[str, str, str]]) -> str:
    """Name a process by its spans' workers, models and stages; Perfetto adds the pid."""
    workers, models, stages = map(set, zip(*parts, strict=True))
    role = "predictor" if stages <= set(BY_PREDICTOR) else "worker"
    return " ".join([", ".join(sorted(models)), role, *sorted(workers - {str(pid)})])


def _is_torn(file: Path, size: int) -> bool:
    with file.open("rb") as lines:
        lines.seek(max(0, size - 1))
        return lines.read(1) not in (b"\n", b"")


@dataclass(frozen=True)
class DeviceTotals:
    """How one device was used.

    Attributes:
        predicts, total_ns: Number of predict calls, and the sum of their durations.
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
        torn, backwards: Left out: unfinished lines of killed workers, and spans that end before they start.
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
        model: Only this model's spans.
        last_s: Only the last so many seconds.
        from_s, to_s: Only spans that run between these times, in seconds since the recording's start; None: no limit.
    """

    directory: Path
    model: str | None = None
    last_s: float | None = None
    from_s: float | None = None
    to_s: float | None = None


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
    # Perfetto reads no key that the format does not name before `traceEvents`.
    output.write(b'{"displayTimeUnit":"ms","traceEvents":[\n')
    for number, event in enumerate(_events(spans, recording)):
        output.write(f"{',' if number else ' '}{json.dumps(event, separators=(',', ':'))}\n".encode())
    other = {"recorded_with": "handlergen", "start_monotonic_ns": str(recording.start_ns)}
    output.write(b'],"otherData":' + json.dumps(other).encode() + b"}\n")
    return _summarize(spans, torn=recording.torn, backwards=len(found) - len(spans))


@contextlib.contextmanager
def open_output(path: Path) -> Iterator[BinaryIO]:
    """Open a file for a trace, compressed if its name ends in .gz. The file appears when it is complete."""
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
    start, end = float(recording.start_ns), float(recording.end_ns)
    if trace.last_s is not None:
        start = end - trace.last_s * 1e9
    if trace.to_s is not None:
        end = start + trace.to_s * 1e9
    if trace.from_s is not None:
        start += trace.from_s * 1e9
    found = [
        span
        for file, size in recording.files.items()
        for span in read_file(file, size=size)
        if trace.model in (None, span.model) and span.end_ns >= start and span.start_ns <= end
    ]
    return sorted(found, key=attrgetter("start_ns", "end_ns"))


def _summarize(spans: Sequence[Span], *, torn: int, backwards: int) -> TraceSummary:
    start_ns, end_ns = spans[0].start_ns, max(span.end_ns for span in spans)
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
            for device, own in grouped(of_stage(spans, *ON_DEVICE), "device").items()
        },
        torn=torn,
        backwards=backwards,
    )


def _events(spans: Sequence[Span], recording: Survey) -> Iterator[_Event]:
    """Yield the events of spans that are ordered by start. The name of a group or row precedes its first slice."""
    rows, start_ns = _Rows(recording), recording.start_ns
    requests: dict[str, list[tuple[Span, _Row]]] = defaultdict(list)
    numbers = count(1)
    for span in spans:
        row = rows.of(span, span.pid, span.stage)
        args: _Event = {"request": span.request_id, "model": span.model}
        slices = [_slice(span, row, start_ns, name=label_of(span.stage), cat="worker", args=args)]
        if span.stage in ON_DEVICE:
            # Also shown in the worker's own row; the arrows go to the device's row.
            row = rows.of(span, rows.devices[span.device], "predict")
            args = {**args, "requests": span.request_id.count(",") + 1, "pid": span.pid}
            slices.append(_slice(span, row, start_ns, name=f"{span.stage} {span.model}", cat="device", args=args))
        yield from rows.new_names
        rows.new_names.clear()
        yield from slices
        if span.stage == "lock_wait":
            continue
        for request_id in span.request_id.split(","):
            requests[request_id].append((span, row))
            if span.stage == LAST:
                yield from _arrows(requests.pop(request_id), next(numbers), start_ns)
    # Requests without an `encode`: cut off by the time range, or their worker was killed.
    for request in requests.values():
        yield from _arrows(request, next(numbers), start_ns)


class _Rows:
    """Assigns rows to spans, and names the rows when they are first used.

    There is one row per worker and stage, and one per device. Spans that overlap within a worker (the requests of a
    batch) get further rows, because slices of one row must not overlap. Workers keep their pids; devices and rows get
    the numbers from 1 that are no worker's pid.

    Attributes:
        devices: Device -> its group's pid.
        new_names: Events that name the groups and rows that are new.
    """

    def __init__(self, recording: Survey) -> None:
        self._free = (number for number in count(1) if number not in recording.processes)
        self.devices = {device: next(self._free) for device in recording.devices}
        self._unnamed = {pid: f"device {device}" for device, pid in self.devices.items()} | dict(recording.processes)
        self._lanes: dict[tuple[int, str], list[tuple[_Row, int]]] = {}
        self.new_names: list[_Event] = []

    def of(self, span: Span, pid: int, stage: str) -> _Row:
        """Return a row of a group and stage that is free during the span."""
        if name := self._unnamed.pop(pid, None):
            place = pid if pid in self.devices.values() else len(self.devices) + pid  # devices first
            self._name("process", {"pid": pid}, name, place)
        lanes = self._lanes.setdefault((pid, stage), [])
        for number, (row, free_from) in enumerate(lanes):
            if span.start_ns >= free_from:
                lanes[number] = (row, span.end_ns)
                return row
        row = (pid, next(self._free))
        lanes.append((row, span.end_ns))
        name = label_of(stage) + (f" {len(lanes)}" if len(lanes) > 1 else "")
        order = STAGE_NAMES.index(stage) if stage in STAGE_NAMES else len(STAGE_NAMES)
        self._name("thread", {"pid": pid, "tid": row[1]}, name, 1000 * order + len(lanes))
        return row

    def _name(self, kind: str, ids: dict[str, int], name: str, place: int) -> None:
        event = {"ph": "M", "ts": 0, **ids}
        self.new_names += [
            {**event, "name": f"{kind}_name", "args": {"name": name}},
            {**event, "name": f"{kind}_sort_index", "args": {"sort_index": place}},
        ]


def _slice(span: Span, row: _Row, origin_ns: int, **named: Any) -> _Event:
    ts, dur = (span.start_ns - origin_ns) / 1000, (span.end_ns - span.start_ns) / 1000  # the format's unit is µs
    return {"ph": "X", "ts": ts, "dur": dur, "pid": row[0], "tid": row[1], **named}


def _arrows(request: list[tuple[Span, _Row]], number: int, origin_ns: int) -> Iterator[_Event]:
    """Yield an arrow from slice to slice of a request: a start `s`, steps `t` and an end `f`; none for one slice."""
    # The arrow starts at decode if there is no preprocess, and ends at encode if there is no postprocess.
    slices: list[tuple[Span, _Row]] = []
    for span, row in request:
        stages = (slices[-1][0].stage if slices else "", span.stage)
        if stages == (FIRST, "preprocess"):
            slices.pop()
        if stages != ("postprocess", LAST):
            slices.append((span, row))
    if len(slices) < 2:
        return
    phases = ["s", *"t" * (len(slices) - 2), "f"]
    for phase, (span, (pid, tid)) in zip(phases, slices, strict=True):
        ns = span.start_ns
        if phase == "s":
            # Just before the slice's end; an arrow must not go back in time.
            near_end = span.end_ns - min((span.end_ns - span.start_ns) // 2, 1000)
            ns = max(ns, min(near_end, slices[1][0].start_ns))
        event = {"ph": phase, "ts": (ns - origin_ns) / 1000, "pid": pid, "tid": tid}
        # `bp` e binds the arrow to the enclosing slice, not to the next one.
        yield {**event, "name": "request", "cat": "request", "id": number, "bp": "e"}
