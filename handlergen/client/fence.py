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
from typing import Any

from handlergen.errors import HandlergenError, RequestFailed, ServerError
from handlergen.runtime.codec.errors import error_text
from handlergen.runtime.torchserve.control import COMMAND

Describe = Callable[[Mapping[str, str]], Any]
"""Sends `GET /models/NAME?customized=true` with these headers; returns what one worker answered, as JSON."""

Notice = Callable[[str], None]
"""Receives a sentence for the user when something takes long."""

_LEASE_S = 30.0
"""A worker answers what it holds after this time, so that a client that was killed does not leave it idle."""
_SLACK_S = 10.0
"""A fence must still last so long when it is used."""
_POLL_S = 0.02
_BUSY_S = 5.0
_NO_PLACE = "ServiceUnavailableException"
"""What TorchServe answers when the queue is full, or the model has no worker."""
_SETTLED_S = 0.5
"""A request that was sent so long ago has reached the model's queue."""


class UnknownCommand(HandlergenError):
    """A worker's handler is not handlergen's, or was packed by an older version, which knows no commands."""


def command(describe: Describe, **commands: Any) -> dict[str, Any]:
    """Send a command to a model's workers; return the answer of the worker that got it.

    Raises:
        UnknownCommand: The worker does not know commands.
        RequestFailed: TorchServe refuses it: there is no such model, or its queue is full (503).
    """
    answer = describe({COMMAND: json.dumps(commands)})
    if not isinstance(answer, dict) or "holding" not in answer:
        raise UnknownCommand("the model's archive was not packed by this version of handlergen")
    return answer


def knows_commands(describe: Describe) -> bool:
    """Return whether a model's workers know commands; wait for a place in its queue."""
    while True:
        try:
            command(describe)
            return True
        except UnknownCommand:
            return False
        except RequestFailed as error:
            if error.status < 500:
                raise
            if error_text(error.body)[0] != _NO_PLACE:  # a handler of another kind failed
                return False
        time.sleep(_POLL_S)


@contextmanager
def fence(
    describe: Describe, pids: Sequence[int], *, deadline: float, alone: Callable[[], bool] | None, notice: Notice | None
) -> Iterator[Callable[[], int]]:
    """Let these workers hold a request each while the block runs; afterwards, those that still run go on.

    The block has `_SLACK_S` seconds. It gets a function that returns how many of the requests are unanswered.

    Args:
        pids: Process ids of the workers, which must be READY.
        deadline: When to give up, on `time.monotonic`'s clock.
        alone: Given where these are all workers of the model: returns whether the model's queue is empty.

    Raises:
        UnknownCommand: The workers do not know commands.
        ServerError: A worker is still busy at the deadline.
    """
    held = _Fence(describe, list(pids))
    try:
        held.build(deadline, alone, notice)
        held.complete.set()
        yield held.unanswered
    finally:
        held.release()


class _Fence:
    """Requests that are sent again and again until each of the workers holds one."""

    def __init__(self, describe: Describe, pids: list[int]) -> None:
        self._describe = describe
        self._pids = pids
        self.complete = threading.Event()
        self._failure: HandlergenError | None = None
        self._lock = threading.Lock()
        self._held_since: dict[int, float] = {}
        self._looked_at = time.monotonic()
        self._unanswered_since: dict[int, float] = {}

    def build(self, deadline: float, alone: Callable[[], bool] | None, notice: Notice | None) -> None:
        """Return when all workers hold a request."""
        for number in range(len(self._pids)):
            threading.Thread(target=self._ask, args=(number,), name="handlergen-fence", daemon=True).start()
        began = time.monotonic()
        while not (self._all_in_hand(alone) if alone else self._all_hold()):
            if self._failure is not None:
                raise self._failure
            now = time.monotonic()
            if now > deadline:
                raise ServerError(
                    f"{self._busy()} still busy with a request: no worker was ended",
                    hint="wait longer with --timeout, or end them at once, with the requests that they have in hand, "
                    "by --now",
                )
            if notice is not None and now - began > _BUSY_S:
                notice(f"waiting until {self._busy()} done with the request in hand")
                notice = None
            time.sleep(_POLL_S)

    def unanswered(self) -> int:
        return len(self._unanswered_since)

    def release(self) -> None:
        """Let the workers that still run answer."""
        self.complete.set()
        if self._held_since:
            with suppress(HandlergenError):
                command(self._describe, release=self._pids)

    def _ask(self, number: int) -> None:
        """Keep one request on its way to a worker that holds it."""
        while not self.complete.is_set():
            self._unanswered_since[number] = time.monotonic()
            try:
                answer = command(self._describe, hold=self._pids, seconds=_LEASE_S)
                with self._lock:
                    self._held_since.pop(answer["pid"], None)
            except HandlergenError as error:
                # 503: the queue is full; other 5xx: the worker that held it has died
                if not isinstance(error, RequestFailed) or error.status < 500:
                    self._failure = error
                    return
            finally:
                self._unanswered_since.pop(number, None)
            self.complete.wait(_POLL_S)

    def _all_hold(self) -> bool:
        """Ask a worker that is not to be ended who holds a request."""
        try:
            holding = command(self._describe)["holding"]
        except RequestFailed as error:
            if error.status < 500:
                raise
            return False
        now = time.monotonic()
        with self._lock:
            # One that holds a request now may do so since the last look.
            self._held_since = {pid: self._held_since.get(pid, self._looked_at) for pid in holding}
            self._looked_at = now
            lasting = {pid for pid, since in self._held_since.items() if now - since < _LEASE_S - _SLACK_S}
        return lasting.issuperset(self._pids)

    def _all_in_hand(self, alone: Callable[[], bool]) -> bool:
        """Nobody can be asked: the requests are in hand when they are unanswered and no longer in the queue."""
        sent = dict(self._unanswered_since)
        settled = time.monotonic() - _SETTLED_S
        if len(sent) < len(self._pids) or max(sent.values()) > settled or not alone():
            return False
        return sent == self._unanswered_since

    def _busy(self) -> str:
        busy = sorted(set(self._pids) - self._held_since.keys())
        return f"worker process {busy[0]} is" if len(busy) == 1 else f"worker processes {', '.join(map(str, busy))} are"
