"""One predict at a time per device, across threads, workers, models and TorchServe instances of this user."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import math
import os
import re
import stat
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ..codec.errors import LockTimeout

STATE_DIR_VARIABLE = "HANDLERGEN_STATE_DIR"
_NO_MUTEX = (errno.ENOTSUP, errno.ENODEV)
"""Neither this C library nor this file system (mmap(2)) may have what a mutex in a file needs."""
_LONGEST_WAIT_S = 10 * 365 * 24 * 3600.0


class LockFile(Protocol):
    """What a lock's mechanism offers; one implementation a kind of system."""

    def acquire(self, deadline: float) -> bool: ...
    def release(self) -> None: ...
    def owner(self) -> tuple[int, float]: ...


class DeviceLock:
    """A lock named after a device; whoever asks for the same name in the same directory takes turns.

    Args:
        key: What is locked: a GPU's UUID, `cpu`, or a model's own name with `lock: model`.
        directory: Where the lock file lives; `lock_directory()` unless a test says otherwise.

    Raises:
        OSError: The lock file cannot be made, or its file system has no locks; says which directory, and what to do.
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
        """Wait for the turn.

        Args:
            timeout_s: Seconds to wait at most; `math.inf` waits for ever.

        Raises:
            LockTimeout: The deadline passed; says who holds the lock and for how long.
        """
        deadline = time.monotonic() + min(timeout_s, _LONGEST_WAIT_S)
        if not self._file.acquire(deadline):
            pid, since_s = self._file.owner()
            raise LockTimeout(
                f"the device was not free within {timeout_s:g} s (held by process {pid} for {since_s:.1f} s)",
                retry_after_s=max(1, math.ceil(timeout_s / 10)),
            )

    def release(self) -> None:
        """Let the next one have the device; only by the thread that acquired."""
        self._file.release()


class NoLock:
    """`lock: none`: predictions are not serialized."""

    key = "none"

    def acquire(self, timeout_s: float) -> None:
        """Never waits."""

    def release(self) -> None:
        """Nothing to give back."""


def lock_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """The directory that holds this user's lock files: private (0700), the same for every process of the user.

    `HANDLERGEN_STATE_DIR` names it; else a directory with the user's id in /dev/shm (empty after a reboot, as the
    locks must be) or /tmp. Neither `TMPDIR` nor `XDG_RUNTIME_DIR` is asked: two servers of one user may differ in
    those, and would then not see each other's locks.

    Raises:
        PermissionError: The directory belongs to somebody else, is a link, or is open to others.
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
    """A file name for a key: readable, and different for different keys and boots of the machine."""
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
    # Another name: a process that can use mutexes must not mistake this file for one.
    return RecordLockFile(path.with_suffix(".record"))


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
