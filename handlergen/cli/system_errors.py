"""What the operating system refuses, as an error that a user can do something about."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import sys
from pathlib import Path

from handlergen.errors import HandlergenError

_HINTS = {
    errno.ENOSPC: "free some space there, or name another place",
    errno.EDQUOT: "free some space there, or name another place",
    errno.EFBIG: "a limit on the size of files is set here: see `ulimit -f`",
    errno.EACCES: "choose a place that you may use, or change its permissions",
    errno.EPERM: "choose a place that you may use, or change its permissions",
    errno.EROFS: "choose a place that can be written",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "a limit on the number of open files is set here: see `ulimit -n`",
}

_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def refused_by_system(error: OSError) -> HandlergenError:
    """The error in the words of the system, with the file that it is about and what to do next."""
    if not _has_working_directory():
        return HandlergenError(
            "the working directory is gone: it was removed or moved",
            hint="cd to a directory that is there, and give the command again",
        )
    reason = error.strerror or str(error) or type(error).__name__
    files = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    hint = _HINTS.get(error.errno or 0)
    if error.errno in _OF_WRITING:
        return HandlergenError(f"cannot write {files[0] if files else 'the output'}: {reason}", hint=hint)
    return HandlergenError(f"{' -> '.join(files)}: {reason}" if files else reason, hint=hint)


def reader_is_gone() -> bool:
    """Does nobody read standard output or standard error any more? Else it is another pipe that broke."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # replaced by something without a descriptor
            poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def let_go_of_broken_output() -> None:
    """Keep the interpreter from failing once more, when it flushes standard output at exit and nothing takes it."""
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
