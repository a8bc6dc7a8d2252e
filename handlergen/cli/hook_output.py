"""What hooks print and log while a command runs them in this process."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import IO

_FAILED = "request %s failed"
"""How the pipeline's record of a failed request begins."""


class _FewTracebacks(logging.Filter):
    """Lets the first few records of each process pass: a million bad rows must not bury the one message that helps."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._left = limit

    def filter(self, record: logging.LogRecord) -> bool:
        if not str(record.msg).startswith(_FAILED):
            return True
        self._left -= 1
        if self._left == 0:
            record.msg, record.args = f"{record.getMessage()}\n(further tracebacks are left out)", ()
        return self._left >= 0


@contextlib.contextmanager
def few_tracebacks(limit: int) -> Iterator[None]:
    """What the model logs goes to standard error, but of failed requests only the first few."""
    logger = logging.getLogger("handlergen")
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_FewTracebacks(limit))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextlib.contextmanager
def stdout_of_its_own() -> Iterator[IO[bytes]]:
    """Standard output for answers only: what hooks print goes to standard error."""
    try:
        file = sys.stdout.fileno()
    except (OSError, AttributeError):  # replaced by something without a descriptor
        yield sys.stdout.buffer
        return
    sys.stdout.flush()
    kept = os.dup(file)
    os.dup2(2, file)
    try:
        with os.fdopen(os.dup(kept), "wb") as own:
            yield own
    finally:
        sys.stdout.flush()
        os.dup2(kept, file)
        os.close(kept)


@contextlib.contextmanager
def failures_kept(kept: list[str]) -> Iterator[None]:
    """What the model logs goes to standard error, but the tracebacks of failed and refused requests into a list."""

    def show(record: logging.LogRecord) -> bool:
        if not str(record.msg).startswith(_FAILED):
            return record.levelno >= logging.WARNING
        kept.append(str(record.args[-1]) if isinstance(record.args, tuple) else record.getMessage())
        return False

    logger = logging.getLogger("handlergen")
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(show)
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
