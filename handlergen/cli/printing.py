"""Output of the verbs: JSON, warnings, lists of files, files written, and the output of hooks."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import click

from handlergen.errors import HandlergenError
from handlergen.project.names import HANDLER_FILE, MANIFEST_FILE, MODEL_CONFIG_FILE, RUNTIME_PACKAGE
from handlergen.runtime.contract import CONTRACT_FILE

_Entry = TypeVar("_Entry")
_GENERATED = (HANDLER_FILE, CONTRACT_FILE, MODEL_CONFIG_FILE, MANIFEST_FILE)

_FAILED = "request %s failed"
"""Start of the pipeline's log message about a failed request."""


def print_json(report: Any, *, indent: int | None = 2, ensure_ascii: bool = True) -> None:
    """Print a report as JSON on stdout; values that JSON lacks, such as dates, become strings."""
    click.echo(json.dumps(report, indent=indent, ensure_ascii=ensure_ascii, default=str))


def warn(*warnings: str) -> None:
    """Print warnings on stderr."""
    for warning in warnings:
        click.echo(f"Warning: {warning}", err=True)


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return `1 worker` or `2,000 workers`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def per_device(placement: dict[str, int]) -> str:
    """Return `2 on gpu:0, 1 on gpu:1` for a number of workers per device; "" for no workers."""
    return ", ".join(f"{count} on {device}" for device, count in placement.items())


def in_order(entries: Sequence[_Entry], name: Callable[[_Entry], str]) -> tuple[list[_Entry], list[_Entry]]:
    """Split an archive's files into (the user's and the generated files, in this order; the runtime's files).

    Args:
        name: Returns an entry's path in the archive.
    """
    runtime = [entry for entry in entries if name(entry).startswith(f"{RUNTIME_PACKAGE}/")]
    others = [entry for entry in entries if not name(entry).startswith(f"{RUNTIME_PACKAGE}/")]
    return sorted(others, key=lambda entry: name(entry) in _GENERATED), runtime


def runtime_line(count: int) -> str:
    """Return the line that replaces the runtime's files in a list."""
    return f"{RUNTIME_PACKAGE}/ ({count} files, listed with --all)"


def writable(path: Path) -> Path:
    """Return the path of an output file, checked before the work is done.

    Raises:
        HandlergenError: No file can be written there.
    """
    if not path.parent.is_dir():
        raise HandlergenError(f"cannot write {path}: there is no directory {path.parent}")
    if path.is_dir():
        raise HandlergenError(
            f"cannot write {path}: it is a directory",
            hint=f"give a file in it, such as {path / 'answer.json'}",
        )
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise HandlergenError(f"cannot write {path}: permission denied")
    return path


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Add the file's name to an OSError from writing, because the system adds it only to one from opening."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


class _FewTracebacks(logging.Filter):
    """Pass only the first records about failed requests, so that a million bad rows do not bury one message."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._left = limit

    def filter(self, record: logging.LogRecord) -> bool:
        if not str(record.msg).startswith(_FAILED):
            return True
        self._left -= 1
        if self._left == 0:
            record.msg, record.args = f"{record.getMessage()}\n(further tracebacks are omitted)", ()
        return self._left >= 0


@contextlib.contextmanager
def few_tracebacks(limit: int) -> Iterator[None]:
    """Print the model's log on stderr, with the tracebacks of the first `limit` failed requests only."""
    with _log_on_stderr(_FewTracebacks(limit)):
        yield


@contextlib.contextmanager
def failures_kept(kept: list[str]) -> Iterator[None]:
    """Print the model's warnings on stderr, and append the tracebacks of failed and refused requests to a list."""

    def show(record: logging.LogRecord) -> bool:
        if not str(record.msg).startswith(_FAILED):
            return record.levelno >= logging.WARNING
        kept.append(str(record.args[-1]) if isinstance(record.args, tuple) else record.getMessage())
        return False

    with _log_on_stderr(show, logging.DEBUG):
        yield


@contextlib.contextmanager
def _log_on_stderr(
    keep: logging.Filter | Callable[[logging.LogRecord], bool], level: int | None = None
) -> Iterator[None]:
    logger = logging.getLogger("handlergen")
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(keep)
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(before if level is None else level)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


@contextlib.contextmanager
def stdout_of_its_own() -> Iterator[IO[bytes]]:
    """Yield a stdout for answers only, and redirect the output of hooks to stderr."""
    try:
        file = sys.stdout.fileno()
    except (OSError, AttributeError):  # stdout was replaced by an object without a descriptor
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
