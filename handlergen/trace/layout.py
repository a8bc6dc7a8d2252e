"""A recording laid out for a trace: who wrote it, the row of each span, and the arrows of each request."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from operator import attrgetter
from pathlib import Path

from handlergen.errors import HandlergenError
from handlergen.recordings import Span, read_file, span_files
from handlergen.runtime.stages import BY_PREDICTOR, FIRST, LAST, ON_DEVICE, STAGE_NAMES, label_of

_start = attrgetter("start_ns", "end_ns")

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
    return heapq.merge(*(_sorted(file, size) for file, size in recording.files.items()), key=_start)


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


@dataclass(frozen=True)
class TraceRow:
    """A row: `pid` is the group it stands in, `tid` the row itself. No two rows share a tid."""

    pid: int
    tid: int


@dataclass(frozen=True)
class Named:
    """The name of a group (`tid` None) or of a row, and its place among others."""

    pid: int
    tid: int | None
    name: str
    place: int


class Rows:
    """Hands out rows, and says what they are called as they come into use.

    Workers keep their process ids; devices and rows get the numbers from 1 that no worker has. (Perfetto looks rows
    up by `tid` alone, so that one number must not mean two things.)
    """

    def __init__(self, recording: Survey) -> None:
        self._processes = recording.processes
        free = (number for number in count(1) if number not in recording.processes)
        self._devices = {device: next(free) for device in recording.devices}
        self._free = free
        self._lanes: dict[tuple[int, str], list[tuple[TraceRow, int]]] = {}
        self._named: list[Named] = []
        self._seen: set[int] = set()

    def of_worker(self, span: Span) -> TraceRow:
        """The row of the span's process and stage."""
        if span.pid not in self._seen:
            self._name_group(
                span.pid, _process_name(self._processes[span.pid]), len(self._devices) + span.pid
            )
        return self._lane(span.pid, span.stage, span)

    def of_device(self, span: Span) -> TraceRow:
        """The row of the device that a predict, or an explanation, ran on."""
        pid = self._devices[span.device]
        if pid not in self._seen:
            self._name_group(pid, f"device {span.device}", pid)
        return self._lane(pid, "predict", span)

    def new_names(self) -> Iterator[Named]:
        """Groups and rows that came into use since it was asked last."""
        named, self._named = self._named, []
        yield from named

    def _name_group(self, pid: int, name: str, place: int) -> None:
        self._seen.add(pid)
        self._named.append(Named(pid, None, name, place))

    def _lane(self, pid: int, stage: str, span: Span) -> TraceRow:
        lanes = self._lanes.setdefault((pid, stage), [])
        for number, (row, free_from) in enumerate(lanes):
            if span.start_ns >= free_from:
                lanes[number] = (row, span.end_ns)
                return row
        row = TraceRow(pid, next(self._free))
        lanes.append((row, span.end_ns))
        name = label_of(stage) + (f" {len(lanes)}" if len(lanes) > 1 else "")
        order = STAGE_NAMES.index(stage) if stage in STAGE_NAMES else len(STAGE_NAMES)
        self._named.append(Named(pid, row.tid, name, 1000 * order + len(lanes)))
        return row


def _process_name(process: Process) -> str:
    """`digits worker`; Perfetto adds the pid. One that does nothing but predict for others is a predictor."""
    role = "predictor" if process.stages <= set(BY_PREDICTOR) else "worker"
    own = "" if process.worker == str(process.pid) else f" {process.worker}"
    return f"{', '.join(sorted(process.models))} {role}{own}"


@dataclass(frozen=True)
class Point:
    """A point of a request's way.

    Attributes:
        phase: `s` where it starts, `t` in between, `f` where it ends (Trace Event Format, flow events).
        number: The same for all points of one request, and of no other.
        ns: A time within the slice that the arrow leaves from or comes to.
    """

    phase: str
    number: int
    row: TraceRow
    ns: int


@dataclass
class _Way:
    number: int
    stage: str
    row: TraceRow
    start_ns: int
    end_ns: int
    started: bool = False


class Flows:
    """Follows requests through the spans, which come by their start. Holds only requests that are under way.

    A point is known only when the next one is: what has no next one ends there, and what has none but itself gets
    no arrow. So every `s` has its `f`.
    """

    def __init__(self) -> None:
        self._ways: dict[str, _Way] = {}
        self._count = 0

    def add(self, span: Span, row: TraceRow) -> Iterator[Point]:
        """The next span of one request or, for a predict, of several."""
        if span.stage == "lock_wait":
            return
        for request_id in span.request_id.split(","):
            yield from self._step(request_id, span, row)

    def end(self) -> Iterator[Point]:
        """The last points of requests whose answer was not seen: cut off by the window, or their worker killed."""
        for way in self._ways.values():
            yield from _finish(way)
        self._ways.clear()

    def _step(self, request_id: str, span: Span, row: TraceRow) -> Iterator[Point]:
        way = self._ways.get(request_id)
        if way is None:
            self._count += 1
            way = self._ways[request_id] = _Way(self._count, span.stage, row, span.start_ns, span.end_ns)
        elif span.stage != LAST or way.stage != "postprocess":
            # Without a preprocess the arrow starts at decode, without a postprocess it ends at encode.
            if way.stage != FIRST or span.stage != "preprocess":
                yield _leave(way, span.start_ns)
                way.started = True
            way.stage, way.row, way.start_ns, way.end_ns = span.stage, row, span.start_ns, span.end_ns
        if span.stage == LAST:
            yield from _finish(way)
            del self._ways[request_id]


def _leave(way: _Way, next_ns: int) -> Point:
    if way.started:
        return Point("t", way.number, way.row, way.start_ns)
    # Near the slice's end, but inside; and an arrow must not go back in time.
    near_end = way.end_ns - min((way.end_ns - way.start_ns) // 2, 1000)
    return Point("s", way.number, way.row, max(way.start_ns, min(near_end, next_ns)))


def _finish(way: _Way) -> Iterator[Point]:
    if way.started:
        yield Point("f", way.number, way.row, way.start_ns)
