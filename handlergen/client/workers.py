"""The number of workers of a model: surplus workers answer what they have before TorchServe ends them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from handlergen.client.connection import ApiConnection
from handlergen.client.fence import Notice, UnknownCommand, fence, patient_command
from handlergen.client.results import READY
from handlergen.errors import RequestFailed, ServerError
from handlergen.runtime.codec.errors import error_text

_POLL_S = 0.2
_ATTEMPTS = 5
_ATTEMPTS_AT_LAST = 3
_REFUSES_S = 5.0
"""How long the last worker of a model refuses requests before it is ended."""
_UNFINISHED = frozenset(("NullPointerException", "ConcurrentModificationException", "IllegalStateException"))
"""What TorchServe raises when a worker answers while TorchServe is stopping it, because BatchAggregator.sendError
iterates over jobs that the worker's thread modifies, and when the queue has no place for what the worker has in hand
(Model.addFirst). TorchServe then stops no further worker."""
_EMPTY_READINGS = 3
"""Consecutive readings of an empty queue before it counts as drained: a worker may still be busy with a request that
has left the queue."""


class ModelWorkers:
    """The workers of one version of a model; `path` is its address in the management API."""

    def __init__(self, management: ApiConnection, path: str) -> None:
        self._management = management
        self._path = path

    def set(self, workers: int, deadline: float | None, notice: Notice | None) -> None:
        """Set the number of workers; surplus ones answer first what they have, unless `deadline` is None."""
        running = len(self._raw()["workers"])
        if not workers and running > 1:
            # Scaling straight to 0, TorchServe forgets the workers that it has not stopped yet.
            self._end_workers(1, deadline, notice)
        if running <= workers:
            self.put(workers, workers)
        elif workers:
            self._end_workers(workers, deadline, notice)
        else:
            self._end_last_worker(deadline, notice)

    def _end_workers(self, remaining: int, deadline: float | None, notice: Notice | None) -> None:
        """End all but `remaining` workers, at least one."""
        # TorchServe ends workers from the end of its own list (WorkLoadManager.modelChanged).
        surplus = self._raw()["workers"][remaining:]
        # One that is not READY has no request, and could not take one.
        pids = [worker["pid"] for worker in surplus if worker["status"] == READY]
        with contextlib.ExitStack() as held:
            if deadline is not None and pids:
                try:
                    held.enter_context(fence(self.describe, pids, deadline=deadline, notice=notice))
                except UnknownCommand as error:
                    _warn(notice, error)
            self.put(remaining, remaining)

    def _end_last_worker(self, deadline: float | None, notice: Notice | None) -> None:
        """End the only worker when it has answered what the queue had; it refuses what comes later.

        TorchServe never answers what is in the queue of a model without workers. If a request has reached it
        nevertheless, the worker is brought back for it. Where clients go on sending requests, it stays in the end.
        """
        for _ in range(_ATTEMPTS_AT_LAST):
            ready = any(worker["status"] == READY for worker in self._raw()["workers"])
            if deadline is not None and ready:
                try:
                    # TorchServe gives out what is in a queue in turn: what was there before is answered by then.
                    patient_command(self.describe, deadline, refuse=_REFUSES_S)
                except UnknownCommand as error:
                    _warn(notice, error)
                    self._wait_for_others(deadline)
            self.put(0, 0)
            time.sleep(_POLL_S)
            if deadline is None or not self._waiting():
                return
            self.put(1, 1)
            while self._waiting() and time.monotonic() < deadline:
                time.sleep(_POLL_S)
        raise ServerError(
            "clients keep sending requests to the model: its last worker was not ended",
            hint="stop them or have them use another version first, or end the worker at once by --now",
        )

    def _wait_for_others(self, deadline: float) -> None:
        """Wait until the queue of workers that know no commands is empty."""
        empty = 0
        while empty < _EMPTY_READINGS and time.monotonic() < deadline:
            empty = 0 if self._waiting() else empty + 1
            time.sleep(_POLL_S)

    def _raw(self) -> dict[str, Any]:
        described: dict[str, Any] = self._management.request("GET", self._path).json()[0]
        return described

    def _waiting(self) -> int:
        return int(self._raw()["jobQueueStatus"]["pendingRequests"])

    def describe(self, headers: Mapping[str, str], timeout: float | None = None) -> Any:
        """Return what a worker of the model answers to DESCRIBE; its answer may be long in coming."""
        params = {"customized": "true"}
        answer = self._management.request("GET", self._path, params=params, headers=headers, timeout=timeout).json()
        return answer[0].get("customizedMetadata")

    def put(self, minimum: int, maximum: int) -> None:
        """Set minimum and maximum; repeat the request when TorchServe fails midway."""
        counts = {"min_worker": minimum, "max_worker": maximum}
        for attempts_left in reversed(range(_ATTEMPTS)):
            try:
                self._management.request("PUT", self._path, params=counts)
                return
            except RequestFailed as error:
                unfinished = error.status == 500 and error_text(error.body)[0] in _UNFINISHED
                if not (attempts_left and unfinished):
                    raise


def _warn(notice: Notice | None, error: UnknownCommand) -> None:
    if notice is not None:
        notice(f"the workers cannot be told to answer what they have in hand, which may be lost: {error.message}")
