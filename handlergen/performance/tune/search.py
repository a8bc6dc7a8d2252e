"""Search for the best workers and batch size: candidates are measured in rounds, and each keeps the better half."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from handlergen.errors import HandlergenError
from handlergen.performance.bench.report import number

WORKERS = (1, 2, 3, 4, 6, 8, 12, 16)
BATCH_SIZES = (1, 4, 16, 32)
BATCH_WORKERS = (1, 2, 4, 8)  # numbers of workers to try with batches
MAX_BATCH_DELAY_MS = 1  # a busy device fills batches without a delay, and an idle one gains nothing by waiting
MOST_CLIENTS = 96
_AS_GOOD = 0.97  # smaller differences are noise
_MOST_ERRORS = 0.01
_QUIET = 0.1  # share of the cores that other programs may use without a warning
_LATENCY_ROUNDS = 3  # each halves the interval that contains the highest possible rate


@dataclass(frozen=True, order=True)
class Candidate:
    """Settings to try. Sorted by batch size, then workers: the order in which changing the server costs least."""

    batch_size: int
    workers: int

    @property
    def clients(self) -> int:
        """Clients of a closed loop: twice what the workers can hold, within 16 and `MOST_CLIENTS`."""
        return max(16, min(2 * self.workers * self.batch_size, MOST_CLIENTS))

    def __str__(self) -> str:
        return f"workers {self.workers}, batch size {self.batch_size}"


@dataclass(frozen=True)
class Turn:
    """The result of one load on one candidate.

    Attributes:
        rate: Requests/s sent at random times; None for a closed loop.
        errors: Share of requests that failed, 0..1.
        p50_ms, p99_ms: Latency; infinite if no request was answered.
        device: Key of the device; "" without spans.
        device_busy: Share of the time in which predict ran, 0..1; None without spans.
        stages_ms: Stage -> ms per request.
        worker_bytes: Memory that a worker does not share with others.
        other_cores: Cores used by unrelated programs; 0 if unknown.
        bottleneck, why: The verdict of `bench`.
    """

    rate: float | None
    requests_per_s: float
    errors: float
    p50_ms: float
    p99_ms: float
    device: str = ""
    device_busy: float | None = None
    stages_ms: dict[str, float] = field(default_factory=dict)
    worker_bytes: int = 0
    other_cores: float = 0.0
    bottleneck: str = ""
    why: str = ""


Measure = Callable[[Candidate, float | None], Turn]
"""Load a server with a candidate's settings: in a closed loop (None), or at a rate in requests/s."""


@dataclass(frozen=True)
class Measured:
    """A candidate and its loads so far.

    Attributes:
        kept, missed: The load with the highest rate that met the latency goal, and the lowest rate that did not.
    """

    candidate: Candidate
    turns: tuple[Turn, ...] = ()
    kept: Turn | None = None
    missed: float = math.inf

    @property
    def capacity(self) -> float:
        """Mean requests/s of the closed loops."""
        closed = [turn.requests_per_s for turn in self.turns if turn.rate is None]
        return fmean(closed) if closed else 0.0

    @property
    def fails(self) -> bool:
        """Whether more than 1 % of the requests of a closed loop failed."""
        return any(turn.rate is None and turn.errors > _MOST_ERRORS for turn in self.turns)

    @property
    def shown(self) -> Turn:
        """The load to report: the highest rate that met the goal, else the last closed loop."""
        return self.kept or next((t for t in reversed(self.turns) if t.rate is None), self.turns[-1])

    @property
    def kept_rate(self) -> float:
        """The highest rate that met the latency goal; 0 so far."""
        return self.kept.rate or 0.0 if self.kept else 0.0


@dataclass(frozen=True)
class Recommendation:
    """The result of a search.

    Attributes:
        target_p99_ms: The goal; None: as many requests/s as possible.
        limits: Sentences on why further candidates were excluded.
    """

    target_p99_ms: float | None
    chosen: Measured
    measured: tuple[Measured, ...]
    limits: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, int]:
        """The settings to write into `handlergen.yaml`."""
        return {
            "workers_per_device": self.chosen.candidate.workers,
            "batch_size": self.chosen.candidate.batch_size,
            "max_batch_delay_ms": MAX_BATCH_DELAY_MS,
        }


def candidates(batch: str) -> list[Candidate]:
    """Return the candidates for a batch mode; with `each`, requests of one batch would only wait for each other."""
    single, *larger = BATCH_SIZES
    field = [Candidate(single, workers) for workers in WORKERS]
    if batch == "each":
        return field
    return field + [Candidate(size, workers) for size in larger for workers in BATCH_WORKERS]


def most_turns(field_size: int, target_p99_ms: float | None) -> int:
    """Return how many loads a search takes if no candidate is excluded early."""
    turns, left = (field_size if target_p99_ms is not None else 0), field_size
    for _ in range(_rounds(field_size, target_p99_ms)):
        turns += left
        left = math.ceil(left / 2)
    return turns


def search(
    field: Sequence[Candidate],
    measure: Measure,
    *,
    target_p99_ms: float | None = None,
    copies_bytes: int | None = None,
) -> Recommendation:
    """Measure the candidates and keep the better half, until one is left.

    The first round skips candidates that cannot win: more workers after two steps without a gain, larger batches after
    one. `copies_bytes` is the memory for the workers' copies of the model; None if they share one.

    Raises:
        HandlergenError: No candidate meets the goal, or none answers without errors.
    """
    found, limits = _first_round(field, measure, copies_bytes)
    remaining = list(found)
    for number_of_round in range(_rounds(len(found), target_p99_ms)):
        for candidate in sorted(remaining):
            result = found[candidate]
            if target_p99_ms is not None:
                found[candidate] = _with_rate(result, measure, target_p99_ms)
            elif number_of_round > 0:
                found[candidate] = replace(result, turns=(*result.turns, measure(candidate, None)))
        ordered = _ordered([found[candidate] for candidate in remaining], target_p99_ms)
        remaining = [result.candidate for result in ordered[: math.ceil(len(ordered) / 2)]]
    best = found[remaining[0]]
    _check_useful(best, list(found.values()), target_p99_ms)
    return Recommendation(target_p99_ms, best, tuple(found[one] for one in sorted(found)), limits)


def _rounds(field_size: int, target_p99_ms: float | None) -> int:
    halvings = max(1, math.ceil(math.log2(max(1, field_size))))
    return halvings if target_p99_ms is None else max(halvings, _LATENCY_ROUNDS)


def _first_round(
    field: Sequence[Candidate], measure: Measure, copies_bytes: int | None
) -> tuple[dict[Candidate, Measured], tuple[str, ...]]:
    found: dict[Candidate, Measured] = {}
    limits: list[str] = []
    most_workers = MOST_CLIENTS
    best_before = 0.0
    for size in sorted({candidate.batch_size for candidate in field}):
        best, without_gain = 0.0, 0
        for candidate in sorted(one for one in field if one.batch_size == size):
            if candidate.workers > most_workers or without_gain == 2:
                break
            turn = measure(candidate, None)
            if not found and copies_bytes is not None:
                most_workers = max(1, copies_bytes // max(1, turn.worker_bytes))
                if most_workers < max(one.workers for one in field):
                    limits.append(
                        f"At most {_counted(most_workers)} fit into memory: each takes {_mib(turn.worker_bytes)} of "
                        f"{_mib(copies_bytes)}."
                    )
            found[candidate] = Measured(candidate, (turn,))
            rate = 0.0 if found[candidate].fails else turn.requests_per_s
            without_gain = 0 if rate * _AS_GOOD > best else without_gain + 1
            best = max(best, rate)
        if best * _AS_GOOD <= best_before:
            break
        best_before = best
    return found, tuple(limits)


def _with_rate(result: Measured, measure: Measure, target_p99_ms: float) -> Measured:
    """Load a candidate at the middle between the rates that met and missed the goal (at first 0 and the capacity)."""
    if result.fails or not result.capacity:
        return result
    rate = (result.kept_rate + min(result.missed, result.capacity)) / 2
    turn = measure(result.candidate, rate)
    turns = (*result.turns, turn)
    if turn.p99_ms <= target_p99_ms and turn.errors <= _MOST_ERRORS:
        return replace(result, turns=turns, kept=turn)
    return replace(result, turns=turns, missed=rate)


def _worth(result: Measured, target_p99_ms: float | None) -> float:
    if result.fails:
        return 0.0
    return result.capacity if target_p99_ms is None else result.kept_rate


def _ordered(results: Sequence[Measured], target_p99_ms: float | None) -> list[Measured]:
    """Sort best first; among candidates within 3 % of the best, by fewer workers, then by smaller batches."""
    best = max(_worth(result, target_p99_ms) for result in results)
    enough = best * _AS_GOOD

    def key(result: Measured) -> tuple[float, ...]:
        worth = _worth(result, target_p99_ms)
        if worth and worth >= enough:
            return (0, result.candidate.workers, result.candidate.batch_size)
        return (1, -worth, -_expected_rate(result, target_p99_ms), result.candidate.workers)

    return sorted(results, key=key)


def _expected_rate(result: Measured, target_p99_ms: float | None) -> float:
    """Estimate the rate at which a candidate that has met the goal at no rate yet would, to order such candidates.

    A queue's waits grow as 1 / (1 - load), from which the latency at other loads follows. Negative: not even when idle.
    """
    turn = result.turns[-1]
    if target_p99_ms is None or turn.rate is None or math.isinf(turn.p99_ms):
        return -math.inf
    room = 1 - turn.p99_ms * (1 - turn.rate / result.capacity) / target_p99_ms
    return room * result.capacity if room > 0 else room


def _check_useful(best: Measured, found: Sequence[Measured], target_p99_ms: float | None) -> None:
    if all(result.fails or not result.capacity for result in found):
        errors = best.turns[-1].errors
        raise HandlergenError(
            f"no setting answers the sample reliably: {errors:.0%} of the requests failed with {best.candidate}",
            hint="`handlergen bench` shows the errors, on a server started with `handlergen serve`",
        )
    if target_p99_ms is not None and best.kept is None:
        turn = min((t for r in found for t in r.turns if t.rate is not None), key=lambda t: t.p99_ms)
        raise HandlergenError(
            f"no setting reaches {target_p99_ms:g} ms: the lowest p99 that was measured is {turn.p99_ms:.1f} ms, at "
            f"{number(turn.rate or 0.0)} requests/s",
            hint="make the stages faster; `tune` without a target shows their times",
        )


def reasons(found: Recommendation, *, batch: str, cores: int) -> Iterator[str]:
    """Yield sentences that explain the recommendation with the measured figures."""
    chosen, target = found.chosen, found.target_p99_ms
    size, workers = chosen.candidate.batch_size, chosen.candidate.workers
    of_size = [one for one in found.measured if one.candidate.batch_size == size]
    fewer = [one for one in of_size if one.candidate.workers < workers]
    more = [one for one in of_size if one.candidate.workers > workers]
    if target is None:
        yield (
            f"{_counted(workers)} with batch size {size} answered {_rate(chosen, None)}, the mean of "
            f"{len(chosen.turns)} load{'s' * (len(chosen.turns) != 1)}: the most of the last round, or within 3 % of "
            "it with fewer workers."
        )
    elif chosen.kept is not None:
        yield (
            f"Goal: 99 of 100 requests within {target:g} ms. {_counted(workers)} kept it up to "
            f"{number(chosen.kept_rate)} requests/s (p99 {number(chosen.kept.p99_ms)} ms)"
            + (f", and missed it at {number(chosen.missed)}." if math.isfinite(chosen.missed) else ".")
        )
    if fewer:
        yield f"With fewer workers, {fewer[-1].candidate.workers}: {_rate(fewer[-1], target)}."
    if more:
        best = max(more, key=lambda one: _worth(one, target))
        yield f"With more workers, {best.candidate.workers} at best: {_rate(best, target)}."
    turn = chosen.shown
    if turn.device_busy is not None:
        yield f"With {_counted(workers)} the device is busy {turn.device_busy:.0%} of the time, on {cores} cores."
    if turn.why and turn.bottleneck not in ("workers", "clients", "none"):
        yield f"Bottleneck: {turn.bottleneck}. {turn.why}"
    other_sizes = [one for one in found.measured if one.candidate.batch_size != size]
    if batch == "each":
        yield "Batch size 1: predict gets one request at a time (batch: each); in a batch, requests would only wait."
    elif other_sizes:
        best = max(other_sizes, key=lambda one: _worth(one, target))
        yield (
            f"With another batch size, {best.candidate.batch_size} and {_counted(best.candidate.workers)} at best: "
            f"{_rate(best, target)}."
        )
    yield "max_batch_delay_ms 1: a busy device fills batches without a delay, an idle one gains nothing by waiting."
    yield from found.limits
    others = max(load.other_cores for one in found.measured for load in one.turns)
    if others > _QUIET * cores:
        yield (f"Other programs used up to {others:.1f} of {cores} cores: measure again when the machine is idle.")


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


def _counted(workers: int) -> str:
    return f"{workers} worker{'s' * (workers != 1)}"


def _rate(result: Measured, target_p99_ms: float | None) -> str:
    if target_p99_ms is not None and result.kept is None:
        return "missed the goal at every tested rate"
    return f"{number(_worth(result, target_p99_ms))} requests/s"
