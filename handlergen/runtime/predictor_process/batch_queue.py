"""Requests of all workers that wait for the device, in the order of their arrival."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from ..pipeline.hooks import Item

_IN_VAIN = 8
"""After so many waits in a row during which no other request came, requests come one at a time: none is to wait."""
_TRY_EVERY = 128
"""One request in so many then waits all the same, in case others come by now."""


class Entry(Protocol):
    """A request that waits.

    Attributes:
        item: The request.
        explains: It wants an explanation, not a prediction.
    """

    item: Item
    explains: bool

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for its answer any more."""

    def entered(self) -> None:
        """Note that it is in the user's code from now on."""

    def done(self) -> None:
        """Note that it has been predicted, or has failed; still under the device lock."""

    def answer(self) -> None:
        """Hand its outputs on; before the next prediction, and outside the device lock."""

    def skipped(self) -> None:
        """Note that it was not predicted, because it is abandoned."""


class BatchQueue:
    """The queue between those who prepare requests and the one thread that predicts.

    Args:
        max_batch: How many requests one predict takes.
        linger_s: How long a request waits for others while the device is idle, in seconds; not while requests come
            one at a time.
    """

    def __init__(self, *, max_batch: int, linger_s: float) -> None:
        self._max_batch = max_batch
        self._linger_s = linger_s
        self._queue: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        self._next: Entry | None = None
        self._ended = False
        self._in_vain = 0

    def __len__(self) -> int:
        return self._queue.qsize()

    def put(self, entry: Entry) -> None:
        """Add a request; from any thread."""
        self._queue.put(entry)

    def end(self) -> None:
        """Let `take` return nothing from now on."""
        self._ended = True
        self._queue.put(None)

    def take(self) -> list[Entry]:
        """Wait for the first request, and return it with those behind it that fit into one predict, oldest first.

        Requests that nobody waits for any more are left out. An explanation comes alone. After `end`, nothing.
        """
        first, self._next = self._next, None
        while first is None and not self._ended:
            first = self._wanted(self._queue.get())
        if first is None or self._ended:
            return []
        taken = [first]
        if first.explains or self._max_batch == 1:
            return taken
        until = time.monotonic() + self._linger_s if self._linger_s and self._worth_a_wait() else 0.0
        while len(taken) < self._max_batch:
            left = until - time.monotonic() if until else 0.0
            try:
                entry = self._queue.get(timeout=left) if left > 0 else self._queue.get_nowait()
            except queue.Empty:
                break
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

    @staticmethod
    def _wanted(entry: Entry | None) -> Entry | None:
        if entry is not None and entry.abandoned:
            entry.skipped()
            return None
        return entry


class Batch:
    """What `BatchQueue.take` returned, as a `RequestSource` for the predictor: complete, nothing follows."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._by_item = {id(entry.item): entry for entry in entries}
        self._left = deque(entry.item for entry in entries)

    @property
    def more(self) -> bool:
        """Whether some are left."""
        return bool(self._left)

    def next(self) -> Item | None:
        """Return the next request; None when there are no more."""
        return self._left.popleft() if self._left else None

    def next_ready(self) -> Item | None:
        """Return None: the device is released after each prediction, since others may wait for it."""
        return None

    def done(self, item: Item) -> None:
        """Note that a request was predicted, or failed in it."""
        self._by_item[id(item)].done()
