"""The search for workers and batch size: candidates are measured in rounds, and each round keeps the better half.

Nothing here starts a process: whoever calls `search` brings the function that measures a candidate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from handlergen.errors import HandlergenError
from handlergen.performance.bench.report import number

WORKERS = (1, 2, 3, 4, 6, 8, 12, 16)
BATCH_SIZES = (1, 4, 16, 32)
BATCH_WORKERS = (1, 2, 4, 8)
"""With batches, fewer: each worker holds many requests."""

MAX_BATCH_DELAY_MS = 1
"""A busy device fills batches by itself, an idle one gains nothing by waiting."""

MOST_CLIENTS = 96
_AS_GOOD = 0.97  # a smaller difference is taken for noise
_MOST_ERRORS = 0.01
_QUIET = 0.1  # of the cores, which other programs may use without a warning
_LATENCY_ROUNDS = 3  # to halve, as often, the rates among which the highest possible one lies


@dataclass(frozen=True, order=True)
class Candidate:
    """Settings to try. They sort by batch size, then by workers: the order in which changing them costs least."""

    batch_size: int
    workers: int

    @property
    def clients(self) -> int:
        """Clients of a closed loop: twice what the workers hold, 16 at least, and no more than may wait."""
        return max(16, min(2 * self.workers * self.batch_size, MOST_CLIENTS))

    def __str__(self) -> str:
        return f"workers {self.workers}, batch size {self.batch_size}"


@dataclass(frozen=True)
class Turn:
    """What one candidate did in one load.

    Attributes:
        rate: Requests a second that were sent at random times; None for a closed loop.
        errors: The share of requests that failed, 0..1.
        p50_ms, p99_ms: Latency; infinite when nothing was answered.
        device: Key of the device; "" without recorded spans.
        device_busy: The part of the time in which predict ran, 0..1; None without recorded spans.
        stages_ms: Stage -> ms of one request.
        worker_bytes: Memory that a worker does not share with others.
        other_cores: Cores that programs used which have nothing to do with the load; 0 where that is not known.
        bottleneck: What kept the server from answering more, in a word (`bench`).
        why: The same in a sentence.
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
"""Load a server that has a candidate's settings: with clients (None), or at a rate in requests a second."""


@dataclass(frozen=True)
class Measured:
    """A candidate and its turns so far.

    Attributes:
        capacity: The closed loop's requests a second, the mean of its turns.
        kept: With a latency goal, the turn with the highest rate at which the goal was kept; None so far.
        missed: The lowest rate at which it was not; infinite so far.
    """

    candidate: Candidate
    turns: tuple[Turn, ...] = ()
    kept: Turn | None = None
    missed: float = math.inf

    @property
    def capacity(self) -> float:
        closed = [turn.requests_per_s for turn in self.turns if turn.rate is None]
        return sum(closed) / len(closed) if closed else 0.0

    @property
    def failing(self) -> bool:
        """Did a closed loop get errors?"""
        return any(turn.rate is None and turn.errors > _MOST_ERRORS for turn in self.turns)

    @property
    def shown(self) -> Turn:
        """The turn to report: the highest rate that kept the goal, else the last closed loop."""
        return self.kept or next((t for t in reversed(self.turns) if t.rate is None), self.turns[-1])

    def next_rate(self) -> float:
        """Half way between what was kept and what was missed, or between nothing and all that the server can do."""
        low = self.kept.rate or 0.0 if self.kept else 0.0
        return (low + min(self.missed, self.capacity)) / 2


@dataclass(frozen=True)
class Recommendation:
    """What to set, and why.

    Attributes:
        target_p99_ms: The goal; None: as many requests a second as possible.
        chosen: The recommended candidate.
        measured: Every candidate that was measured, as often as it was.
        limits: What kept further candidates out, a sentence each.
    """

    target_p99_ms: float | None
    chosen: Measured
    measured: tuple[Measured, ...]
    limits: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, int]:
        """For `handlergen.yaml`."""
        return {
            "workers_per_device": self.chosen.candidate.workers,
            "batch_size": self.chosen.candidate.batch_size,
            "max_batch_delay_ms": MAX_BATCH_DELAY_MS,
        }


def candidates(batch: str) -> list[Candidate]:
    """The field for a batch mode; with `each`, requests of one batch would only wait for each other."""
    single, *larger = BATCH_SIZES
    field = [Candidate(single, workers) for workers in WORKERS]
    if batch == "each":
        return field
    return field + [Candidate(size, workers) for size in larger for workers in BATCH_WORKERS]


def most_turns(field_size: int, target_p99_ms: float | None) -> int:
    """How many loads a search takes when no candidate is left out early."""
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
    """Measure the field, keep the better half, and so on until one candidate is left.

    The first round leaves out candidates that cannot win: more workers when two steps in a row gained nothing, larger
    batches when the last size gained nothing.

    Args:
        copies_bytes: The memory that workers may fill with their copies of the model; None where they have none.

    Raises:
        HandlergenError: The goal cannot be kept, or no candidate answers without errors.
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
    _refuse_useless(best, list(found.values()), target_p99_ms)
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
                        f"No more than {_counted(most_workers)} fit: each takes {_mib(turn.worker_bytes)} of the "
                        f"{_mib(copies_bytes)} of memory that may be filled."
                    )
            found[candidate] = Measured(candidate, (turn,))
            rate = 0.0 if found[candidate].failing else turn.requests_per_s
            without_gain = 0 if rate * _AS_GOOD > best else without_gain + 1
            best = max(best, rate)
        if best * _AS_GOOD <= best_before:
            break
        best_before = best
    return found, tuple(limits)


def _with_rate(result: Measured, measure: Measure, target_p99_ms: float) -> Measured:
    """One more turn of a candidate, at a rate that halves what is not known yet."""
    if result.failing or not result.capacity:
        return result
    turn = measure(result.candidate, result.next_rate())
    assert turn.rate is not None
    turns = (*result.turns, turn)
    if turn.p99_ms <= target_p99_ms and turn.errors <= _MOST_ERRORS:
        return replace(result, turns=turns, kept=turn)
    return replace(result, turns=turns, missed=turn.rate)


def _worth(result: Measured, target_p99_ms: float | None) -> float:
    if result.failing:
        return 0.0
    if target_p99_ms is None:
        return result.capacity
    return result.kept.rate or 0.0 if result.kept else 0.0


def _ordered(results: Sequence[Measured], target_p99_ms: float | None) -> list[Measured]:
    """The best first; among those that are as good as it (within 3 %), fewer workers, then smaller batches first."""
    best = max(_worth(result, target_p99_ms) for result in results)
    enough = best * _AS_GOOD

    def key(result: Measured) -> tuple[float, ...]:
        worth = _worth(result, target_p99_ms)
        if worth and worth >= enough:
            return (0, result.candidate.workers, result.candidate.batch_size)
        return (1, -worth, -_promise(result, target_p99_ms), result.candidate.workers)

    return sorted(results, key=key)


def _promise(result: Measured, target_p99_ms: float | None) -> float:
    """Order candidates that have kept no rate yet: the rate that a queue would keep, or how far even that is away.

    A queue's waits grow as 1 / (1 - load), which tells the latency of an idle server from that of a loaded one.
    """
    turn = result.turns[-1]
    if target_p99_ms is None or turn.rate is None or math.isinf(turn.p99_ms):
        return -math.inf
    room = 1 - turn.p99_ms * (1 - turn.rate / result.capacity) / target_p99_ms
    return room * result.capacity if room > 0 else room


def _refuse_useless(best: Measured, found: Sequence[Measured], target_p99_ms: float | None) -> None:
    if all(result.failing or not result.capacity for result in found):
        errors = best.turns[-1].errors
        raise HandlergenError(
            f"no setting answers the sample reliably: {errors:.0%} of the requests failed with {best.candidate}",
            hint="`handlergen bench` shows what they got, on a server started with `handlergen serve`",
        )
    if target_p99_ms is not None and best.kept is None:
        turn = min((t for r in found for t in r.turns if t.rate is not None), key=lambda t: t.p99_ms)
        raise HandlergenError(
            f"no setting reaches {target_p99_ms:g} ms: the lowest p99 that was measured is {turn.p99_ms:.1f} ms, at "
            f"{number(turn.rate or 0.0)} requests/s",
            hint="make the stages themselves faster; the table of `tune` without a target shows them",
        )


def reasons(found: Recommendation, *, batch: str, cores: int) -> Iterator[str]:
    """Why these settings, a sentence each, with what was measured."""
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
            f"{number(chosen.kept.rate or 0.0)} requests/s (p99 {number(chosen.kept.p99_ms)} ms)"
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
        yield "Batch size 1: predict sees one request at a time (batch: each); in a batch, requests would only wait."
    elif other_sizes:
        best = max(other_sizes, key=lambda one: _worth(one, target))
        yield (
            f"With another batch size, {best.candidate.batch_size} and {_counted(best.candidate.workers)} at best: "
            f"{_rate(best, target)}."
        )
    yield "max_batch_delay_ms 1: a busy device fills batches by itself, an idle one gains nothing by waiting."
    yield from found.limits
    others = max(load.other_cores for one in found.measured for load in one.turns)
    if others > _QUIET * cores:
        yield (
            f"Other programs used up to {others:.1f} of {cores} cores meanwhile: measure again when the machine is "
            "quiet."
        )


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


def _counted(workers: int) -> str:
    return f"{workers} worker{'s' * (workers != 1)}"


def _rate(result: Measured, target_p99_ms: float | None) -> str:
    if target_p99_ms is not None and result.kept is None:
        return "missed the goal at every rate that was tried"
    return f"{number(_worth(result, target_p99_ms))} requests/s"
