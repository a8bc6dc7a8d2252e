"""What a predictor process is doing, in a mapped file that outlives it.

The workers read it without asking: whether their request is in the user's code or still waits, since when a predict
runs, how many there were. When the process dies, the file still says which requests were in the user's code.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path
from typing import NamedTuple

from ..descriptors import reserve

LOADING, IDLE, PREDICTING, ENDING = range(4)
STATES = ("loading", "idle", "predicting", "ending")
SLOTS = 1024
"""How many requests the file can name at once."""

_HEADER = struct.Struct("=8sqQ")  # magic, pid, the state and since when
_MAGIC = b"HGPAGE2\0"
_STATE_WORD = 2
"""Which word of eight bytes the state and its beginning share. Nobody may see the one without the other: a predict that
has just begun would seem to have run since the machine was started."""
_COUNTS = struct.Struct("=qqqq")  # predictions, requests, largest batch, waiting
_COUNTS_AT = 64
_TIMED_OUT = struct.Struct("=q")
_TIMED_OUT_AT = 128
_SLOTS_AT = 256
_SLOT = struct.Struct("=Q")
_SIZE = _SLOTS_AT + SLOTS * _SLOT.size


class Snapshot(NamedTuple):
    """The status at one moment.

    Attributes:
        pid: The predictor process.
        state: One of `STATES`.
        since_s: How long it has been in it, in seconds.
        predictions: Calls of the user's predict.
        requests: What those were for.
        largest_batch: The most requests in one call.
        waiting: Requests that waited when the last batch was taken.
    """

    pid: int
    state: str
    since_s: float
    predictions: int
    requests: int
    largest_batch: int
    waiting: int

    @property
    def mean_batch(self) -> float:
        """Requests in one call, to two decimals; 0 before the first."""
        return round(self.requests / self.predictions, 2) if self.predictions else 0.0


class StatusFile:
    """The mapped file.

    Args:
        descriptor: Of the file; it is closed.

    Raises:
        ValueError: It is no status file.
    """

    def __init__(self, descriptor: int) -> None:
        try:
            if os.fstat(descriptor).st_size != _SIZE:
                raise ValueError("not a status file of a predictor process")
            self._memory = mmap.mmap(descriptor, _SIZE)
            # A word is stored and read as a whole; `struct` fills one byte by byte.
            self._words = memoryview(self._memory).cast("Q")
        finally:
            os.close(descriptor)
        if self._memory[: len(_MAGIC)] != _MAGIC:
            raise ValueError("not a status file of a predictor process")
        self._free = list(range(SLOTS - 1, -1, -1))
        self._counts = [0, 0, 0, 0]

    @classmethod
    def make(cls, path: Path) -> StatusFile:
        """Make a new file for this process; the one of the process before stays with whoever has it open.

        Raises:
            OSError: It cannot be made.
        """
        draft = path.with_name(f".status.{os.getpid()}")
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            reserve(descriptor, _SIZE)
        except OSError:
            os.close(descriptor)
            draft.unlink(missing_ok=True)
            raise
        os.pwrite(descriptor, _HEADER.pack(_MAGIC, os.getpid(), _state_word(LOADING)), 0)
        draft.replace(path)
        return cls(descriptor)

    @classmethod
    def open(cls, path: Path) -> StatusFile:
        """Open the file of the process that runs.

        Raises:
            OSError, ValueError: There is none.
        """
        return cls(os.open(path, os.O_RDWR | os.O_CLOEXEC))

    def enter(self, state: int) -> None:
        """Note what the process does from now on."""
        self._words[_STATE_WORD] = _state_word(state)

    def take_slot(self, connection: int, number: int) -> int:
        """Note that a request is in the user's code; before it is.

        Args:
            connection: Number of the worker's connection.
            number: Of the request, as that worker counts.

        Returns:
            The slot, for `free_slot`; -1 when none was left, and nothing is noted.
        """
        try:
            slot = self._free.pop()
        except IndexError:
            return -1
        self._words[_SLOTS_AT // _SLOT.size + slot] = _name(connection, number)
        return slot

    def free_slot(self, slot: int) -> None:
        """Note that the request has left the user's code."""
        if slot >= 0:
            self._words[_SLOTS_AT // _SLOT.size + slot] = 0
            self._free.append(slot)

    def count(self, requests: int, waiting: int) -> None:
        """Count one more call of predict."""
        counts = self._counts
        counts[0] += 1
        counts[1] += requests
        counts[2] = max(counts[2], requests)
        counts[3] = waiting
        _COUNTS.pack_into(self._memory, _COUNTS_AT, *counts)

    def holds(self, connection: int, number: int) -> bool:
        """Return whether a request is in the user's code, or was when the process died."""
        wanted = _SLOT.pack(_name(connection, number))
        place = _SLOTS_AT
        while (place := self._memory.find(wanted, place)) >= 0:
            if (place - _SLOTS_AT) % _SLOT.size == 0:
                return True
            place += 1
        return False

    def note_timeout(self) -> None:
        """Note that the process is killed because its predict takes too long; before it is."""
        _TIMED_OUT.pack_into(self._memory, _TIMED_OUT_AT, 1)

    @property
    def timed_out(self) -> bool:
        """Whether the process was killed for that."""
        return bool(_TIMED_OUT.unpack_from(self._memory, _TIMED_OUT_AT)[0])

    def look(self) -> Snapshot:
        """Return what the process does now."""
        _, pid, _ = _HEADER.unpack_from(self._memory, 0)
        since, state = divmod(self._words[_STATE_WORD], len(STATES))
        since_s = (time.monotonic_ns() - since) / 1e9
        return Snapshot(pid, STATES[state], since_s, *_COUNTS.unpack_from(self._memory, _COUNTS_AT))


def _state_word(state: int) -> int:
    return time.monotonic_ns() * len(STATES) + state  # 2**64 / 4 ns are 146 years


def _name(connection: int, number: int) -> int:
    return (connection << 32 | number & 0xFFFFFFFF) + 1
