"""What a turn yields, medians over turns, and the ratios between subjects. Pure functions."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

_PAIR = struct.Struct("=qq")
FIGURES = ("requests_per_s", "p50_ms", "p99_ms", "busy", "others")

Span = tuple[int, int]


@dataclass(frozen=True)
class Turn:
    """One subject under load for some seconds.

    Attributes:
        subject: Its key.
        clients: How many.
        requests_per_s: Right answers.
        p50_ms, p99_ms: Their latency.
        busy: Part of the time, 0..1, in which a predict ran.
        overlaps: Predictions that began while another ran.
        predictions: Calls of predict.
        copies: Copies of the model in its processes.
        others: Part of the machine's CPU time, 0..1, that went to other programs.
        errors: Answers that were wrong or did not come, by what happened.
    """

    subject: str
    clients: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    busy: float
    overlaps: int
    predictions: int
    copies: int
    others: float
    errors: Mapping[str, int]


def read_spans(directory: Path, window: Span) -> list[Span]:
    """Predictions of all processes that lie in a window of `time.monotonic_ns()`, at least in part; by start."""
    spans = []
    for file in directory.glob("predict-*"):
        content = file.read_bytes()
        whole = content[: len(content) // _PAIR.size * _PAIR.size]  # the last one may be half written
        spans += [(start, end) for start, end in _PAIR.iter_unpack(whole) if end > window[0] and start < window[1]]
    return sorted(spans)


def occupation(spans: Iterable[Span], window: Span) -> tuple[float, int]:
    """The part of the window, 0..1, in which at least one span ran, and how many began while another ran.

    Args:
        spans: By start.
    """
    covered = overlaps = 0
    until = window[0]
    last_end = float("-inf")
    for start, end in spans:
        overlaps += start < last_end
        last_end = max(last_end, end)
        covered += max(0, min(end, window[1]) - max(start, until))
        until = max(until, min(end, window[1]))
    return covered / (window[1] - window[0]), overlaps


def medians(turns: Sequence[Turn]) -> dict[tuple[str, int], dict[str, Any]]:
    """(subject, clients) -> the median of each figure, in the order of the turns; overlaps and errors summed up."""
    found: dict[tuple[str, int], list[Turn]] = {}
    for turn in turns:
        found.setdefault((turn.subject, turn.clients), []).append(turn)
    return {
        key: {
            **{figure: median(getattr(turn, figure) for turn in its) for figure in FIGURES},
            "overlaps": sum(turn.overlaps for turn in its),
            "errors": sum(sum(turn.errors.values()) for turn in its),
            "copies": its[-1].copies,
            "turns": len(its),
        }
        for key, its in found.items()
    }


def back_and_forth(names: Sequence[str], repeats: int) -> list[Sequence[str]]:
    """The order of each repeat, so that none always follows the same."""
    return [names if repeat % 2 == 0 else names[::-1] for repeat in range(repeats)]
