"""Requests of all workers that wait for the device, in the order of their arrival."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from ..hooks import Item

_IN_VAIN = 8
"""After so many waits that no other request came in, in a row, requests come one at a time: nobody is to wait."""
_TRY_EVERY = 128
"""One request in so many then waits all the same, since others may come in the meantime, never beside each other."""


class Entry(Protocol):
    """A request that waits.

    Attributes:
        item: It.
        explains: It wants an explanation, not a prediction.
    """

    item: Item
    explains: bool

    @property
    def abandoned(self) -> bool:
        """Nobody waits for its answer any more."""

    def entered(self) -> None:
        """It is in the user's code from now on."""

    def done(self) -> None:
        """It has been predicted, or has failed."""

    def skipped(self) -> None:
        """It was not predicted, because it is abandoned."""


class Idle(Protocol):
    """What the thread that predicts does while it waits (`Reading`)."""

    def until(self, ready: Callable[[], bool], timeout_s: float | None = None) -> None:
        """Return when `ready`, asked again after each `wake`, or after `timeout_s`."""

    def wake(self) -> None:
        """Let `until` ask again; from any thread."""

    def look(self) -> None:
        """Let in what has come already."""


class Waiting:
    """The queue between those who prepare requests and the one thread that predicts.

    Args:
        most: How many requests one predict takes.
        linger_s: How long a request waits for others while the device is idle, in seconds; not while requests come
            one at a time.
        idle: What the one thread does meanwhile.
    """

    def __init__(self, *, most: int, linger_s: float, idle: Idle) -> None:
        self._most = most
        self._linger_s = linger_s
        self._idle = idle
        self._queue: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        self._next: Entry | None = None
        self._ended = False
        self._in_vain = 0

    def __len__(self) -> int:
        return self._queue.qsize()

    def put(self, entry: Entry) -> None:
        """Add a request; from any thread."""
        self._queue.put(entry)
        self._idle.wake()

    def end(self) -> None:
        """Let `take` return nothing from now on."""
        self._ended = True
        self._queue.put(None)
        self._idle.wake()

    def take(self, *, wait: bool = True) -> list[Entry]:
        """What is there, up to the most that one predict takes, oldest first; waits for the first.

        Requests that nobody waits for any more are left out. An explanation comes alone.

        Args:
            wait: For the first; the others have `linger_s`.

        Returns:
            Nothing after `end`, or when nothing is there and `wait` is False.
        """
        first = self._first(wait)
        if first is None:
            return []
        taken = [first]
        if first.explains or self._most == 1:
            return taken
        until = time.monotonic() + self._linger_s if self._linger_s and self._worth_a_wait() else 0.0
        while len(taken) < self._most:
            try:
                entry = self._queue.get_nowait()
            except queue.Empty:
                left = until - time.monotonic() if until else 0.0
                if left <= 0:
                    break
                self._idle.until(self._any, left)
                continue
            if entry is None:  # the end
                break
            wanted = self._wanted(entry)
            if wanted is not None and wanted.explains:
                self._next = wanted
                break
            if wanted is not None:
                taken.append(wanted)
        self._in_vain = 0 if len(taken) > 1 else self._in_vain + 1
        return taken

    def _worth_a_wait(self) -> bool:
        return self._in_vain < _IN_VAIN or self._in_vain % _TRY_EVERY == 0

    def _first(self, wait: bool) -> Entry | None:
        if not wait:
            self._idle.look()
        first, self._next = self._next, None
        while first is None and not self._ended:
            try:
                first = self._wanted(self._queue.get_nowait())
            except queue.Empty:
                if not wait:
                    break
                self._idle.until(self._any)
        return None if self._ended else first

    def _any(self) -> bool:
        return not self._queue.empty()

    @staticmethod
    def _wanted(entry: Entry | None) -> Entry | None:
        if entry is not None and entry.abandoned:
            entry.skipped()
            return None
        return entry


class Taken:
    """What `take` returned, as `Ready` for the predictor: all of it is there, and nothing follows."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._by_item = {id(entry.item): entry for entry in entries}
        self._left = deque(entry.item for entry in entries)

    @property
    def more(self) -> bool:
        """Whether some are left."""
        return bool(self._left)

    def next(self) -> Item | None:
        """The next request; None when there are no more."""
        return self._left.popleft() if self._left else None

    def next_ready(self) -> Item | None:
        """None: the device is handed on after each prediction, since others may wait for it."""
        return None

    def done(self, item: Item) -> None:
        """A request was predicted, or failed in it."""
        self._by_item[id(item)].done()
