"""What a benchmark says: a line a figure, with what is wanted of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

HEADING = "|   | figure | median | smallest to largest | target |\n| - | --- | ---: | ---: | --- |"


@dataclass(frozen=True)
class Figure:
    """One line of the report.

    Attributes:
        part: Of the benchmark.
        what: What the figure is.
        values: One a repeat.
        target: What is wanted, or None for a figure that only informs.
        met: Whether it is.
    """

    part: str
    what: str
    values: Sequence[float]
    target: str | None = None
    met: bool | None = None

    @property
    def value(self) -> float:
        """The median of the values."""
        return median(self.values)

    def as_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        return {**asdict(self), "value": self.value}

    def __str__(self) -> str:
        verdict = "" if self.met is None else f"{self.target}: {'met' if self.met else 'NOT met'}"
        low, high = _number(min(self.values)), _number(max(self.values))
        return f"| {self.part} | {self.what} | {_number(self.value)} | {low} to {high} | {verdict} |"


def at_least(part: str, what: str, values: Sequence[float], target: float | None = None) -> Figure:
    """A figure whose median is to be so large, or that only informs."""
    if target is None:
        return Figure(part, what, values)
    return Figure(part, what, values, f">= {target:g}", median(values) >= target)


def at_most(part: str, what: str, values: Sequence[float], target: float) -> Figure:
    """A figure whose median is to be no larger."""
    return Figure(part, what, values, f"<= {target:g}", median(values) <= target)


def none_of(part: str, what: str, count: int) -> Figure:
    """A count that is to be 0."""
    return Figure(part, what, [count], "= 0", count == 0)


def _number(value: float) -> str:
    if value >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"
