"""A measurement as a page: one HTML file that needs nothing else."""

from __future__ import annotations

import json
import math
from typing import Any

from handlergen.bench.answers import RIGHT, Answer, percentile
from handlergen.bench.measure import Measurement
from handlergen.bench.summary import load_of, number, plain
from handlergen.bench.timeline import timeline_of
from handlergen.templates import render

_BARS = 48
_MOST_POINTS = 120
_LOGARITHMIC_FROM = 12.0
_STAGE_WORDS = {
    "decode": "read what was sent",
    "preprocess": "the model's own, beside predictions of other requests",
    "lock_wait": "ready, waiting for the device",
    "predict": "on the device, one at a time",
    "explain": "on the device, too",
    "postprocess": "the model's own, beside predictions of other requests",
    "encode": "write the answer",
}


def page(measurement: Measurement) -> str:
    """The text of the page: figures and tables as HTML, charts drawn by its script from data inside it."""
    charts = {
        "latency": latency_bars(measurement),
        "time": over_time(measurement),
        "timeline": timeline_of(measurement.spans, measurement.model, measurement.window),
    }
    # Inside <script>, only "<" could end it.
    data = json.dumps(charts, separators=(",", ":")).replace("<", "\\u003c")
    return render(
        "bench-report.html.j2",
        m=measurement,
        load=load_of(measurement),
        figures=plain(measurement),
        tiles=_tiles(measurement),
        stages=_stage_rows(measurement),
        cpu=_cpu_rows(measurement),
        number=number,
        data=data,
    )


def latency_bars(measurement: Measurement) -> dict[str, Any]:
    """Counts of right answers by latency.

    Returns:
        `edges` in ms (one more than `counts`), `log`: whether they grow by factors, `marks`: percentiles.
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
        place = [math.log(max(ms, low) / low) / math.log(high / low) for ms in right]
    else:
        edges = [low + (high - low) * i / _BARS for i in range(_BARS + 1)]
        place = [(ms - low) / (high - low) for ms in right]
    counts = [0] * _BARS
    for at in place:
        counts[min(_BARS - 1, int(at * _BARS))] += 1
    marks = measurement.figures.latency_ms
    return {
        "edges": [round(edge, 4) for edge in edges],
        "counts": counts,
        "log": logarithmic,
        "marks": {f"p{p}": round(marks[p], 3) for p in (50, 90, 99)},
    }


def over_time(measurement: Measurement) -> dict[str, Any]:
    """Answers by when they came, from the load's start on, the warm-up included.

    Returns:
        `step_s`; `right` and `failed`: answers a second in each step; `p50` and `p99` in ms, None without any;
        `from_s`: where the window starts.
    """
    load, (start_ns, end_ns) = measurement.load, measurement.window
    length_s = (end_ns - load.started_ns) / 1e9
    step_s = next(step for step in _steps() if length_s / step <= _MOST_POINTS)
    steps: list[list[Answer]] = [[] for _ in range(max(1, math.floor(length_s / step_s)))]
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


def _steps() -> list[float]:
    return [0.25, 0.5, *(factor * 10.0**power for power in range(6) for factor in (1, 2, 5))]


def _ms(answer: Answer) -> float:
    return (answer.ended_ns - answer.started_ns) / 1e6


def _tiles(measurement: Measurement) -> list[tuple[str, str, str]]:
    """(name, value, note) of the figures at the top."""
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
                "of what is possible",
                f"{measurement.share_of_limit or 0:.1%}",
                f"{number(recorded.limit_per_s)} requests/s if it only predicted",
            ),
        ]
        if wait is not None:
            tiles.append(
                ("wait for the device", f"{number(wait.p50_ms)} ms", f"p99 {number(wait.p99_ms)} ms")
            )
        tiles.append(
            ("workers occupied", f"{recorded.mean_occupied:.0%}", f"{measurement.workers} of them"),
        )
    return tiles


def _stage_rows(measurement: Measurement) -> list[dict[str, str]]:
    if measurement.recorded is None:
        return []
    return [
        {
            "stage": stage.stage,
            "name": stage.stage.replace("_", " "),
            "mean": number(stage.mean_ms),
            "p50": number(stage.p50_ms),
            "p99": number(stage.p99_ms),
            "what": _STAGE_WORDS.get(stage.stage, ""),
        }
        for stage in measurement.recorded.stages
    ]


def _cpu_rows(measurement: Measurement) -> list[tuple[str, str]]:
    if measurement.cpu is None:
        return []
    names = {
        "workers": "workers",
        "frontend": "TorchServe's frontend",
        "client": "load generator",
        "others": "other processes",
    }
    return [
        (label, f"{value:.2f}")
        for name, label in names.items()
        if (value := getattr(measurement.cpu, name)) is not None
    ]
