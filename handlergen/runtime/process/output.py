"""What a predictor process prints, on its way into TorchServe's model log.

It outlives the worker that started it, so it cannot have that worker's output. It writes to a file, which holds what a
dying process says last too; one worker at a time hands the file on to its own output, which TorchServe logs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import sys
from pathlib import Path

from .forks import close, descriptor_closed_in_children

_OFFSET = struct.Struct("=Q")
_PIECE = 1 << 16
_CUT_FROM = 1 << 20


def open_output(path: Path) -> int:
    """The file for a process to write to, behind what is there already.

    Raises:
        OSError: It cannot be made.
    """
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


class Forwarder:
    """Hands on the output of a predictor process, while no other worker does.

    Args:
        path: The file that the process writes to.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream = sys.stdout  # now: a hook may redirect it for a while
        self._lock: int | None = None
        self._file: int | None = None
        self._offset = 0

    def forward(self) -> None:
        """Print what is new; nothing when another worker does that. Only whole lines, but for an ended process's."""
        if self._lock is not None and not os.fstat(self._lock).st_nlink:
            self.close()  # the process before this one has ended and removed its directory
        if self._lock is None and not self._elected():
            return
        if self._file is None:
            try:
                self._file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            except OSError:
                return
        while piece := os.pread(self._file, _PIECE, self._offset):
            end = piece.rfind(b"\n") + 1 or len(piece)
            self._stream.write(piece[:end].decode("utf-8", "replace"))
            self._stream.flush()
            self._offset += end
            if end < len(piece):
                break
        if self._offset > _CUT_FROM and os.fstat(self._file).st_size == self._offset:
            # The process appends, so what it writes next stands at the beginning. (What it writes between the
            # question and the cut is lost: microseconds in hours, against a file that grows for ever.)
            os.ftruncate(self._file, 0)
            self._offset = 0
        assert self._lock is not None
        os.pwrite(self._lock, _OFFSET.pack(self._offset), 0)

    def close(self) -> None:
        """Leave it to another worker."""
        if self._file is not None:
            os.close(self._file)
        if self._lock is not None:
            close(self._lock)
        self._lock = self._file = None
        self._offset = 0

    def _elected(self) -> bool:
        try:
            lock = os.open(self._path.with_name("forward.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:  # the directory is gone: so is the process
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            return False
        self._lock = lock
        descriptor_closed_in_children(lock)
        with contextlib.suppress(struct.error):
            (self._offset,) = _OFFSET.unpack(os.pread(lock, _OFFSET.size, 0))
        return True
