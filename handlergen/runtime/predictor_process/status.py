"""What a predictor process is doing, in a mapped file that outlives it.

The workers read it without asking the process: whether their request is in the user's code or still waits, since when a
predict runs, how many there were. When the process dies, the file still says which requests were in the user's code.
"""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path
from typing import NamedTuple

from ..descriptors import reserve

LOADING, IDLE, PREDICTING, ENDING = range(4)
STATES = ("loading", "idle", "predicting", "ending")
SLOTS = 1024
"""How many requests the file can name at once."""

# The file is an array of words of eight bytes. A word is stored and read as a whole: nobody sees a state without its
# beginning, so that a predict that has just begun never seems to have run since the machine was started.
_WORD = 8
_MAGIC_WORD, _PID, _STATE, _PREDICTIONS, _REQUESTS, _LARGEST_BATCH, _TIMED_OUT = range(7)
_FIRST_SLOT = 32
_WORDS = _FIRST_SLOT + SLOTS
_MAGIC = int.from_bytes(b"HGPAGE3\0", "little")


class Snapshot(NamedTuple):
    """The status at one moment.

    Attributes:
        pid: The predictor process.
        state: One of `STATES`.
        since_s: How long it has been in it, in seconds.
        predictions: Calls of the user's predict.
        requests: What those were for.
        largest_batch: The most requests in one call.
    """

    pid: int
    state: str
    since_s: float
    predictions: int
    requests: int
    largest_batch: int

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
            if os.fstat(descriptor).st_size != _WORDS * _WORD:
                raise ValueError("not a status file of a predictor process")
            self._memory = mmap.mmap(descriptor, _WORDS * _WORD)
            self._words = memoryview(self._memory).cast("Q")
        finally:
            os.close(descriptor)
        if self._words[_MAGIC_WORD] != _MAGIC:
            raise ValueError("not a status file of a predictor process")
        self._free = list(range(_WORDS - 1, _FIRST_SLOT - 1, -1))

    @classmethod
    def make(cls, path: Path) -> StatusFile:
        """Make a new file for this process; the one of the process before stays with whoever has it open.

        Raises:
            OSError: It cannot be made.
        """
        draft = path.with_name(f".status.{os.getpid()}")
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            reserve(descriptor, _WORDS * _WORD)
        except OSError:
            os.close(descriptor)
            draft.unlink(missing_ok=True)
            raise
        os.pwrite(descriptor, _MAGIC.to_bytes(_WORD, "little"), _MAGIC_WORD * _WORD)
        status = cls(descriptor)
        status._words[_PID] = os.getpid()
        status.enter(LOADING)
        draft.replace(path)
        return status

    @classmethod
    def open(cls, path: Path) -> StatusFile:
        """Open the file of the process that runs.

        Raises:
            OSError, ValueError: There is none.
        """
        return cls(os.open(path, os.O_RDWR | os.O_CLOEXEC))

    def enter(self, state: int) -> None:
        """Note what the process does from now on."""
        self._words[_STATE] = time.monotonic_ns() * len(STATES) + state  # 2**64 / 4 ns are 146 years

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
        self._words[slot] = _name(connection, number)
        return slot

    def free_slot(self, slot: int) -> None:
        """Note that the request has left the user's code."""
        if slot >= 0:
            self._words[slot] = 0
            self._free.append(slot)

    def count(self, requests: int) -> None:
        """Count one more call of predict, for so many requests."""
        words = self._words
        words[_PREDICTIONS] += 1
        words[_REQUESTS] += requests
        words[_LARGEST_BATCH] = max(words[_LARGEST_BATCH], requests)

    def holds(self, connection: int, number: int) -> bool:
        """Return whether a request is in the user's code, or was when the process died."""
        return _name(connection, number) in self._words[_FIRST_SLOT:].tolist()

    def note_timeout(self) -> None:
        """Note that the process is killed because its predict takes too long; before it is."""
        self._words[_TIMED_OUT] = 1

    @property
    def timed_out(self) -> bool:
        """Whether the process was killed for that."""
        return bool(self._words[_TIMED_OUT])

    def look(self) -> Snapshot:
        """Return what the process does now."""
        words = self._words
        since, state = divmod(words[_STATE], len(STATES))
        since_s = (time.monotonic_ns() - since) / 1e9
        counts = words[_PREDICTIONS], words[_REQUESTS], words[_LARGEST_BATCH]
        return Snapshot(words[_PID], STATES[state], since_s, *counts)


def _name(connection: int, number: int) -> int:
    return (connection << 32 | number & 0xFFFFFFFF) + 1
