"""Which row of the trace a span is drawn in: a row a worker and stage, and one a device.

What runs side by side in one worker (a batch's requests) gets rows of its own: slices of one row must not overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from handlergen.recordings import Span
from handlergen.runtime.spans import ON_DEVICE, STAGES
from handlergen.trace.recording import Process, Recording


@dataclass(frozen=True)
class Row:
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

    def __init__(self, recording: Recording) -> None:
        self._processes = recording.processes
        free = (number for number in count(1) if number not in recording.processes)
        self._devices = {device: next(free) for device in recording.devices}
        self._free = free
        self._lanes: dict[tuple[int, str], list[tuple[Row, int]]] = {}
        self._named: list[Named] = []
        self._seen: set[int] = set()

    def of_worker(self, span: Span) -> Row:
        """The row of the span's process and stage."""
        if span.pid not in self._seen:
            self._name_group(
                span.pid, _process_name(self._processes[span.pid]), len(self._devices) + span.pid
            )
        return self._lane(span.pid, span.stage, span)

    def of_device(self, span: Span) -> Row:
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

    def _lane(self, pid: int, stage: str, span: Span) -> Row:
        lanes = self._lanes.setdefault((pid, stage), [])
        for number, (row, free_from) in enumerate(lanes):
            if span.start_ns >= free_from:
                lanes[number] = (row, span.end_ns)
                return row
        row = Row(pid, next(self._free))
        lanes.append((row, span.end_ns))
        name = stage.replace("_", " ") + (f" {len(lanes)}" if len(lanes) > 1 else "")
        order = STAGES.index(stage) if stage in STAGES else len(STAGES)
        self._named.append(Named(pid, row.tid, name, 1000 * order + len(lanes)))
        return row


def _process_name(process: Process) -> str:
    """`digits worker`; Perfetto adds the pid. One that does nothing but predict for others is a predictor."""
    role = "predictor" if process.stages <= {"lock_wait", *ON_DEVICE} else "worker"
    own = "" if process.worker == str(process.pid) else f" {process.worker}"
    return f"{', '.join(sorted(process.models))} {role}{own}"
