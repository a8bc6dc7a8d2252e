"""Errors as the user sees them: the one place that renders them and turns them into exit statuses."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import click

from handlergen.errors import HandlergenError, ModuleFailed

_HINTS = {
    errno.ENOSPC: "free some space, or write to another directory",
    errno.EDQUOT: "free some space, or write to another directory",
    errno.EFBIG: "the file size is limited: see `ulimit -f`",
    errno.EACCES: "use another path, or change its permissions",
    errno.EPERM: "use another path, or change its permissions",
    errno.EROFS: "use a path that is not read-only",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.EMFILE: "the number of open files is limited: see `ulimit -n`",
}

_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def fail(error: HandlergenError) -> NoReturn:
    """Print the traceback of the user's code, the message and the hint on stderr; exit with the error's status."""
    if isinstance(error, ModuleFailed) and error.traceback:
        click.echo(error.traceback.rstrip(), err=True)
    click.echo(f"Error: {error.message}", err=True)
    if error.hint:
        click.echo(f"Hint: {error.hint}", err=True)
    sys.exit(error.exit_status)


@contextlib.contextmanager
def interrupted_by(*signals: signal.Signals) -> Iterator[None]:
    """Handle signals like Ctrl-C: a supervisor or a closed terminal must leave no more behind.

    A signal that is ignored stays ignored: nohup's SIGHUP.
    """
    heeded = [number for number in signals if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, signal.default_int_handler) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def refused_by_system(error: OSError) -> HandlergenError:
    """Convert an OSError to an error with the system's message, the file concerned and what to do next."""
    try:
        Path.cwd()
    except OSError:
        return HandlergenError(
            "the working directory no longer exists: it was removed or moved",
            hint="cd to an existing directory, and run the command again",
        )
    reason = error.strerror or str(error) or type(error).__name__
    files = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    hint = _HINTS.get(error.errno or 0)
    if error.errno in _WRITE_ERRORS:
        return HandlergenError(f"cannot write {files[0] if files else 'the output'}: {reason}", hint=hint)
    return HandlergenError(f"{' -> '.join(files)}: {reason}" if files else reason, hint=hint)


@contextlib.contextmanager
def broken_pipes_caught() -> Iterator[None]:
    """Exit silently when the reader of stdout or stderr has exited (`handlergen generate . | head`), as SIGPIPE would.

    click would exit with status 1, also when another pipe broke.

    Raises:
        HandlergenError: Another pipe broke.
    """
    try:
        yield
    except BrokenPipeError as error:
        poll = select.poll()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # replaced by an object without a descriptor
                poll.register(stream.fileno(), 0)
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
            let_go_of_broken_output()
            sys.exit(141)
        raise refused_by_system(error) from error


def let_go_of_broken_output() -> None:
    """Keep the interpreter from failing again when it flushes a broken stdout at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
