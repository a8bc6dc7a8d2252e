"""A file lock with a deadline, for systems without robust mutexes (macOS).

fcntl record locks belong to a process: the kernel drops them when it dies and forked children do not inherit
them (fcntl(2)). They do not exclude threads of one process, so a thread lock stands in front, and closing any
descriptor of the file drops them, so each process keeps one descriptor a path for its whole life.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path

_POLL_MIN_S = 0.0002
_POLL_MAX_S = 0.005


class _Shared:
    """The one descriptor and thread lock of a path in this process."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            self._try()
        except OSError:
            os.close(self.descriptor)
            raise
        self.threads = threading.Lock()

    def _try(self) -> None:
        """Raises OSError where the file system has no locks: now, and not in the middle of the first request."""
        try:
            fcntl.lockf(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # another process has it: there are locks
            return
        fcntl.lockf(self.descriptor, fcntl.LOCK_UN)


_shared: dict[tuple[int, str], _Shared] = {}
_shared_lock = threading.Lock()


class RecordLockFile:
    """The same interface as `RobustMutexFile`, by polling a record lock.

    Args:
        path: The lock file; made if it does not exist.

    Raises:
        OSError: The file cannot be made, or its file system has no locks.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # The pid is part of the key: a forked child must open its own, not use a thread lock that its parent held.
        with _shared_lock:
            key = (os.getpid(), str(path))
            if key not in _shared:
                _shared[key] = _Shared(path)
            self._shared = _shared[key]

    def acquire(self, deadline: float) -> bool:
        """Take the lock; False when `deadline` (a `time.monotonic()` value) has passed."""
        if not self._shared.threads.acquire(
            timeout=max(0.0, min(deadline - time.monotonic(), threading.TIMEOUT_MAX))
        ):
            return False
        pause = _POLL_MIN_S
        while True:
            try:
                fcntl.lockf(self._shared.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, by system
                left = deadline - time.monotonic()
                if left <= 0:
                    self._shared.threads.release()
                    return False
                time.sleep(min(pause, left))
                pause = min(pause * 1.5, _POLL_MAX_S)
            except BaseException:
                self._shared.threads.release()
                raise
            else:
                os.pwrite(
                    self._shared.descriptor, f"{os.getpid()} {time.monotonic_ns()}\n".encode().ljust(48), 0
                )
                return True

    def release(self) -> None:
        """Give the lock back."""
        fcntl.lockf(self._shared.descriptor, fcntl.LOCK_UN)
        self._shared.threads.release()

    def owner(self) -> tuple[int, float]:
        """The pid that took the lock last and how long ago, in seconds."""
        fields = os.pread(self._shared.descriptor, 48, 0).split()
        if len(fields) != 2:
            return 0, 0.0
        return int(fields[0]), (time.monotonic_ns() - int(fields[1])) / 1e9
