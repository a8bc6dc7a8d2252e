"""Spans to the Trace Event Format: one pass, an event a line, nothing kept that is not under way.

The format: "Trace Event Format", docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU. What
Perfetto makes of it was read in its src/trace_processor/importers/json: arrows of one request share name, category
and number; other keys than `traceEvents` stand after it or are those the format names.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from handlergen.errors import HandlergenError
from handlergen.recordings import Span
from handlergen.runtime.stages import LAST, ON_DEVICE, label_of
from handlergen.trace.layout import Flows, Named, Point, Rows, Survey, TraceRow, in_order, survey


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


_CHUNK = 512  # events a write


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
    output.write(b'{"displayTimeUnit":"ms","traceEvents":[\n')
    _write_lines(output, _events(first, wanted, recording))
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


def _events(first: Span, rest: Iterator[Span], recording: Survey) -> Iterator[str]:
    rows, flows, zero = Rows(recording), Flows(), recording.start_ns

    def drawn(span: Span) -> Iterator[str]:
        row = rows.of_worker(span)
        requests = json.dumps(span.request_id)
        slice_args = f'"request":{requests},"model":{json.dumps(span.model)}'
        slices = [_slice(span, row, zero, name=label_of(span.stage), category="worker", args=slice_args)]
        if span.stage in ON_DEVICE:
            # The worker's own row shows it, too; the arrows go to the device's.
            row = rows.of_device(span)
            many = span.request_id.count(",") + 1
            args = f'{slice_args},"requests":{many},"pid":{span.pid}'
            slices.append(
                _slice(span, row, zero, name=f"{span.stage} {span.model}", category="device", args=args)
            )
        for named in rows.new_names():
            yield from _names(named)
        yield from slices
        yield from (_arrow(point, zero) for point in flows.add(span, row))

    yield from drawn(first)
    for span in rest:
        yield from drawn(span)
    yield from (_arrow(point, zero) for point in flows.end())


def _slice(span: Span, row: TraceRow, zero: int, *, name: str, category: str, args: str) -> str:
    return (
        f'{{"ph":"X","ts":{_us(span.start_ns - zero)},"dur":{_us(span.end_ns - span.start_ns)},'
        f'"pid":{row.pid},"tid":{row.tid},"name":{json.dumps(name)},"cat":"{category}","args":{{{args}}}}}'
    )


def _arrow(point: Point, zero: int) -> str:
    # `bp` e: it belongs to the slice around it, not to the next one.
    return (
        f'{{"ph":"{point.phase}","ts":{_us(point.ns - zero)},"pid":{point.row.pid},"tid":{point.row.tid},'
        f'"name":"request","cat":"request","id":{point.number},"bp":"e"}}'
    )


def _names(named: Named) -> Iterator[str]:
    kind = "process" if named.tid is None else "thread"
    place = f'"ph":"M","ts":0,"pid":{named.pid}' + ("" if named.tid is None else f',"tid":{named.tid}')
    yield f'{{{place},"name":"{kind}_name","args":{{"name":{json.dumps(named.name)}}}}}'
    yield f'{{{place},"name":"{kind}_sort_index","args":{{"sort_index":{named.place}}}}}'


def _us(ns: int) -> str:
    """Microseconds, the format's unit, exactly."""
    return f"{ns // 1000}.{ns % 1000:03d}"


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
