"""A mutex in a memory-mapped file that the kernel releases when its holder dies (Linux).

A POSIX robust, process-shared mutex has what a file lock lacks: a time-out, no system call without contention, no
inheritance by forked children, and a wake-up of one waiter instead of all (pthread_mutexattr_setrobust(3),
pthread_mutex_clocklock(3), Linux robust-futexes documentation).

A mutex means nothing to another run of the kernel, so the file's name contains the boot id: a mutex that a power cut
left locked is never used again.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import secrets
import struct
import time
import weakref
from pathlib import Path
from typing import NamedTuple

from ..descriptors import reserve

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

    Args:
        path: The file; made if it does not exist. Its directory must exist.

    Raises:
        OSError: The file cannot be made or mapped, or the C library has no robust mutexes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # A thread may still wait in a mapping that another thread has replaced: no mapping is ever removed.
        self._mapped: list[_Mapped] = []
        self._held: _Mapped | None = None
        try:
            waiting = ctypes.CDLL(None, use_errno=True)  # releases the GIL
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
        mapped = _Mapped(
            memory,
            descriptor,
            ctypes.c_void_p(base + _GATE_OFFSET),
            ctypes.c_void_p(base + _DEVICE_OFFSET),
        )
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
