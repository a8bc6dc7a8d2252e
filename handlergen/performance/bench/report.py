"""Report a measurement as JSON values, as lines for a terminal, and as a self-contained HTML page."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from handlergen.performance.bench.measure import Measurement
from handlergen.performance.bench.traffic import RIGHT, Closed, TimedAnswer
from handlergen.performance.recordings import Recorded, Span, by_request, grouped, of_stage, only_predicts, percentile
from handlergen.project.templates import render
from handlergen.runtime.telemetry.stages import ON_DEVICE, STAGE, STAGE_NAMES, STAGES, label_of

_SHOWN = {50: "p50", 90: "p90", 95: "p95", 99: "p99", 100: "max"}


def plain(measurement: Measurement) -> dict[str, Any]:
    """Return all figures as JSON values, without single answers and spans. Shares are 0..1, CPU is in cores."""
    figures, recorded, plan = measurement.figures, measurement.recorded, measurement.plan
    return {
        "model": measurement.model,
        "version": measurement.version,
        "load": load_of(measurement),
        "rows": measurement.rows,
        "warmup_s": plan.warmup_s,
        "seconds": plan.seconds,
        "requests_per_s": _round(figures.requests_per_s),
        "latency_ms": {_SHOWN[p]: _round(ms) for p, ms in figures.latency_ms.items()},
        "answered": figures.outcomes.get(RIGHT, 0),
        "errors": measurement.errors,
        "limit_per_s": _round(recorded.limit_per_s) if recorded else None,
        "share_of_limit": _round(measurement.share_of_limit),
        "predict_overlaps": recorded.overlaps if recorded else None,
        "devices": [_rounded(asdict(device)) for device in recorded.devices] if recorded else None,
        "stages": {stage.stage: _rounded(asdict(stage)) for stage in recorded.stages} if recorded else None,
        "in_workers_ms": _round(recorded.in_workers_ms) if recorded else None,
        "workers": measurement.workers,
        "workers_occupied": _rounded(recorded.occupied) if recorded else None,
        "batch_size": measurement.batch_size,
        "cpu": _rounded(asdict(measurement.cpu)) if measurement.cpu else None,
        "sent_late_ms_p99": _round(late_ms(measurement)),
        "spans_missing": measurement.missing or None,
        "bottleneck": measurement.verdict.bottleneck,
        "why": measurement.verdict.sentence,
    }


def lines(measurement: Measurement) -> Iterator[str]:
    """Yield the report for a terminal."""
    figures, recorded, plan = measurement.figures, measurement.recorded, measurement.plan
    yield (
        f"{measurement.model} {measurement.version}: {load_of(measurement)}; {plan.seconds:g} s after "
        f"{plan.warmup_s:g} s of warm-up, {measurement.rows} row{'s' * (measurement.rows != 1)}"
    )
    yield ""
    failed = sum(measurement.errors.values())
    kinds = ", ".join(f"{count} of {kind}" for kind, count in measurement.errors.items())
    answered = figures.outcomes.get(RIGHT, 0)
    yield _row(
        "requests/s",
        f"{number(figures.requests_per_s)}   ({answered:,} answered, {failed:,} errors{': ' if failed else ''}{kinds})",
    )
    if figures.latency_ms:
        shown = "   ".join(f"{_SHOWN[p]} {number(figures.latency_ms[p])}" for p in (50, 90, 99, 100))
        yield _row("latency, ms", shown)
    if recorded is not None:
        yield from _recorded(measurement, recorded)
    if measurement.cpu is not None:
        used = "   ".join(f"{label} {cores}" for label, cores in _cpu_rows(measurement))
        yield _row(f"CPU, of {measurement.cpu.cores} cores", used)
    late = late_ms(measurement)
    if late is not None and late > 1.0:
        yield _row("sent late, ms", f"p99 {number(late)}: the load generator was delayed, which counts as latency")
    yield ""
    if measurement.missing:
        yield f"No device share, lock wait and limit: {measurement.missing}."
    yield f"Bottleneck: {measurement.verdict.bottleneck}. {measurement.verdict.sentence}"


def load_of(measurement: Measurement) -> str:
    """Return the load in words: `16 clients over REST`."""
    pace = measurement.plan.pace
    over = "gRPC" if measurement.plan.over_grpc else "REST"
    if isinstance(pace, Closed):
        return f"{pace.clients} client{'s' * (pace.clients != 1)} over {over}"
    return f"{pace.rate:g} requests/s due {'evenly' if pace.even else 'at random'} over {over}"


def late_ms(measurement: Measurement) -> float | None:
    """Return the 99th percentile of how late an open loop sent requests; None for a closed loop."""
    late = measurement.load.late_ns
    return percentile(late, 99) / 1e6 if late else None


def number(value: float) -> str:
    """Format a number with about three digits."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def _recorded(measurement: Measurement, recorded: Recorded) -> Iterator[str]:
    for device in recorded.devices:
        others = f" ({device.busy_with_others:.0%} with other models)" if device.busy_with_others else ""
        yield _row(
            f"device {device.device}"[:20],
            f"busy {device.busy:.1%}{others}   predict {number(device.predict_ms)} ms for "
            f"{device.requests_each:.1f} request{'s' * (device.requests_each != 1)}   "
            f"overlaps {device.overlaps}",
        )
    if measurement.share_of_limit is not None:
        yield _row(
            "limit",
            f"{number(recorded.limit_per_s)} requests/s if devices only predicted; "
            f"{measurement.share_of_limit:.1%} reached",
        )
    stages = (f"{label_of(stage.stage)} {number(stage.per_request_ms)}" for stage in recorded.stages)
    yield _row("a request, ms", "   ".join(stages))
    if measurement.figures.latency_ms:
        yield _row(
            "",
            f"{number(recorded.in_workers_ms)} from decode to encode, the rest of its latency in TorchServe's queue "
            "and on the way",
        )
    wait = recorded.stage("lock_wait")
    if wait is not None:
        yield _row("lock wait, ms", f"p50 {number(wait.p50_ms)}   p99 {number(wait.p99_ms)}")
    yield _row("workers", f"{measurement.workers}, with a request {recorded.mean_occupied:.0%} of the time")


def _row(label: str, text: str) -> str:
    return f"{label:<20} {text}"


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {key: _round(value) if isinstance(value, float) else value for key, value in values.items()}


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


MOST_SPANS = 60_000
_MOST_LANES = 16
_SECOND_NS = 1_000_000_000


def timeline_of(spans: Sequence[Span], model: str, window: tuple[int, int]) -> dict[str, Any]:
    """Return the data of the timeline chart.

    A device's row has the predictions of all models; a worker's row has this model's spans. If there are too many spans
    for a page, only the first part of each second is kept.

    Returns:
        `rows`: `{"label", "lanes"}` each; `stages`: names; `spans`: [row, lane, stage, start in µs since the window's
        start, length in µs, number of the request, number of requests]; `length_s`; `slice_ms`: the part of each
        second that is kept, 1000 for all.
    """
    start_ns, end_ns = window
    inside = [span for span in spans if span.end_ns > start_ns and span.start_ns < end_ns]
    slice_ms = 1000
    if len(inside) > MOST_SPANS:
        slice_ms = max(10, 1000 * MOST_SPANS // len(inside))
        inside = [span for span in inside if (span.start_ns - start_ns) % _SECOND_NS < slice_ms * 1_000_000]
    names = [*STAGE_NAMES, *sorted({span.stage for span in inside} - set(STAGE_NAMES))]
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
    for device, own in grouped(of_stage(inside, *ON_DEVICE), "device").items():
        laid += [(len(rows), 0, span) for span in own]
        rows.append({"label": f"device {device}", "lanes": 1})
    for worker, own in grouped((span for span in inside if span.model == model), "worker").items():
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
    """Return request id -> a lane in which it overlaps no other request."""
    lanes: dict[str, int] = {}
    free_from: dict[int, int] = {}
    for name, (start, end) in sorted(by_request(spans).items(), key=lambda item: item[1]):
        lane = next((lane for lane, free in free_from.items() if free <= start), len(free_from))
        free_from[lane] = end
        lanes[name] = lane
    return lanes


_BARS = 48
_MOST_POINTS = 120
_LOGARITHMIC_FROM = 12.0


def page(measurement: Measurement) -> str:
    """Return the HTML page, whose script draws the charts from embedded data."""
    charts = {
        "latency": latency_bars(measurement),
        "time": over_time(measurement),
        "timeline": timeline_of(measurement.spans, measurement.model, measurement.window),
    }
    # Only "<" could end a <script> element.
    data = json.dumps(charts, separators=(",", ":")).replace("<", "\\u003c")
    return render(
        "bench-report.html.j2",
        m=measurement,
        load=load_of(measurement),
        known_stages=STAGES,
        stage_table=STAGE,
        label_of=label_of,
        figures=plain(measurement),
        tiles=_tiles(measurement),
        cpu=_cpu_rows(measurement),
        number=number,
        data=data,
    )


def latency_bars(measurement: Measurement) -> dict[str, Any]:
    """Return a histogram of the latency of right answers.

    Returns:
        `edges` in ms (one more than `counts`), `log`: whether they are logarithmic, `marks`: percentiles.
    """
    right = [_ms(answer) for answer in measurement.load.inside(measurement.window) if answer.outcome == RIGHT]
    if not right:
        return {"edges": [], "counts": [], "log": False, "marks": {}}
    low, high = min(right), max(right)
    logarithmic = high > _LOGARITHMIC_FROM * max(low, 1e-3)
    if high - low < 1e-3:
        high = low + 1e-3
    if logarithmic:
        low = max(low, 1e-3)
        edges = [low * (high / low) ** (i / _BARS) for i in range(_BARS + 1)]
    else:
        edges = [low + (high - low) * i / _BARS for i in range(_BARS + 1)]
    counts = [0] * _BARS
    for ms in right:
        counts[min(_BARS - 1, max(0, bisect_right(edges, ms) - 1))] += 1
    marks = measurement.figures.latency_ms
    return {
        "edges": [round(edge, 4) for edge in edges],
        "counts": counts,
        "log": logarithmic,
        "marks": {f"p{p}": round(marks[p], 3) for p in (50, 90, 99)},
    }


def over_time(measurement: Measurement) -> dict[str, Any]:
    """Return answers over time, including the warm-up.

    Returns:
        `step_s`; `right` and `failed`: answers/s in each step; `p50` and `p99` in ms, None without answers; `from_s`:
        the start of the window.
    """
    load, (start_ns, end_ns) = measurement.load, measurement.window
    length_s = (end_ns - load.started_ns) / 1e9
    widths = [0.25, 0.5, *(factor * 10.0**power for power in range(6) for factor in (1, 2, 5))]
    step_s = next(step for step in widths if length_s / step <= _MOST_POINTS)
    steps: list[list[TimedAnswer]] = [[] for _ in range(max(1, math.floor(length_s / step_s)))]
    for answer in load.answers:
        at = int((answer.ended_ns - load.started_ns) / 1e9 / step_s)
        if at < len(steps):
            steps[at].append(answer)
    right = [[_ms(answer) for answer in step if answer.outcome == RIGHT] for step in steps]
    return {
        "step_s": step_s,
        "from_s": round((start_ns - load.started_ns) / 1e9, 3),
        "right": [round(len(step) / step_s, 2) for step in right],
        "failed": [round((len(all_) - len(ok)) / step_s, 2) for all_, ok in zip(steps, right, strict=True)],
        "p50": [round(percentile(step, 50), 3) if step else None for step in right],
        "p99": [round(percentile(step, 99), 3) if step else None for step in right],
    }


def _ms(answer: TimedAnswer) -> float:
    return (answer.ended_ns - answer.started_ns) / 1e6


def _tiles(measurement: Measurement) -> list[tuple[str, str, str]]:
    """Return (name, value, note) of the figures at the top."""
    figures, recorded = measurement.figures, measurement.recorded
    failed = sum(measurement.errors.values())
    answered = figures.outcomes.get(RIGHT, 0)
    latency = figures.latency_ms
    tiles = [
        ("requests/s", number(figures.requests_per_s), f"{answered:,} answered"),
        ("errors", f"{failed:,}", ", ".join(f"{n} of {kind}" for kind, n in measurement.errors.items())),
    ]
    if latency:
        tiles += [
            ("latency p50", f"{number(latency[50])} ms", f"p90 {number(latency[90])} ms"),
            ("latency p99", f"{number(latency[99])} ms", f"max {number(latency[100])} ms"),
        ]
    if recorded is not None and recorded.devices:
        wait = recorded.stage("lock_wait")
        tiles += [
            ("device busy", f"{recorded.busy:.1%}", f"{recorded.overlaps} predictions overlapped"),
            (
                "of the limit",
                f"{measurement.share_of_limit or 0:.1%}",
                f"{number(recorded.limit_per_s)} requests/s if devices only predicted",
            ),
        ]
        if wait is not None:
            tiles.append(("wait for the device", f"{number(wait.p50_ms)} ms", f"p99 {number(wait.p99_ms)} ms"))
        tiles.append(("workers occupied", f"{recorded.mean_occupied:.0%}", f"{measurement.workers} of them"))
    return tiles


def _cpu_rows(measurement: Measurement) -> list[tuple[str, str]]:
    """Return (process group, cores) of the CPU use that was measured."""
    cpu = measurement.cpu
    if cpu is None:
        return []
    used = {
        "workers": cpu.workers,
        "TorchServe": cpu.frontend,
        "load generator": cpu.client,
        "other processes": cpu.others,
    }
    return [(label, f"{cores:.2f}") for label, cores in used.items() if cores is not None]
