"""Who can use the server."""

from __future__ import annotations

from collections.abc import Iterator

from handlergen.configuration import exposures
from handlergen.doctor.finding import Finding, error, ok, warning
from handlergen.doctor.situation import Situation


def opened(situation: Situation) -> Iterator[Finding]:
    """What `serve` warns of, too."""
    found = exposures(situation.settings)
    for one in found:
        yield (error if one.severe else warning)(one.what, one.why, one.fix)
    if not found:
        yield ok(
            "only this machine reaches the server, with tokens, and only the store's archives are loaded"
        )
