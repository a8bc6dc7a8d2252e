"""The death of a process that prepares rows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from handlergen.errors import HandlergenError


@contextlib.contextmanager
def deaths_told() -> Iterator[None]:
    """Name the death of a preparing process for what it is.

    torch raises it from a signal handler, so that it may come out of whatever the main thread is doing (its SIGCHLD
    handler, torch/utils/data/_utils/signal_handling.py).

    Raises:
        HandlergenError: A preparing process died.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise HandlergenError(
            f"a process that prepares rows died: {error}",
            hint="what is written stays; fewer --workers, or a smaller --batch-size, need less memory",
        ) from error
