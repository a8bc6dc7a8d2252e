"""A recording as a whole: who wrote it, from when to when, and its spans in the order of their start.

Recordings may be larger than memory: they are read twice, once to survey them, once in order.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

from handlergen.errors import HandlergenError
from handlergen.recordings import Span, read_file, span_files
from handlergen.runtime.spans import ON_DEVICE

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
class Recording:
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


def survey(directory: Path | str) -> Recording:
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
    return Recording(files, start, end, processes, tuple(sorted(devices)), torn)


def in_order(recording: Recording) -> Iterator[Span]:
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
