"""One subject after the other on the same machine, each loaded for some seconds, every answer checked."""

from __future__ import annotations

from collections.abc import Sequence

from handlergen.performance.bench.load import Exchange, run_load
from handlergen.performance.bench.traffic import Closed, Figures, Load

SKIP_FIRST_S = 1.0
SKIP_LAST_S = 0.5
NUMBERS = range(64)

WAITS = {"before": 10, "predict": 10, "after": 10, "burn": False}
"""The module of three stages waits in all of them; milliseconds."""

BURNS = {"before": 8, "predict": 10, "after": 4, "burn": True}
"""It burns CPU time before and after it predicts."""


def turns(names: Sequence[str], repeats: int) -> list[str]:
    """Each name once a repeat, back and forth, so that none always follows the same."""
    return [name for repeat in range(repeats) for name in (names if repeat % 2 == 0 else tuple(reversed(names)))]


def loaded(address: tuple[str, int], exchanges: Sequence[Exchange], *, clients: int, seconds: float) -> Load:
    """A closed loop whose every answer was right.

    Raises:
        RuntimeError: One was not; figures of a server that answers wrongly mean nothing.
    """
    load = run_load(address, exchanges, pace=Closed(clients), seconds=seconds)
    wrong = sorted({answer.outcome for answer in load.answers} - {"right"})
    if wrong or not load.answers:
        raise RuntimeError(f"not every answer was right: {', '.join(wrong) or 'there is none'}")
    return load


def steady(load: Load) -> tuple[int, int]:
    """The part of a load that counts, as monotonic times in ns."""
    return load.steady(skip_first_s=SKIP_FIRST_S, skip_last_s=SKIP_LAST_S)


def figures(load: Load) -> Figures:
    """Of that part."""
    return load.figures(steady(load))


def staged(name: str) -> list[Exchange]:
    """What `handlers/staged.py` and `handlers/mlp.py` are asked, and what they must answer."""
    return [Exchange.of_json(f"/predictions/{name}", {"number": n}, {"answer": 2 * n + 1}) for n in NUMBERS]


def echoed(name: str) -> list[Exchange]:
    """The same for `handlers/echo.py`."""
    return [Exchange.of_json(f"/predictions/{name}", {"number": n}, {"number": n}) for n in NUMBERS]
