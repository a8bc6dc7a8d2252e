"""The device lock: one predict at a time per device, across threads, workers, models and servers of this user.

On Linux the lock is a POSIX robust, process-shared mutex in a memory-mapped file, which the kernel releases when its
holder dies. It has what a file lock lacks: a time-out, no system call without contention, no inheritance by forked
children, and a wake-up of one waiter instead of all (pthread_mutexattr_setrobust(3), pthread_mutex_clocklock(3), Linux
robust-futexes documentation). Where the C library has no such mutexes, it is a file lock.

A mutex means nothing to another run of the kernel, so the file's name contains the boot id: a mutex that a power cut
left locked is never used again.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import math
import mmap
import os
import re
import secrets
import stat
import struct
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ..codec.errors import LockTimeout
from ..descriptors import close, descriptor_closed_in_children, reserve

STATE_DIR_VARIABLE = "HANDLERGEN_STATE_DIR"
_NO_MUTEX = (errno.ENOTSUP, errno.ENODEV)
"""Errors of a C library without robust mutexes, and of a file system without mmap(2)."""
_LONGEST_WAIT_S = 10 * 365 * 24 * 3600.0


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
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot_id = "unknown"
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", key)[:80]
    digest = hashlib.sha256(f"{key}\0{boot_id}".encode()).hexdigest()[:16]
    return f"{readable}-{digest}.lock"


def _open(path: Path) -> RobustMutexFile | PolledLockFile:
    try:
        return RobustMutexFile(path)
    except OSError as error:
        if error.errno not in _NO_MUTEX:
            raise
    # Another name: a process with mutexes must not take this file for one.
    return PolledLockFile(path.with_suffix(".flock"))


_MAGIC = b"HGLOCK1\0"
_GATE_OFFSET = 64
_GATE_WORD = slice(_GATE_OFFSET, _GATE_OFFSET + 4)  # glibc's mutex begins with its owner, 0 when free
_FREE = bytes(4)
_DEVICE_OFFSET = 192
_OWNER_OFFSET = 320
_OWNER = struct.Struct("=qq")  # pid of the holder, monotonic ns at which it took the mutex
_SIZE = mmap.PAGESIZE
_PROCESS_SHARED = 1
_ROBUST = 1
_WAIT_SLICE_S = 0.25  # a wait returns to Python this often, so that signals (Ctrl-C) are handled


class _Timespec(ctypes.Structure):
    _fields_ = [("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long)]


class _Mapped(NamedTuple):
    """A lock file mapped into this process's memory."""

    memory: mmap.mmap
    descriptor: int
    gate: ctypes.c_void_p
    device: ctypes.c_void_p


def _pin(memory: mmap.mmap) -> None:
    """Keep a mapping until `_unpin`, even while the interpreter ends and drops its objects.

    The kernel finds the mutexes of a dying thread by reading the process's memory: a mutex whose mapping is gone by
    then stays locked for ever.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(memory))


def _unpin(memory: mmap.mmap) -> None:
    ctypes.pythonapi.Py_DecRef(ctypes.py_object(memory))


class RobustMutexFile:
    """One mutex in one file, shared by every thread and process that opens the same path.

    The file has two mutexes, a gate and the device's. A thread takes the gate first and holds it while it waits for the
    device: a thread that releases the device and wants it again queues behind the waiter instead of overtaking it.

    Raises:
        OSError: The file cannot be made or mapped, or the C library has no robust mutexes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # A thread may still wait in a mapping that another thread has replaced: no mapping is ever removed.
        self._mapped: list[_Mapped] = []
        self._held: _Mapped | None = None
        try:
            waiting = ctypes.CDLL(None)  # releases the GIL
            quick = ctypes.PyDLL(None)  # keeps it: for calls that never wait
            self._clocklock = waiting.pthread_mutex_clocklock
            self._trylock = quick.pthread_mutex_trylock
            self._unlock = quick.pthread_mutex_unlock
            self._consistent = quick.pthread_mutex_consistent
            self._library = quick
        except (AttributeError, OSError, TypeError) as error:
            raise OSError(errno.ENOTSUP, f"no robust mutexes in this C library ({error})") from error
        self._open()

    def acquire(self, deadline: float) -> bool:
        """Take the mutex; False when `deadline` (a `time.monotonic()` value) has passed."""
        mapped = self._mapped[-1]
        while True:
            _pin(mapped.memory)
            if not self._take(mapped.gate, deadline):
                _unpin(mapped.memory)
                return False
            try:
                taken = self._take(mapped.device, deadline)
            finally:
                self._unlock(mapped.gate)
            if not taken:
                _unpin(mapped.memory)
                return False
            if os.fstat(mapped.descriptor).st_nlink:
                _OWNER.pack_into(mapped.memory, _OWNER_OFFSET, os.getpid(), time.monotonic_ns())
                self._held = mapped
                return True
            # The file was deleted or replaced before or during the wait: other processes may share a new one.
            self._unlock(mapped.device)
            _unpin(mapped.memory)
            mapped = self._open()

    def release(self) -> None:
        """Release the mutex; only in the thread that took it."""
        mapped = self._held
        # A thread that waits for the device holds the gate. Read without the C library, this is only a hint.
        awaited = mapped is not None and mapped.memory[_GATE_WORD] != _FREE
        result = errno.EPERM if mapped is None else self._unlock(mapped.device)
        if mapped is None or result:
            raise OSError(result, f"cannot release {self._path.name}: {os.strerror(result)}")
        _unpin(mapped.memory)
        if awaited:
            # The kernel may wake the waiter on this core, where it waits until this process pauses, and the device
            # with it: 0.1 ms and more, against a few microseconds for yielding.
            os.sched_yield()

    def owner(self) -> tuple[int, float]:
        """Return the process that took the mutex last, and how long ago, in seconds."""
        pid, since = _OWNER.unpack_from(self._mapped[-1].memory, _OWNER_OFFSET)
        return pid, (time.monotonic_ns() - since) / 1e9

    def _take(self, mutex: ctypes.c_void_p, deadline: float) -> bool:
        result = self._trylock(mutex)
        if not result:
            return True
        while result in (errno.EBUSY, errno.ETIMEDOUT):
            now = time.monotonic()
            if now >= deadline:
                return False
            until = min(deadline, now + _WAIT_SLICE_S)
            limit = _Timespec(int(until), int((until % 1) * 1e9))
            result = self._clocklock(mutex, time.CLOCK_MONOTONIC, ctypes.byref(limit))
        if result == errno.EOWNERDEAD:  # its holder was killed; this thread has it, and there is no state to repair
            result = self._consistent(mutex)
        if result:
            raise OSError(result, f"cannot take {self._path.name}: {os.strerror(result)}")
        return True

    def _open(self) -> _Mapped:
        descriptor = None
        while descriptor is None:
            try:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                self._create()
        try:
            if os.fstat(descriptor).st_size != _SIZE or os.pread(descriptor, len(_MAGIC), 0) != _MAGIC:
                raise OSError(errno.EINVAL, f"{self._path} is not a lock file of handlergen")
            memory = mmap.mmap(descriptor, _SIZE)
        except BaseException:
            os.close(descriptor)
            raise
        # Kept open as long as the mapping, to ask whether the file still has its name: fstat needs no path.
        weakref.finalize(memory, os.close, descriptor).atexit = False
        base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        gate, device = ctypes.c_void_p(base + _GATE_OFFSET), ctypes.c_void_p(base + _DEVICE_OFFSET)
        mapped = _Mapped(memory, descriptor, gate, device)
        self._mapped.append(mapped)
        return mapped

    def _create(self) -> None:
        """Make a complete file under another name, then link it into place: no process sees an incomplete file."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            reserve(descriptor, _SIZE)
            memory = mmap.mmap(descriptor, _SIZE)
            base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            attributes = ctypes.create_string_buffer(64)
            for call in (
                self._library.pthread_mutexattr_init(attributes),
                self._library.pthread_mutexattr_setpshared(attributes, _PROCESS_SHARED),
                self._library.pthread_mutexattr_setrobust(attributes, _ROBUST),
                self._library.pthread_mutex_init(ctypes.c_void_p(base + _GATE_OFFSET), attributes),
                self._library.pthread_mutex_init(ctypes.c_void_p(base + _DEVICE_OFFSET), attributes),
            ):
                if call:
                    raise OSError(call, f"cannot make {self._path.name}: {os.strerror(call)}")
            memory[: len(_MAGIC)] = _MAGIC
            with contextlib.suppress(FileExistsError):  # another process was first
                os.link(draft, self._path)
        finally:
            os.close(descriptor)
            draft.unlink(missing_ok=True)


_POLL_MIN_S = 0.0002
_POLL_MAX_S = 0.005


class PolledLockFile:
    """A file lock (flock(2)), polled because a file lock has no time-out; for systems without robust mutexes."""

    def __init__(self, path: Path) -> None:
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
