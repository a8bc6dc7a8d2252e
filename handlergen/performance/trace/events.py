"""Spans as events of the Trace Event Format: slices in rows, and arrows that connect the slices of a request.

The format: "Trace Event Format", docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU. How
Perfetto reads it: src/trace_processor/importers/json. Arrows of one request share name, category and id; rows are
looked up by `tid` alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from handlergen.performance.recordings import Span
from handlergen.runtime.telemetry.stages import FIRST, LAST, ON_DEVICE, STAGE_NAMES, label_of


class TraceRow(NamedTuple):
    """A row: `pid` is its group, `tid` the row itself. No two rows share a tid."""

    pid: int
    tid: int


def events_of(
    spans: Sequence[Span], *, groups: Mapping[int, str], devices: Sequence[str], start_ns: int
) -> Iterator[str]:
    """Yield the events as JSON objects. The name of a group or row precedes its first slice.

    Args:
        spans: Ordered by start.
        groups: Name of each process, by pid.
        devices: Keys of the devices predicted on.
        start_ns: The origin of the times.
    """
    rows, flows = _Rows(groups, devices), _Flows(start_ns)
    for span in spans:
        row = rows.of_worker(span)
        args = f'"request":{json.dumps(span.request_id)},"model":{json.dumps(span.model)}'
        slices = [_slice(span, row, start_ns, name=label_of(span.stage), category="worker", args=args)]
        if span.stage in ON_DEVICE:
            # Also shown in the worker's own row; the arrows go to the device's row.
            row = rows.of_device(span)
            args += f',"requests":{span.request_id.count(",") + 1},"pid":{span.pid}'
            name = f"{span.stage} {span.model}"
            slices.append(_slice(span, row, start_ns, name=name, category="device", args=args))
        yield from rows.new_names()
        yield from slices
        yield from flows.add(span, row)
    yield from flows.end()


class _Rows:
    """Assigns rows to spans, and names the rows when they are first used.

    There is one row per worker and stage, and one per device. Spans that overlap within a worker (the requests of a
    batch) get further rows, because slices of one row must not overlap. Workers keep their pids; devices and rows get
    the numbers from 1 that are no worker's pid.
    """

    def __init__(self, groups: Mapping[int, str], devices: Sequence[str]) -> None:
        self._groups = groups
        self._free = (number for number in count(1) if number not in groups)
        self._devices = {device: next(self._free) for device in devices}
        self._lanes: dict[tuple[int, str], list[tuple[TraceRow, int]]] = {}
        self._names: list[str] = []
        self._seen: set[int] = set()

    def of_worker(self, span: Span) -> TraceRow:
        """Return the row of the span's process and stage."""
        if span.pid not in self._seen:
            self._seen.add(span.pid)
            self._name("process", f'"pid":{span.pid}', self._groups[span.pid], len(self._devices) + span.pid)
        return self._lane(span.pid, span.stage, span)

    def of_device(self, span: Span) -> TraceRow:
        """Return the row of the device that a predict or an explanation ran on."""
        pid = self._devices[span.device]
        if pid not in self._seen:
            self._seen.add(pid)
            self._name("process", f'"pid":{pid}', f"device {span.device}", pid)
        return self._lane(pid, "predict", span)

    def new_names(self) -> list[str]:
        """Return events that name the groups and rows that are new since the last call."""
        names, self._names = self._names, []
        return names

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
        self._name("thread", f'"pid":{pid},"tid":{row.tid}', name, 1000 * order + len(lanes))
        return row

    def _name(self, kind: str, ids: str, name: str, place: int) -> None:
        head = f'{{"ph":"M","ts":0,{ids},"name":"{kind}'
        self._names += [
            f'{head}_name","args":{{"name":{json.dumps(name)}}}}}',
            f'{head}_sort_index","args":{{"sort_index":{place}}}}}',
        ]


@dataclass
class _LastSlice:
    """The last slice of a request so far; `started` if an arrow leads to it."""

    number: int
    span: Span
    row: TraceRow
    started: bool = False


class _Flows:
    """The arrows of requests, from preprocess to predict to postprocess.

    An arrow's event is written when the next slice of its request is known: the last slice ends the arrow, and a
    request with a single slice gets none. So every `s` (start) has its `f` (end), with `t` (step) in between.
    """

    def __init__(self, zero_ns: int) -> None:
        self._zero_ns = zero_ns
        self._requests: dict[str, _LastSlice] = {}
        self._count = 0

    def add(self, span: Span, row: TraceRow) -> Iterator[str]:
        """Add the next span of one request or, for a predict, of several."""
        if span.stage == "lock_wait":
            return
        for request_id in span.request_id.split(","):
            yield from self._step(request_id, span, row)

    def end(self) -> Iterator[str]:
        """End the arrows of requests without an `encode`: cut off by the time range, or their worker was killed."""
        for last in self._requests.values():
            yield from self._finish(last)

    def _step(self, request_id: str, span: Span, row: TraceRow) -> Iterator[str]:
        last = self._requests.get(request_id)
        if last is None:
            self._count += 1
            last = self._requests[request_id] = _LastSlice(self._count, span, row)
        elif span.stage != LAST or last.span.stage != "postprocess":
            # The arrow starts at decode if there is no preprocess, and ends at encode if there is no postprocess.
            if last.span.stage != FIRST or span.stage != "preprocess":
                yield self._leave(last, span.start_ns)
                last.started = True
            last.span, last.row = span, row
        if span.stage == LAST:
            yield from self._finish(last)
            del self._requests[request_id]

    def _leave(self, last: _LastSlice, next_ns: int) -> str:
        if last.started:
            return self._arrow("t", last, last.span.start_ns)
        # Just before the slice's end; an arrow must not go back in time.
        start_ns, end_ns = last.span.start_ns, last.span.end_ns
        near_end = end_ns - min((end_ns - start_ns) // 2, 1000)
        return self._arrow("s", last, max(start_ns, min(near_end, next_ns)))

    def _finish(self, last: _LastSlice) -> Iterator[str]:
        if last.started:
            yield self._arrow("f", last, last.span.start_ns)

    def _arrow(self, phase: str, last: _LastSlice, ns: int) -> str:
        # `bp` e binds the arrow to the enclosing slice, not to the next one.
        return (
            f'{{"ph":"{phase}","ts":{_us(ns - self._zero_ns)},"pid":{last.row.pid},"tid":{last.row.tid},'
            f'"name":"request","cat":"request","id":{last.number},"bp":"e"}}'
        )


def _slice(span: Span, row: TraceRow, zero: int, *, name: str, category: str, args: str) -> str:
    return (
        f'{{"ph":"X","ts":{_us(span.start_ns - zero)},"dur":{_us(span.end_ns - span.start_ns)},'
        f'"pid":{row.pid},"tid":{row.tid},"name":{json.dumps(name)},"cat":"{category}","args":{{{args}}}}}'
    )


def _us(ns: int) -> str:
    """Return exact microseconds, the format's unit."""
    return f"{ns // 1000}.{ns % 1000:03d}"
