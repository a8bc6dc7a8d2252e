"""Spans as events of the Trace Event Format: slices in rows, and the arrows of each request.

The format: "Trace Event Format", docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU. What
Perfetto makes of it was read in its src/trace_processor/importers/json: arrows of one request share name, category
and number; rows are looked up by `tid` alone.
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
    """A row: `pid` is the group it stands in, `tid` the row itself. No two rows share a tid."""

    pid: int
    tid: int


def events_of(
    spans: Iterator[Span], *, groups: Mapping[int, str], devices: Sequence[str], start_ns: int
) -> Iterator[str]:
    """One JSON object an event; a name comes before the first slice of its group or row.

    Args:
        spans: By their start.
        groups: What each process is called, by pid.
        devices: Keys of the devices predicted on.
        start_ns: What the times count from.
    """
    rows, flows = _Rows(groups, devices), _Flows(start_ns)
    for span in spans:
        row = rows.of_worker(span)
        args = f'"request":{json.dumps(span.request_id)},"model":{json.dumps(span.model)}'
        slices = [_slice(span, row, start_ns, name=label_of(span.stage), category="worker", args=args)]
        if span.stage in ON_DEVICE:
            # The worker's own row shows it, too; the arrows go to the device's.
            row = rows.of_device(span)
            args += f',"requests":{span.request_id.count(",") + 1},"pid":{span.pid}'
            name = f"{span.stage} {span.model}"
            slices.append(_slice(span, row, start_ns, name=name, category="device", args=args))
        yield from rows.new_names()
        yield from slices
        yield from flows.add(span, row)
    yield from flows.end()


class _Rows:
    """Hands out rows, and says what they are called as they come into use.

    A row a worker and stage, and one a device. What runs side by side in one worker (a batch's requests) gets rows of
    its own: slices of one row must not overlap. Workers keep their process ids; devices and rows get the numbers from
    1 that no worker has.
    """

    def __init__(self, groups: Mapping[int, str], devices: Sequence[str]) -> None:
        self._groups = groups
        self._free = (number for number in count(1) if number not in groups)
        self._devices = {device: next(self._free) for device in devices}
        self._lanes: dict[tuple[int, str], list[tuple[TraceRow, int]]] = {}
        self._names: list[str] = []
        self._seen: set[int] = set()

    def of_worker(self, span: Span) -> TraceRow:
        """The row of the span's process and stage."""
        if span.pid not in self._seen:
            self._seen.add(span.pid)
            self._name("process", f'"pid":{span.pid}', self._groups[span.pid], len(self._devices) + span.pid)
        return self._lane(span.pid, span.stage, span)

    def of_device(self, span: Span) -> TraceRow:
        """The row of the device that a predict, or an explanation, ran on."""
        pid = self._devices[span.device]
        if pid not in self._seen:
            self._seen.add(pid)
            self._name("process", f'"pid":{pid}', f"device {span.device}", pid)
        return self._lane(pid, "predict", span)

    def new_names(self) -> list[str]:
        """Events that name the groups and rows that came into use since it was asked last."""
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
class _Way:
    """The last slice that a request's arrow reached; `started` when an arrow led there."""

    number: int
    stage: str
    row: TraceRow
    start_ns: int
    end_ns: int
    started: bool = False


class _Flows:
    """The arrows of requests, from preprocess to predict to postprocess. Holds only requests that are under way.

    A point is known only when the next one is: what has no next one ends there, and what has none but itself gets
    no arrow. So every `s` (start) has its `f` (end), with `t` (step) in between.
    """

    def __init__(self, zero_ns: int) -> None:
        self._zero_ns = zero_ns
        self._ways: dict[str, _Way] = {}
        self._count = 0

    def add(self, span: Span, row: TraceRow) -> Iterator[str]:
        """The next span of one request or, for a predict, of several."""
        if span.stage == "lock_wait":
            return
        for request_id in span.request_id.split(","):
            yield from self._step(request_id, span, row)

    def end(self) -> Iterator[str]:
        """The last points of requests whose answer was not seen: cut off by the window, or their worker killed."""
        for way in self._ways.values():
            yield from self._finish(way)

    def _step(self, request_id: str, span: Span, row: TraceRow) -> Iterator[str]:
        way = self._ways.get(request_id)
        if way is None:
            self._count += 1
            way = self._ways[request_id] = _Way(self._count, span.stage, row, span.start_ns, span.end_ns)
        elif span.stage != LAST or way.stage != "postprocess":
            # Without a preprocess the arrow starts at decode, without a postprocess it ends at encode.
            if way.stage != FIRST or span.stage != "preprocess":
                yield self._leave(way, span.start_ns)
                way.started = True
            way.stage, way.row, way.start_ns, way.end_ns = span.stage, row, span.start_ns, span.end_ns
        if span.stage == LAST:
            yield from self._finish(way)
            del self._ways[request_id]

    def _leave(self, way: _Way, next_ns: int) -> str:
        if way.started:
            return self._arrow("t", way, way.start_ns)
        # Near the slice's end, but inside; and an arrow must not go back in time.
        near_end = way.end_ns - min((way.end_ns - way.start_ns) // 2, 1000)
        return self._arrow("s", way, max(way.start_ns, min(near_end, next_ns)))

    def _finish(self, way: _Way) -> Iterator[str]:
        if way.started:
            yield self._arrow("f", way, way.start_ns)

    def _arrow(self, phase: str, way: _Way, ns: int) -> str:
        # `bp` e: it belongs to the slice around it, not to the next one.
        return (
            f'{{"ph":"{phase}","ts":{_us(ns - self._zero_ns)},"pid":{way.row.pid},"tid":{way.row.tid},'
            f'"name":"request","cat":"request","id":{way.number},"bp":"e"}}'
        )


def _slice(span: Span, row: TraceRow, zero: int, *, name: str, category: str, args: str) -> str:
    return (
        f'{{"ph":"X","ts":{_us(span.start_ns - zero)},"dur":{_us(span.end_ns - span.start_ns)},'
        f'"pid":{row.pid},"tid":{row.tid},"name":{json.dumps(name)},"cat":"{category}","args":{{{args}}}}}'
    )


def _us(ns: int) -> str:
    """Microseconds, the format's unit, exactly."""
    return f"{ns // 1000}.{ns % 1000:03d}"
