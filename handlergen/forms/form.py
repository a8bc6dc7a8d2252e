"""What a form is to inspection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from handlergen.errors import Problem
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


def not_supported(name: str, recognise: Callable[[Source], str | None]) -> Form:
    """A form that this version recognises and refuses."""

    def inspect(source: Source) -> Findings:
        evidence = recognise(source)
        reason = f" ({evidence})" if evidence else ""
        return Findings(
            problems=[
                Problem(
                    source.module.file,
                    0,
                    f"the form {name}{reason} is not supported yet by this version of handlergen",
                    "Write module-level functions: def predict(inputs), and if needed load(context), "
                    "preprocess(data), postprocess(outputs).",
                )
            ]
        )

    return Form(name, recognise, inspect)
