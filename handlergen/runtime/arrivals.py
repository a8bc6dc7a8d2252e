"""The requests of one TorchServe batch, in the order in which they become ready for the device."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Protocol, TypeGuard

from .hooks import Item


class Ready(Protocol):
    """What a predictor takes requests from."""

    @property
    def more(self) -> bool:
        """Whether requests are still to come."""

    def next(self) -> Item | None:
        """Wait for the next request that is ready; None when there are no more."""

    def next_ready(self) -> Item | None:
        """The next request if one is ready now, without waiting; else None."""

    def done(self, item: Item) -> None:
        """Hand on a request that was predicted, or failed in it."""


class Arrivals:
    """Between the stages that prepare requests and the predictor that takes them.

    Args:
        expected: How many requests the batch has.
        last_stage: A request is put once for each stage of the model, from 0 to this one.
        finished: Called with each request that the predictor is finished with, on the predicting thread.
    """

    def __init__(self, expected: int, last_stage: int, finished: Callable[[Item], None]) -> None:
        self._left = expected
        self._counting = threading.Lock()
        self._last_stage = last_stage
        self._queue: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._finished = finished

    @property
    def more(self) -> bool:
        return self._left > 0

    def put(self, item: Item) -> None:
        """Hand over a request that is ready, or that has failed; the latter is passed on without a prediction."""
        self._queue.put(item)

    def done(self, item: Item) -> None:
        """As `Ready` says; a request that failed does not come back for a later stage.

        From any thread: whoever waits in `next` for what does not come is woken.
        """
        if item.failure is not None and item.stage != self._last_stage:
            self._count()
            self._queue.put(None)
        self._finished(item)

    def next(self) -> Item | None:
        """Wait for the next request that is ready; None when the batch has no more."""
        while self._left:
            item = self._queue.get()
            if self._is_taken(item):
                return item
        return None

    def next_ready(self) -> Item | None:
        """The next request if one is ready now, without waiting; else None."""
        while self._left:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return None
            if self._is_taken(item):
                return item
        return None

    def _is_taken(self, item: Item | None) -> TypeGuard[Item]:
        """Count a request that does not come back; one that has failed is handed on at once. None only wakes."""
        if item is None:
            return False
        if item.failure is not None:
            self._count()
            self._finished(item)
            return False
        if item.stage == self._last_stage:
            self._count()
        return True

    def _count(self) -> None:
        with self._counting:
            self._left -= 1
