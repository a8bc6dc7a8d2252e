"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Severity(IntEnum):
    """How bad it is: `note` needs nothing done, `warning` may hurt, `error` keeps the server from working."""

    OK = 0
    NOTE = 1
    WARNING = 2
    ERROR = 3


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: What is so.
        why: Why it matters; empty when all is well.
        fix: A command, or a line of a file; empty when nothing need be done.
    """

    severity: Severity
    what: str
    why: str = ""
    fix: str = ""


def ok(what: str) -> Finding:
    return Finding(Severity.OK, what)


def note(what: str, why: str = "", fix: str = "") -> Finding:
    return Finding(Severity.NOTE, what, why, fix)


def warning(what: str, why: str, fix: str = "") -> Finding:
    return Finding(Severity.WARNING, what, why, fix)


def error(what: str, why: str, fix: str = "") -> Finding:
    return Finding(Severity.ERROR, what, why, fix)
