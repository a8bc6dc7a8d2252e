"""Spans laid out in rows for a chart: devices, then workers, each request in a lane of its worker."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from handlergen.bench.recorded import only_predicts
from handlergen.recordings import Span
from handlergen.runtime.spans import ON_DEVICE, STAGES

MOST_SPANS = 60_000
_MOST_LANES = 16
_SECOND_NS = 1_000_000_000


def timeline_of(spans: Sequence[Span], model: str, window: tuple[int, int]) -> dict[str, Any]:
    """The spans of a window as a chart needs them.

    A device's row has the predictions of all models; the rows of workers have this model's. When there are too
    many spans for a page, only the first part of each second is kept.

    Returns:
        `rows`: `{"label", "lanes"}` each; `stages`: their names; `spans`: [row, lane, stage, start in µs from the
        window's start, length in µs, number of the request, how many requests]; `length_s`; `slice_ms`: how
        much of each second is there, 1000 for all.
    """
    start_ns, end_ns = window
    inside = [span for span in spans if span.end_ns > start_ns and span.start_ns < end_ns]
    slice_ms = 1000
    if len(inside) > MOST_SPANS:
        slice_ms = max(10, 1000 * MOST_SPANS // len(inside))
        inside = [span for span in inside if (span.start_ns - start_ns) % _SECOND_NS < slice_ms * 1_000_000]
    names = [*STAGES, *sorted({span.stage for span in inside} - set(STAGES))]
    stage_of = {name: index for index, name in enumerate(names)}
    numbers: dict[str, int] = {}
    for span in inside:
        for name in span.request_id.split(","):
            numbers.setdefault(name, len(numbers) + 1)

    def plain(row: int, lane: int, span: Span) -> list[int]:
        first, *others = span.request_id.split(",")
        start_us, length_us = (span.start_ns - start_ns) // 1000, (span.end_ns - span.start_ns) // 1000
        return [row, lane, stage_of[span.stage], start_us, max(1, length_us), numbers[first], 1 + len(others)]

    rows: list[dict[str, Any]] = []
    laid: list[tuple[int, int, Span]] = []
    predictions = [span for span in inside if span.stage in ON_DEVICE]
    for device in sorted({span.device for span in predictions}):
        laid += [(len(rows), 0, span) for span in predictions if span.device == device]
        rows.append({"label": f"device {device}", "lanes": 1})
    by_worker: dict[str, list[Span]] = defaultdict(list)
    for span in inside:
        if span.model == model:
            by_worker[span.worker].append(span)
    for worker in sorted(by_worker):
        own = by_worker[worker]
        lanes = _lanes(own)
        kind = "predictor" if only_predicts(own) else "worker"
        laid += [
            (len(rows), lane, span)
            for span in own
            for lane in sorted({lanes[name] for name in span.request_id.split(",")})
            if lane < _MOST_LANES
        ]
        rows.append({"label": f"{kind} {worker}", "lanes": min(_MOST_LANES, max(lanes.values()) + 1)})
    return {
        "rows": rows,
        "stages": names,
        "spans": [plain(row, lane, span) for row, lane, span in laid],
        "length_s": round((end_ns - start_ns) / 1e9, 3),
        "slice_ms": slice_ms,
    }


def _lanes(spans: Sequence[Span]) -> dict[str, int]:
    """Request id -> a lane in which no other request lies at the same time."""
    times: dict[str, tuple[int, int]] = {}
    for span in spans:
        for name in span.request_id.split(","):
            start, end = times.get(name, (span.start_ns, span.end_ns))
            times[name] = (min(start, span.start_ns), max(end, span.end_ns))
    lanes: dict[str, int] = {}
    free_from: list[int] = []
    for name, (start, end) in sorted(times.items(), key=lambda item: item[1]):
        lane = next((lane for lane, free in enumerate(free_from) if free <= start), len(free_from))
        if lane == len(free_from):
            free_from.append(end)
        else:
            free_from[lane] = end
        lanes[name] = lane
    return lanes
