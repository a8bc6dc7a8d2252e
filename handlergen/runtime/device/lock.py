"""The device lock: one predict at a time per device, across threads, workers, models and servers of this user."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import math
import os
import re
import stat
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ..codec.errors import LockTimeout
from ..descriptors import close, descriptor_closed_in_children

STATE_DIR_VARIABLE = "HANDLERGEN_STATE_DIR"
_NO_MUTEX = (errno.ENOTSUP, errno.ENODEV)
"""Errors of a C library without robust mutexes, and of a file system without mmap(2)."""
_LONGEST_WAIT_S = 10 * 365 * 24 * 3600.0


class LockFile(Protocol):
    """A lock in a file."""

    def acquire(self, deadline: float) -> bool: ...
    def release(self) -> None: ...
    def owner(self) -> tuple[int, float]: ...


class DeviceLock:
    """A lock with a name, for which threads and processes take turns.

    Args:
        key: The name: a GPU's UUID, `cpu`, or a model's name with `lock: model`.
        directory: The lock file's, from `lock_directory()`.

    Raises:
        OSError: The lock file cannot be made, or its file system has no locks; names the directory and the remedy.
    """

    def __init__(self, key: str, directory: Path) -> None:
        self.key = key
        try:
            self._file = _open(directory / _file_name(key))
        except OSError as error:
            raise OSError(
                error.errno,
                f"the device lock cannot be made in {directory} ({error.strerror}); {STATE_DIR_VARIABLE} names "
                "another directory",
            ) from error

    def acquire(self, timeout_s: float) -> None:
        """Wait for the lock, at most `timeout_s` seconds (may be `math.inf`).

        Raises:
            LockTimeout: Time is up; names the process that holds the lock and for how long.
        """
        deadline = time.monotonic() + min(timeout_s, _LONGEST_WAIT_S)
        if not self._file.acquire(deadline):
            pid, since_s = self._file.owner()
            raise LockTimeout(
                f"the device was not free within {timeout_s:g} s (held by process {pid} for {since_s:.1f} s)",
                retry_after_s=max(1, math.ceil(timeout_s / 10)),
            )

    def release(self) -> None:
        """Release the lock; only in the thread that acquired it."""
        self._file.release()


class NoLock:
    """`lock: none`: predictions are not serialized."""

    key = "none"

    def acquire(self, timeout_s: float) -> None:
        """Return at once."""

    def release(self) -> None:
        """Do nothing."""


def lock_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the directory of this user's lock files: private (0700), the same for every process of the user.

    `HANDLERGEN_STATE_DIR` names it; the default is a directory with the user's id in /dev/shm (which a reboot empties,
    as locks require) or /tmp. `TMPDIR` and `XDG_RUNTIME_DIR` do not count: they may differ between two servers of one
    user, which would then not share locks.

    Raises:
        PermissionError: The directory belongs to another user, is a link, or is open to other users.
    """
    named = environ.get(STATE_DIR_VARIABLE)
    if named:
        base = Path(named).expanduser().absolute()
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = base / "locks"
        directory.mkdir(mode=0o700, exist_ok=True)
    else:
        shared_memory = Path("/dev/shm")  # noqa: S108 - checked below: ours, private, no link
        base = shared_memory if os.access(shared_memory, os.W_OK) else Path("/tmp")  # noqa: S108
        directory = base / f"handlergen-{os.getuid()}"
        directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(
            f"{directory} must be a directory of this user with mode 0700, or the device lock could be tampered "
            f"with; remove it, or name another with {STATE_DIR_VARIABLE}"
        )
    return directory


def _file_name(key: str) -> str:
    """Return a readable file name, different for each key and each boot of the machine."""
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", key)[:80]
    digest = hashlib.sha256(f"{key}\0{_boot_id()}".encode()).hexdigest()[:16]
    return f"{readable}-{digest}.lock"


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


def _open(path: Path) -> LockFile:
    try:
        from .mutex import RobustMutexFile

        return RobustMutexFile(path)
    except OSError as error:
        if error.errno not in _NO_MUTEX:
            raise
    # Another name: a process with mutexes must not take this file for one.
    return PolledLockFile(path.with_suffix(".flock"))


_POLL_MIN_S = 0.0002
_POLL_MAX_S = 0.005


class PolledLockFile:
    """A file lock (flock(2)), polled because a file lock has no time-out; for systems without robust mutexes.

    Args:
        path: The lock file; made if it does not exist.

    Raises:
        OSError: The file cannot be made, or its file system has no locks.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        # A forked child that kept it open would keep the lock of a dead parent.
        descriptor_closed_in_children(self._descriptor)
        weakref.finalize(self, close, self._descriptor).atexit = False
        if self._try():  # a file system without locks fails here, not in the first request
            self.release()

    def acquire(self, deadline: float) -> bool:
        """Take the lock; False when `deadline` (a `time.monotonic()` value) has passed."""
        pause = _POLL_MIN_S
        while not self._try():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, _POLL_MAX_S)
        os.pwrite(self._descriptor, f"{os.getpid()} {time.monotonic_ns()}\n".encode().ljust(48), 0)
        return True

    def release(self) -> None:
        """Release the lock."""
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def owner(self) -> tuple[int, float]:
        """Return the process that took the lock last, and how long ago, in seconds."""
        fields = os.pread(self._descriptor, 48, 0).split()
        if len(fields) != 2:
            return 0, 0.0
        return int(fields[0]), (time.monotonic_ns() - int(fields[1])) / 1e9

    def _try(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
