"""Measurements in a Markdown table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from peers.figures import Turn, medians
from peers.subject import Subject

CLIENTS = (16, 1)
_COLUMNS = (
    *("requests/s, 16 clients", "p50, ms", "p99, ms", "requests/s, 1 client", "p99, ms"),
    *("busy", "overlaps", "copies", "others"),
)


def turns_of(workload: Mapping[str, Any]) -> list[Turn]:
    """The turns of one workload of a report that was read back from JSON."""
    return [Turn(**turn) for turn in workload["turns"]]


def markdown(workload: Mapping[str, Any], subjects: Mapping[str, Subject]) -> Iterator[str]:
    """The lines of one workload's table, the fastest at 16 clients first."""
    found = medians(turns_of(workload))
    yield f"**{workload['title']}**"
    yield ""
    yield f"| | {' | '.join(_COLUMNS)} |"
    yield f"| --- |{' --: |' * len(_COLUMNS)}"
    keys = sorted({key for key, _ in found}, key=lambda key: -_of(found, key, 16).get("requests_per_s", 0.0))
    for key in keys:
        many, one = _of(found, key, 16), _of(found, key, 1)
        errors = many.get("errors", 0) + one.get("errors", 0)
        cells = [
            subjects[key].title + (f" ({errors} errors)" if errors else ""),
            _number(many.get("requests_per_s")),
            _number(many.get("p50_ms")),
            _number(many.get("p99_ms")),
            _number(one.get("requests_per_s")),
            _number(one.get("p99_ms")),
            f"{many['busy']:.2f}" if many else "",
            _count(many.get("overlaps")),
            _count(many.get("copies")),
            f"{many['others']:.2f}" if many else "",
        ]
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield from _missing(workload, subjects)


def _missing(workload: Mapping[str, Any], subjects: Mapping[str, Subject]) -> Iterator[str]:
    for key, why in workload["missing"].items():
        yield f"Without {subjects[key].title}: {why.splitlines()[0]}"


def _of(found: Mapping[tuple[str, int], dict[str, Any]], key: str, clients: int) -> dict[str, Any]:
    return found.get((key, clients), {})


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
