"""Output of the verbs: JSON, warnings, files written, and the output of hooks."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from handlergen.errors import HandlergenError, ModuleFailed
from handlergen.runtime.diagnostics import ROOT
from handlergen.server.configuration import handlergen_command

if TYPE_CHECKING:
    from handlergen.client import ModelStatus

_FAILED = "request %s failed"
"""Start of the pipeline's log message about a failed request."""


def print_json(report: Any, *, indent: int | None = 2, ensure_ascii: bool = True) -> None:
    """Print a report as JSON on stdout; values that JSON lacks, such as dates, become strings."""
    click.echo(json.dumps(report, indent=indent, ensure_ascii=ensure_ascii, default=str))


@contextlib.contextmanager
def errors_as_json(wanted: bool) -> Iterator[None]:
    """Print an error that ends the block as JSON, too, if that is wanted."""
    try:
        yield
    except HandlergenError as error:
        if wanted:
            traceback = error.traceback if isinstance(error, ModuleFailed) else None
            print_json({"error": error.message, "hint": error.hint, "traceback": traceback})
        raise


def warn(*warnings: str) -> None:
    """Print warnings on stderr."""
    for warning in warnings:
        click.echo(f"Warning: {warning}", err=True)


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return `1 worker` or `2,000 workers`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def restart_command(config: Path) -> str:
    """Return the commands that restart the server of a configuration."""
    return f"{handlergen_command('stop', config)} && {handlergen_command('serve', config)}"


def per_device(placement: dict[str, int]) -> str:
    """Return `2 on gpu:0, 1 on gpu:1` for a number of workers per device; "" for no workers."""
    return ", ".join(f"{count} on {device}" for device, count in placement.items())


def default_mark(model: ModelStatus, models: Sequence[ModelStatus]) -> str:
    """Return " (default)" for the default version of a model with several versions, else ""."""
    return " (default)" if model.default and [each.name for each in models].count(model.name) > 1 else ""


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


@contextlib.contextmanager
def few_tracebacks(limit: int) -> Iterator[None]:
    """Print the model's log on stderr, with the tracebacks of the first `limit` failed requests only."""
    left = limit

    def show(record: logging.LogRecord) -> bool:
        nonlocal left
        if not str(record.msg).startswith(_FAILED):
            return True
        left -= 1
        if left == 0:
            record.msg, record.args = f"{record.getMessage()}\n(further tracebacks are omitted)", ()
        return left >= 0

    with _log_on_stderr(show):
        yield


@contextlib.contextmanager
def failures_kept(kept: list[str]) -> Iterator[None]:
    """Print the model's warnings on stderr, and append the tracebacks of failed and refused requests to a list."""

    def show(record: logging.LogRecord) -> bool:
        if not str(record.msg).startswith(_FAILED):
            return record.levelno >= logging.WARNING
        kept.append("".join(map(str, record.args[-2:])) if isinstance(record.args, tuple) else record.getMessage())
        return False

    with _log_on_stderr(show, logging.DEBUG):
        yield


@contextlib.contextmanager
def _log_on_stderr(keep: Callable[[logging.LogRecord], bool], level: int | None = None) -> Iterator[None]:
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(keep)
    before = ROOT.level
    ROOT.addHandler(handler)
    ROOT.setLevel(before if level is None else level)
    try:
        yield
    finally:
        ROOT.setLevel(before)
        ROOT.removeHandler(handler)


@contextlib.contextmanager
def stdout_of_its_own() -> Iterator[IO[bytes]]:
    """Yield a stdout for answers only, and redirect the output of hooks to stderr.

    Hooks get streams of their own: they may close or replace them.
    """
    own_streams = stdout, stderr = sys.stdout, sys.stderr
    try:
        file, errors = stdout.fileno(), stderr.fileno()
    except (OSError, AttributeError):  # stdout was replaced by an object without a descriptor
        try:
            yield stdout.buffer
        finally:
            sys.stdout, sys.stderr = own_streams
        return
    stdout.flush()
    kept = os.dup(file)
    os.dup2(2, file)
    lent = sys.stdout, sys.stderr = _lent(stdout, file), _lent(stderr, errors)
    try:
        with os.fdopen(os.dup(kept), "wb") as own:
            yield own
    finally:
        for stream in lent:
            with contextlib.suppress(ValueError):  # it is closed
                stream.flush()
        sys.stdout, sys.stderr = own_streams
        os.dup2(kept, file)
        os.close(kept)


def _lent(stream: Any, descriptor: int) -> IO[str]:
    """Return another stream on a descriptor, which stays open when this one is closed."""
    return open(descriptor, "w", buffering=1, encoding=stream.encoding, errors=stream.errors, closefd=False)
