"""The arrows of a request: from its preprocess to its predict to its postprocess, wherever each of them ran."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from handlergen.recordings import Span
from handlergen.trace.rows import Row

_LAST_STAGE = "encode"


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
    row: Row
    ns: int


@dataclass
class _Way:
    number: int
    stage: str
    row: Row
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

    def add(self, span: Span, row: Row) -> Iterator[Point]:
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

    def _step(self, request_id: str, span: Span, row: Row) -> Iterator[Point]:
        way = self._ways.get(request_id)
        if way is None:
            self._count += 1
            way = self._ways[request_id] = _Way(self._count, span.stage, row, span.start_ns, span.end_ns)
        elif span.stage != _LAST_STAGE or way.stage != "postprocess":
            # Without a preprocess the arrow starts at decode, without a postprocess it ends at encode.
            if way.stage != "decode" or span.stage != "preprocess":
                yield _leave(way, span.start_ns)
                way.started = True
            way.stage, way.row, way.start_ns, way.end_ns = span.stage, row, span.start_ns, span.end_ns
        if span.stage == _LAST_STAGE:
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
