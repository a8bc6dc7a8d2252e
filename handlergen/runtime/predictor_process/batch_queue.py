"""Requests of all workers that wait for the device, in the order of their arrival."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Sequence

from ..codec.errors import Failure
from ..pipeline.hooks import Item
from .connections import WorkerConnection
from .status import StatusFile

_IN_VAIN = 8
"""After so many waits in a row during which no other request came, requests come one at a time: none is to wait."""
_TRY_EVERY = 128
"""One request in so many then waits all the same, in case others come by now."""
_ABANDONED = Failure(499, "ClientGone", "The worker that asked has gone")


class InUserCode:
    """Names a worker's request in the status file while the request is in the user's code.

    Args:
        status: Of this process.
        worker: The connection of the worker that has sent the request.
        number: Of the request, as the worker counts.
    """

    def __init__(self, status: StatusFile, worker: WorkerConnection, number: int) -> None:
        self.worker = worker
        self.number = number
        self._status = status
        self._slot = -1

    def enter(self) -> None:
        """Note that the request is in the user's code from now on."""
        if self._slot < 0:
            self._slot = self._status.take_slot(self.worker.number, self.number)

    def leave(self) -> None:
        """Note that it is not any more: if the process dies now, the request is predicted again."""
        slot, self._slot = self._slot, -1
        self._status.free_slot(slot)


class QueuedRequest:
    """A request that waits for the device.

    Args:
        item: The request.
        in_user_code: Names it in the status file.
        answer: Hands its outputs on; called before the next prediction, and outside the device lock.
        explains: It wants an explanation, not a prediction.
    """

    def __init__(
        self, item: Item, in_user_code: InUserCode, answer: Callable[[], None], *, explains: bool = False
    ) -> None:
        self.item = item
        self.in_user_code = in_user_code
        self.answer = answer
        self.explains = explains

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for its answer any more."""
        return self.in_user_code.worker.gave_up(self.in_user_code.number)

    def skip(self) -> None:
        """Answer it without a prediction, because it is abandoned."""
        self.item.failure = _ABANDONED
        self.answer()


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
        self._queue: queue.SimpleQueue[QueuedRequest | None] = queue.SimpleQueue()
        self._next: QueuedRequest | None = None
        self._ended = False
        self._in_vain = 0

    def __len__(self) -> int:
        return self._queue.qsize()

    def put(self, request: QueuedRequest) -> None:
        """Add a request; from any thread."""
        self._queue.put(request)

    def end(self) -> None:
        """Let `take` return nothing from now on."""
        self._ended = True
        self._queue.put(None)

    def take(self) -> list[QueuedRequest]:
        """Wait for the first request, and return it with those behind it that fit into one predict, oldest first.

        Requests that nobody waits for any more are left out. An explanation comes alone. After `end`, nothing.
        """
        first, self._next = self._next, None
        while first is None and not self._ended:
            first = self._wanted(self._queue.get())
        if first is None or self._ended:
            return []
        batch = [first]
        if first.explains or self._max_batch == 1:
            return batch
        until = time.monotonic() + self._linger_s if self._linger_s and self._worth_a_wait() else 0.0
        while len(batch) < self._max_batch:
            left = until - time.monotonic() if until else 0.0
            try:
                request = self._queue.get(timeout=left) if left > 0 else self._queue.get_nowait()
            except queue.Empty:
                break
            if request is None:  # the end
                break
            wanted = self._wanted(request)
            if wanted is not None and wanted.explains:
                self._next = wanted
                break
            if wanted is not None:
                batch.append(wanted)
        self._in_vain = 0 if len(batch) > 1 else self._in_vain + 1
        return batch

    def _worth_a_wait(self) -> bool:
        return self._in_vain < _IN_VAIN or self._in_vain % _TRY_EVERY == 0

    @staticmethod
    def _wanted(request: QueuedRequest | None) -> QueuedRequest | None:
        if request is not None and request.abandoned:
            request.skip()
            return None
        return request


class Batch:
    """What `BatchQueue.take` returned, as a `RequestSource` for the predictor: complete, nothing follows."""

    def __init__(self, requests: Sequence[QueuedRequest]) -> None:
        self._by_item = {id(request.item): request for request in requests}
        self._left = deque(request.item for request in requests)

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
        """Note that a request was predicted, or failed in it; still under the device lock."""
        self._by_item[id(item)].in_user_code.leave()
