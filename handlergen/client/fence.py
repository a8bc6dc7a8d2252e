"""Workers that hold a request while TorchServe ends them, so that no prediction is in their hands.

TorchServe 0.12 ends a worker by closing its connection and killing it, whatever it is doing. The worker's prediction
then fails with "Worker died.", or is given to another worker. So each worker that is to be ended first gets a request
that no client waits for: `GET /models/NAME?customized=true` with the command to hold it (`runtime/torchserve/control`).
TorchServe queues these with the predictions, so a worker takes one when it has answered what it had.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from handlergen.errors import HandlergenError, RequestFailed, ServerError
from handlergen.runtime.codec.content import COMMAND
from handlergen.runtime.codec.errors import error_text


class Describe(Protocol):
    """Sends `GET /models/NAME?customized=true`; returns what one worker answered, as JSON.

    Args:
        headers: Those of the request.
        timeout: Seconds to wait for the answer; None: for ever.
    """

    def __call__(self, headers: Mapping[str, str], timeout: float | None = None) -> Any: ...


Notice = Callable[[str], None]
"""Receives a sentence for the user when something takes long."""

_LEASE_S = 30.0
"""A worker answers what it holds after this time, so that a client that was killed does not leave it idle."""
_SLACK_S = 10.0
"""A fence must still last so long when it is used."""
_POLL_S = 0.02
_BUSY_S = 5.0
_SENT_S = 1.0
"""A request that was sent so long ago has reached the model's queue."""
_REFUSED = frozenset(("ModelNotFoundException", "ModelVersionNotFoundException", "InvalidKeyException", "BadCommand"))
"""What is not the model's handler's answer, and stays so."""
_WORKER_DIED = "Worker died."
_FAILURES = 3
"""A handler that fails so often to describe its model is not handlergen's."""
_NO_PLACE = "ServiceUnavailableException"
"""What TorchServe answers when the queue is full, or the model has no worker."""


class UnknownCommand(HandlergenError):
    """A worker's handler is not handlergen's, or was packed by an older version, which knows no commands."""


def command(describe: Describe, timeout: float | None = None, **commands: Any) -> dict[str, Any]:
    """Send a command to a model's workers; return the answer of the worker that got it.

    Args:
        timeout: Seconds to wait for the answer; None: for ever.

    Raises:
        UnknownCommand: The worker does not know commands.
        RequestFailed: TorchServe refuses it: there is no such model, or its queue is full (503).
        ServerError: No worker answered in time.
    """
    answer = describe({COMMAND: json.dumps(commands)}, timeout)
    if not isinstance(answer, dict) or "holding" not in answer:
        raise UnknownCommand("the model's archive was not packed by this version of handlergen")
    return answer


def patient_command(describe: Describe, deadline: float, **commands: Any) -> dict[str, Any]:
    """Send a command again while the model's queue is full, or when the worker that has it dies. Raises like `command`.

    Args:
        deadline: When to give up, on `time.monotonic`'s clock.
    """
    failures = 0
    while True:
        try:
            return command(describe, max(_POLL_S, deadline - time.monotonic()), **commands)
        except RequestFailed as error:
            kind, message = error_text(error.body)
            if kind in _REFUSED or time.monotonic() > deadline:
                raise
            failures += kind != _NO_PLACE and message != _WORKER_DIED
            if failures == _FAILURES:
                raise UnknownCommand(f"the model's handler cannot describe it: {error.message}") from error
        time.sleep(_POLL_S)


@contextmanager
def fence(describe: Describe, pids: Sequence[int], *, deadline: float, notice: Notice | None) -> Iterator[None]:
    """Let these workers hold a request each while the block runs, which ends them; if it fails, they go on.

    Args:
        pids: Process ids of the workers, which must be READY; the model must have others besides.
        deadline: When to give up, on `time.monotonic`'s clock. The block has at least `_SLACK_S` seconds.

    Raises:
        UnknownCommand: The workers do not know commands.
        ServerError: A worker is still busy at the deadline.
    """
    held = _Fence(describe, list(pids), deadline)
    try:
        held.build(notice)
        yield
    except BaseException:
        held.release()
        raise


class _Fence:
    """Requests that are sent again and again until each of the workers holds one."""

    def __init__(self, describe: Describe, pids: list[int], deadline: float) -> None:
        self._describe = describe
        self._pids = pids
        self._deadline = deadline
        self._complete = threading.Event()
        self._failure: Exception | None = None
        self._lock = threading.Lock()
        self._held_since: dict[int, float] = {}
        self._looked_at = time.monotonic()

    def build(self, notice: Notice | None) -> None:
        """Return when all workers hold a request."""
        self._start(self._look)
        began = time.monotonic()
        while not self._complete.wait(_POLL_S):
            now = time.monotonic()
            if now > self._deadline:
                raise ServerError(
                    f"{self._busy()} still busy with a request: no worker was ended",
                    hint="wait longer with --timeout, or end them at once, with the requests that they have in hand, "
                    "by --now",
                )
            if notice is not None and now - began > _BUSY_S:
                notice(f"waiting until {self._busy()} done with the request in hand")
                notice = None
        if self._failure is not None:
            raise self._failure

    def release(self) -> None:
        """Let the workers that still run answer."""
        self._complete.set()
        # Nobody waits for the answer: a request that has reached the queue gets its turn.
        with suppress(HandlergenError):
            command(self._describe, _SENT_S, release=self._pids)

    def _start(self, task: Callable[[], None]) -> None:
        threading.Thread(target=self._run, args=(task,), name="handlergen-fence", daemon=True).start()

    def _run(self, task: Callable[[], None]) -> None:
        try:
            task()
        except Exception as error:  # after the end: httpx's, when the client is closed
            if not self._complete.is_set() and time.monotonic() < self._deadline:
                self._failure = error
                self._complete.set()

    def _look(self) -> None:
        """Ask workers that are not to be ended who holds a request, until all that are to be ended do."""
        # What they may still hold for a client that was killed ends at an unknown time.
        patient_command(self._describe, self._deadline, release=self._pids)
        for _ in self._pids:
            self._start(self._hold)
        while not self._complete.wait(_POLL_S):
            holding = patient_command(self._describe, self._deadline)["holding"]
            now = time.monotonic()
            with self._lock:
                # One that holds a request now may do so since the last look.
                self._held_since = {pid: self._held_since.get(pid, self._looked_at) for pid in holding}
                self._looked_at = now
                lasting = {pid for pid, since in self._held_since.items() if now - since < _LEASE_S - _SLACK_S}
            if lasting.issuperset(self._pids):
                self._complete.set()

    def _hold(self) -> None:
        """Keep a request on its way to a worker that holds it."""
        while not self._complete.wait(_POLL_S):
            answer = patient_command(self._describe, self._deadline + _LEASE_S, hold=self._pids, seconds=_LEASE_S)
            with self._lock:
                self._held_since.pop(answer["pid"], None)

    def _busy(self) -> str:
        busy = sorted(set(self._pids) - self._held_since.keys())
        return f"worker process {busy[0]} is" if len(busy) == 1 else f"worker processes {', '.join(map(str, busy))} are"
