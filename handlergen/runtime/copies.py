"""How many copies of a model there are on a device, among the processes of one server.

Each process that loads a copy keeps a file locked in a directory that they share. The kernel frees the lock when the
process dies, however it dies: what is locked is there. The locks are those of fcntl(2), which a process forked off a
worker does not inherit.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from pathlib import Path

from .files import is_at

_PREFIX = "copies-"
_TRIES, _PAUSE_S = 100, 0.01


class Copies:
    """The copies of one model on one device.

    Args:
        directory: The user's private one.
        server: What tells the server from all others.
        model, version, device: Whose copies.
    """

    def __init__(self, directory: Path, *, server: str, model: str, version: str, device: str) -> None:
        digest = hashlib.sha256("\0".join((server, model, version, device)).encode()).hexdigest()[:16]
        self._directory = directory / f"{_PREFIX}{digest}"
        self._own = str(os.getpid())
        self._held: int | None = None

    def add(self) -> None:
        """This process has one from now on.

        Raises:
            OSError: It cannot be noted.
        """
        remove_left_behind(self._directory.parent, but=self._directory)
        path = self._directory / self._own
        for _ in range(_TRIES):
            self._directory.mkdir(mode=0o700, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # the directory was empty, and is just removed
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                if _lock(descriptor) and is_at(path, descriptor):
                    self._held = descriptor
                    return
                os.close(descriptor)
            time.sleep(_PAUSE_S)  # another process just looks at it
        raise TimeoutError(f"{path} is locked by another process")

    def count(self) -> int:
        """How many there are.

        Raises:
            OSError: That cannot be seen.
        """
        if self._held is None:
            return _alive(self._directory, leave="")
        return 1 + _alive(self._directory, leave=self._own)

    def close(self) -> None:
        """This process has none any more."""
        if self._held is not None:
            (self._directory / self._own).unlink(missing_ok=True)
            os.close(self._held)
            self._held = None
            with contextlib.suppress(OSError):
                self._directory.rmdir()


def remove_left_behind(base: Path, *, but: Path | None = None) -> None:
    """Remove the directories in which no process holds a lock: servers end by killing their workers.

    Args:
        but: Is not looked at: a process loses its own lock when it closes any descriptor of the file.
    """
    for directory in base.glob(f"{_PREFIX}*"):
        if directory != but:
            with contextlib.suppress(OSError):
                _alive(directory, leave=str(os.getpid()))
                directory.rmdir()  # fails when there is one


def _alive(directory: Path, *, leave: str) -> int:
    """How many files of a directory are locked by others; removes those that are not.

    Args:
        leave: Is not looked at: a process loses its lock when it closes any descriptor of the file.
    """
    found = 0
    with contextlib.suppress(FileNotFoundError):
        for path in directory.iterdir():
            if path.name != leave:
                found += _is_locked(path)
    return found


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if not _lock(descriptor):
            return True
        if is_at(path, descriptor):
            path.unlink()
        return False
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, by system
        return False
    return True
