"""From measured stages to settings: servers are simulated, and the least that is as good as the best is taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from handlergen.errors import HandlergenError
from handlergen.tuning.probe import BATCHES, Alone, Beside
from handlergen.tuning.queueing import (
    MAX_BATCH_DELAY_MS,
    PASSAGE,
    Prediction,
    Server,
    Stage,
    closed_loop,
    open_loop,
)

WORKERS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)

_AS_GOOD = 0.99
_WORTH_IT = 0.95
_MOST_WAITING = 96  # TorchServe refuses what its queue (queue_size, 100) does not hold
_SHARE_OF_MEMORY = 0.8
_LOADS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


@dataclass(frozen=True)
class Candidate:
    """Settings, and what a server with them would do.

    Attributes:
        clients: Requests under way, for the most requests a second; 0 where `rate` says how many come.
        rate: Requests a second that come at random, for a latency target.
        prediction: Of all devices together.
    """

    workers: int
    batch_size: int
    clients: int
    rate: float
    prediction: Prediction


@dataclass(frozen=True)
class Recommendation:
    """What to set, and why.

    Attributes:
        target_p99_ms: What was asked for; None: as many requests a second as possible.
        chosen: The recommendation.
        candidates: Others, for comparison: with more and fewer workers, and each batch size.
        correction: What the measured processes did together, by what the simulation says of them; the prediction
            is multiplied by it when it is below 1.
        limits: What kept further candidates out.
    """

    target_p99_ms: float | None
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    correction: float
    limits: tuple[str, ...]

    @property
    def settings(self) -> dict[str, int]:
        """For `handlergen.yaml`."""
        return {
            "workers_per_device": self.chosen.workers,
            "batch_size": self.chosen.batch_size,
            "max_batch_delay_ms": MAX_BATCH_DELAY_MS,
        }


def recommend(
    alone: Alone,
    *,
    available_memory: int,
    target_p99_ms: float | None = None,
    beside: Callable[[int], Beside] | None = None,
) -> tuple[Recommendation, Beside | None]:
    """Find the least workers, then the smallest batches, that do as well as any (within 1 %).

    Args:
        available_memory: Bytes, for the copies of the model.
        target_p99_ms: The most that 99 of 100 requests may take, when they come at random.
        beside: Measures so many processes at once, to correct the prediction by.

    Raises:
        HandlergenError: The target cannot be reached.
    """
    counts, limits = _counts(alone, available_memory)
    sizes = _sizes(alone)
    found = [_busy(alone, workers, size) for size in sizes for workers in counts]
    best = _least(found, lambda one: one.prediction.requests_per_s)
    if target_p99_ms is not None:
        enough = [one for one in found if one.workers <= best.workers + 2]
        met = [one for one in (_within(alone, c, target_p99_ms) for c in enough) if one is not None]
        if not met:
            least = min(one.prediction.p99_ms for one in (_at(alone, c, _LOADS[0]) for c in enough))
            raise HandlergenError(
                f"no setting reaches {target_p99_ms:g} ms: even a server that hardly has anything to do takes "
                f"{least:.1f} ms for one request of a hundred",
                hint="make the stages themselves faster; the table of `tune` without a target shows them",
            )
        best = _least(met, lambda one: one.rate)
        found = met
    together = min(best.workers, _fitting(alone, available_memory))
    measured = beside(together) if beside is not None and together > 1 else None
    correction = _correction(alone, measured) if measured is not None else 1.0
    recommendation = Recommendation(
        target_p99_ms,
        _corrected(best, correction),
        tuple(_corrected(one, correction) for one in found),
        correction,
        limits,
    )
    return recommendation, measured


def _sizes(alone: Alone) -> list[int]:
    """Batch sizes that were measured and with which predict takes less for a request."""
    single = alone.work.batch_ms[1]
    return [1] + [
        size
        for size in BATCHES
        if size > 1 and alone.work.batch_ms.get(size, math.inf) / size < _WORTH_IT * single
    ]


def _fitting(alone: Alone, available_memory: int) -> int:
    """How many processes with a copy of the model fit for each device."""
    return max(1, int(available_memory * _SHARE_OF_MEMORY / max(1, alone.memory) / alone.devices))


def _counts(alone: Alone, available_memory: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    fit = _fitting(alone, available_memory)
    counts = tuple(count for count in WORKERS if count <= fit)
    if alone.predictor == "process" or len(counts) == len(WORKERS):
        return WORKERS, ()
    return counts, (
        f"no more than {counts[-1]} workers a device: each takes {alone.memory / 2**20:,.0f} MiB of the "
        f"{available_memory / 2**20:,.0f} MiB that are free",
    )


def _server(alone: Alone, workers: int, batch_size: int) -> Server:
    cores = alone.cores / alone.devices
    if alone.stages == "predictor":
        cores = min(cores, 1.0)  # all stages share one process, and its interpreter
    if alone.predictor != "process":
        return Server(workers, batch_size, cores)
    together = alone.max_batch if alone.batch != "each" else 1
    # A worker that only passes requests on computes beside the process, not in its interpreter.
    passage = PASSAGE if alone.stages == "worker" else Stage(PASSAGE.total_ms, 0.0)
    return Server(workers, batch_size, cores, passage=passage, together=together)


def _busy(alone: Alone, workers: int, batch_size: int) -> Candidate:
    """With twice as many requests under way as the workers can hold, but 16 at least, and no more than may wait."""
    clients = max(16, min(2 * workers * batch_size, _MOST_WAITING))
    requests = max(800, 12 * clients)
    prediction = closed_loop(
        alone.work, _server(alone, workers, batch_size), clients=clients, requests=requests
    )
    return Candidate(workers, batch_size, clients, 0.0, _times(prediction, alone.devices))


def _within(alone: Alone, candidate: Candidate, target_p99_ms: float) -> Candidate | None:
    """At the highest of some rates at which the target is kept; None when it is at none."""
    kept, low, high = None, 0, len(_LOADS)
    while low < high:  # waits grow with the rate
        middle = (low + high) // 2
        found = _at(alone, candidate, _LOADS[middle])
        if found.prediction.p99_ms <= target_p99_ms:
            kept, low = found, middle + 1
        else:
            high = middle
    return kept


def _at(alone: Alone, candidate: Candidate, load: float) -> Candidate:
    rate = load * candidate.prediction.requests_per_s / alone.devices
    server = _server(alone, candidate.workers, candidate.batch_size)
    prediction = _times(open_loop(alone.work, server, rate=rate, requests=2000), alone.devices)
    return replace(candidate, clients=0, rate=rate * alone.devices, prediction=prediction)


def _least(found: Sequence[Candidate], worth: Callable[[Candidate], float]) -> Candidate:
    most = max(map(worth, found))
    good = [one for one in found if worth(one) >= _AS_GOOD * most]
    return min(good, key=lambda one: (one.workers, one.batch_size))


def _correction(alone: Alone, measured: Beside) -> float:
    """The processes of `measured` have no TorchServe between their requests, and one request at a time."""
    server = Server(measured.processes, 1, alone.cores, dispatch=Stage(0.0, 0.0))
    expected = closed_loop(alone.work, server, clients=measured.processes, requests=800)
    return measured.requests_per_s / expected.requests_per_s


def _corrected(candidate: Candidate, correction: float) -> Candidate:
    factor = min(1.0, correction)
    prediction = candidate.prediction
    return replace(
        candidate,
        rate=candidate.rate * factor,
        prediction=replace(
            prediction,
            requests_per_s=prediction.requests_per_s * factor,
            device_busy=prediction.device_busy * factor,
            p50_ms=prediction.p50_ms / factor,
            p99_ms=prediction.p99_ms / factor,
        ),
    )


def _times(prediction: Prediction, devices: int) -> Prediction:
    return replace(prediction, requests_per_s=prediction.requests_per_s * devices)
