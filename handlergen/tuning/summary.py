"""What tuning found, in JSON values and in lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from handlergen.bench.summary import number
from handlergen.tuning.probe import ROLES, Alone, Beside
from handlergen.tuning.queueing import DISPATCH, HANDOVER_MS
from handlergen.tuning.recommend import Candidate, Recommendation


def plain(alone: Alone, beside: Beside | None, found: Recommendation) -> dict[str, Any]:
    """JSON values: times in ms, shares 0..1."""
    return {
        "model": alone.model,
        "device": alone.device,
        "devices": alone.devices,
        "cores": alone.cores,
        "batch": alone.batch,
        "predictor": alone.predictor,
        "stages_run_in": alone.stages,
        "memory_bytes_with_a_copy": alone.memory,
        "stages": {
            role: {
                "alone_ms": round(alone.mean_ms(role), 3),
                "computing": round(alone.computing[role], 3),
                "beside_ms": round(beside.mean_ms[role], 3) if beside else None,
            }
            for role in ROLES
        },
        "beside_processes": beside.processes if beside else None,
        "predict_ms_by_batch_size": {
            str(size): round(ms, 3) for size, ms in sorted(alone.work.batch_ms.items())
        },
        "target_p99_ms": found.target_p99_ms,
        "settings": found.settings,
        "predicted": _candidate(found.chosen),
        "correction": round(found.correction, 3),
        "candidates": [_candidate(one) for one in found.candidates],
        "why": list(reasons(alone, found)),
    }


def lines(alone: Alone, beside: Beside | None, found: Recommendation) -> Iterator[str]:
    """The report for a terminal."""
    yield f"{alone.model}: {_settings(found)}"
    yield ""
    together = f"beside {beside.processes - 1} other{'s' * (beside.processes != 2)}" if beside else ""
    yield f"{'stage, ms':<12} {'alone':>8} {'computing':>10} {together:>16}".rstrip()
    for role in ROLES:
        other = number(beside.mean_ms[role]) if beside else ""
        yield (
            f"{role:<12} {number(alone.mean_ms(role)):>8} {alone.computing[role]:>10.0%} {other:>16}".rstrip()
        )
    if len(alone.work.batch_ms) > 1:
        sizes = "   ".join(
            f"{size}: {number(ms)} ({number(ms / size)} each)"
            for size, ms in sorted(alone.work.batch_ms.items())
        )
        yield f"\npredict by batch size, ms\n  {sizes}"
    yield ""
    yield from _table(found)
    yield ""
    for reason in reasons(alone, found):
        yield f"- {reason}"
    yield ""
    yield f"Predicted: {_said(found.chosen)}."


def reasons(alone: Alone, found: Recommendation) -> Iterator[str]:
    """Why these settings, a sentence each."""
    chosen = found.chosen
    hold = alone.work.hold_factor(chosen.batch_size) * alone.mean_ms("predict")
    rest = alone.mean_ms("preprocess") + alone.mean_ms("postprocess")
    computing = sum(alone.mean_ms(role) * alone.computing[role] for role in ROLES) + DISPATCH.cpu_ms
    limit = chosen.batch_size * 1e3 / (hold + HANDOVER_MS) * alone.devices
    yield (
        f"The device takes {number(hold)} ms for {_requests(chosen.batch_size)}: {number(limit)} requests/s at most."
    )
    if chosen.prediction.device_busy >= 0.9:
        yield (
            f"While one worker predicts, the others have {number(rest)} ms of other stages to do and "
            f"{DISPATCH.total_ms:g} ms of TorchServe between requests: {chosen.workers} workers keep the device busy, "
            "more would only wait."
        )
    elif computing * chosen.prediction.requests_per_s / 1e3 > 0.85 * alone.cores:
        yield (
            f"The cores are what limits: a request computes {number(computing)} ms, so that {alone.cores} cores do "
            f"{number(alone.cores * 1e3 / computing)} requests/s at most; more workers would share them."
        )
    if alone.batch == "each":
        yield (
            "Batch size 1: predict sees one request at a time (batch: each); in a batch, requests would only wait for "
            "each other."
        )
    elif chosen.batch_size == 1:
        yield "Batch size 1: larger batches bring no more requests/s" + (
            " within the target." if found.target_p99_ms else "."
        )
    else:
        single = alone.work.batch_ms[1]
        yield (
            f"Batch size {chosen.batch_size}: {number(hold / chosen.batch_size)} ms of predict a request instead of "
            f"{number(single)}; the smallest that does as well as any."
        )
    yield "max_batch_delay_ms 1: a busy device fills batches by itself, an idle one gains nothing by waiting."
    yield from (f"There are {limit}." for limit in found.limits)
    if found.correction < 0.95:
        yield (
            f"Processes beside each other did {found.correction:.0%} of what their stages alone promise (memory, "
            "caches, other programs): the prediction is lowered to that."
        )


def _settings(found: Recommendation) -> str:
    return ", ".join(f"{name} {value}" for name, value in found.settings.items())


def _said(one: Candidate) -> str:
    prediction = one.prediction
    busy = (
        f"device busy {prediction.device_busy:.0%}, latency p50 {number(prediction.p50_ms)} ms, "
        f"p99 {number(prediction.p99_ms)} ms"
    )
    if one.rate:
        return f"{number(one.rate)} requests/s that come at random; {busy}"
    return f"{number(prediction.requests_per_s)} requests/s with {one.clients} under way; {busy}"


def _table(found: Recommendation) -> Iterator[str]:
    """The chosen batch size with all numbers of workers, then the chosen workers with all batch sizes."""
    chosen = found.chosen
    workers = [one for one in found.candidates if one.batch_size == chosen.batch_size]
    sizes = [one for one in found.candidates if one.workers == chosen.workers]
    shown = workers + [one for one in sizes if one not in workers]
    target = found.target_p99_ms is not None
    last = "  p99, ms" if target else ""
    yield f"{'workers':>7} {'batch size':>11} {'requests/s':>11} {'device busy':>12}{last}"
    for one in shown:
        mark = "  <-" if (one.workers, one.batch_size) == (chosen.workers, chosen.batch_size) else ""
        rate = one.rate or one.prediction.requests_per_s
        last = f"{number(one.prediction.p99_ms):>9}" if target else ""
        yield (
            f"{one.workers:>7} {one.batch_size:>11} {number(rate):>11} {one.prediction.device_busy:>12.0%}{last}{mark}"
        )


def _candidate(one: Candidate) -> dict[str, Any]:
    prediction = one.prediction
    return {
        "workers_per_device": one.workers,
        "batch_size": one.batch_size,
        "clients": one.clients or None,
        "rate": round(one.rate, 2) or None,
        "requests_per_s": round(prediction.requests_per_s, 2),
        "device_busy": round(prediction.device_busy, 4),
        "p50_ms": round(prediction.p50_ms, 2),
        "p99_ms": round(prediction.p99_ms, 2),
    }


def _requests(count: int) -> str:
    return "one request" if count == 1 else f"{count} requests"
