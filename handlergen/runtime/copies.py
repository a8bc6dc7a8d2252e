"""How many copies of a model there are on a device, among the processes of one server.

Each process that loads a copy keeps a file locked in a directory that they share. The kernel frees the lock when the
process dies, however it dies: what is locked is there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from pathlib import Path


class Copies:
    """The copies of one model on one device.

    Args:
        directory: The user's private one.
        server: What tells the server from others.
        model, version, device: Whose copies.

    Raises:
        OSError: The directory cannot be made.
    """

    def __init__(self, directory: Path, *, server: int, model: str, version: str, device: str) -> None:
        digest = hashlib.sha256("\0".join((str(server), model, version, device)).encode()).hexdigest()[:12]
        self._directory = directory / f"copies-{server}-{digest}"
        self._held: int | None = None

    def add(self) -> None:
        """This process has one from now on."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._held = _locked(self._directory / str(os.getpid()))

    def count(self) -> int:
        """How many there are."""
        found = 0
        with contextlib.suppress(FileNotFoundError):
            for path in self._directory.iterdir():
                if path.name == str(os.getpid()):
                    found += self._held is not None
                    continue
                descriptor = _locked(path)
                if descriptor is None:
                    found += 1
                else:
                    path.unlink(missing_ok=True)
                    os.close(descriptor)
        return found

    def close(self) -> None:
        """This process has none any more."""
        if self._held is not None:
            (self._directory / str(os.getpid())).unlink(missing_ok=True)
            os.close(self._held)
            self._held = None
            with contextlib.suppress(OSError):
                self._directory.rmdir()


def _locked(path: Path) -> int | None:
    """A descriptor that holds the file's lock; None when another process does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
