"""Errors as the user sees them: the one place that renders them and turns them into exit statuses."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import sys
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


def render(error: HandlergenError) -> str:
    """Return the text for an error: the traceback of the user's code, the message, then what to do next."""
    parts = []
    if isinstance(error, ModuleFailed) and error.traceback:
        parts.append(error.traceback.rstrip())
    parts.append(f"Error: {error.message}")
    if error.hint:
        parts.append(f"Hint: {error.hint}")
    return "\n".join(parts)


def fail(error: HandlergenError) -> NoReturn:
    """Print an error on stderr and exit with its status."""
    click.echo(render(error), err=True)
    sys.exit(error.exit_status)


def refused_by_system(error: OSError) -> HandlergenError:
    """Convert an OSError to an error with the system's message, the file concerned and what to do next."""
    if not _has_working_directory():
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


def reader_is_gone() -> bool:
    """Return whether the reader of stdout or stderr has exited; if not, another pipe broke."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # replaced by an object without a descriptor
            poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def let_go_of_broken_output() -> None:
    """Keep the interpreter from failing again when it flushes a broken stdout at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _has_working_directory() -> bool:
    try:
        Path.cwd()
    except OSError:
        return False
    return True
