"""A measurement in JSON values, and in lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from handlergen.bench.answers import RIGHT, percentile
from handlergen.bench.measure import Measurement
from handlergen.bench.pace import Closed
from handlergen.bench.recorded import Recorded

_SHOWN = {50: "p50", 90: "p90", 95: "p95", 99: "p99", 100: "max"}


def plain(measurement: Measurement) -> dict[str, Any]:
    """JSON values: every figure, without the single answers and spans. Shares are 0..1, CPU is in cores."""
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
    """The report for a terminal."""
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
        yield _row(f"CPU, of {measurement.cpu.cores} cores", _cpu(measurement))
    late = late_ms(measurement)
    if late is not None and late > 1.0:
        yield _row(
            "sent late, ms", f"p99 {number(late)}: the load generator was held up, which counts as latency"
        )
    yield ""
    if measurement.missing:
        yield f"No device share, lock wait and limit: {measurement.missing}."
    yield f"Bottleneck: {measurement.verdict.bottleneck}. {measurement.verdict.sentence}"


def load_of(measurement: Measurement) -> str:
    """`16 clients over REST`."""
    pace = measurement.plan.pace
    over = "gRPC" if measurement.plan.over_grpc else "REST"
    if isinstance(pace, Closed):
        return f"{pace.clients} client{'s' * (pace.clients != 1)} over {over}"
    return f"{pace.rate:g} requests/s due {'evenly' if pace.even else 'at random'} over {over}"


def late_ms(measurement: Measurement) -> float | None:
    """Open loop: the 99th percentile of how late requests were sent; None for a closed one."""
    late = measurement.load.late_ns
    return percentile(late, 99) / 1e6 if late else None


def number(value: float) -> str:
    """With about three digits."""
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
            f"{number(recorded.limit_per_s)} requests/s if devices did nothing but predict; "
            f"{measurement.share_of_limit:.1%} reached",
        )
    yield _row("a request, ms", _stages(recorded))
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


def _stages(recorded: Recorded) -> str:
    return "   ".join(
        f"{stage.stage.replace('_', ' ')} {number(stage.per_request_ms)}" for stage in recorded.stages
    )


def _cpu(measurement: Measurement) -> str:
    assert measurement.cpu is not None
    names = {"workers": "workers", "frontend": "TorchServe", "client": "load generator", "others": "others"}
    parts = [
        f"{label} {value:.2f}"
        for name, label in names.items()
        if (value := getattr(measurement.cpu, name)) is not None
    ]
    return "   ".join(parts)


def _row(label: str, text: str) -> str:
    return f"{label:<20} {text}"


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {key: _round(value) if isinstance(value, float) else value for key, value in values.items()}


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
