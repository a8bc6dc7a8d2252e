"""Numbers with their words."""

from __future__ import annotations


def counted(number: int, word: str) -> str:
    """`1 worker`, `2 workers`."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
