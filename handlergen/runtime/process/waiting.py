"""Requests of all workers that wait for the device, in the order of their arrival."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from ..hooks import Item


class Entry(Protocol):
    """A request that waits.

    Attributes:
        item: It.
        explains: It wants an explanation, not a prediction.
        abandoned: Nobody waits for its answer any more.
    """

    item: Item
    explains: bool

    @property
    def abandoned(self) -> bool: ...
    def entered(self) -> None:
        """It is in the user's code from now on."""

    def done(self) -> None:
        """It has been predicted, or has failed."""

    def skipped(self) -> None:
        """It was not predicted, because it is abandoned."""


class Waiting:
    """The queue between those who prepare requests and the one thread that predicts.

    Args:
        most: How many requests one predict takes.
        linger_s: How long a request waits for others while the device is idle, in seconds.
    """

    def __init__(self, *, most: int, linger_s: float) -> None:
        self._most = most
        self._linger_s = linger_s
        self._entries: deque[Entry] = deque()
        self._changed = threading.Condition()
        self._ended = False

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, entry: Entry) -> None:
        """Add a request; from any thread."""
        with self._changed:
            self._entries.append(entry)
            self._changed.notify()

    def end(self) -> None:
        """Let `take` return nothing from now on."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def take(self) -> list[Entry]:
        """What is there, up to the most that one predict takes, oldest first; waits for the first.

        Requests that nobody waits for any more are left out. An explanation comes alone.

        Returns:
            Nothing after `end`.
        """
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._entries or self._ended)
                if self._ended:
                    return []
                if self._linger_s and len(self._entries) < self._most:
                    self._linger()
                taken = self._taken()
                if taken:
                    return taken

    def _linger(self) -> None:
        until = time.monotonic() + self._linger_s
        while len(self._entries) < self._most and not self._ended:
            left = until - time.monotonic()
            if left <= 0 or not self._changed.wait(left):
                return

    def _taken(self) -> list[Entry]:
        taken: list[Entry] = []
        while self._entries and len(taken) < self._most:
            entry = self._entries[0]
            if entry.abandoned:
                entry.skipped()
            elif taken and (entry.explains or taken[0].explains):
                break
            else:
                taken.append(entry)
            self._entries.popleft()
        return taken


class Taken:
    """What `take` returned, as `Arrivals` of one batch: all of it is ready, and nothing follows."""

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
