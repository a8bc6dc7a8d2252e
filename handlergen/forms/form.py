"""What a form is to inspection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from handlergen.findings import Findings, Source


@dataclass(frozen=True)
class Form:
    """One way to write a module.

    Attributes:
        name: As in the setting `form`.
        recognise: The evidence that a source has this form, for messages ("`predict` in line 3"), or None.
        inspect: Its contract, or every problem of it.
    """

    name: str
    recognise: Callable[[Source], str | None]
    inspect: Callable[[Source], Findings]
