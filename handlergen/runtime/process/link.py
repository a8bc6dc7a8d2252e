"""A worker's connection to the predictor process: requests go out, answers come back, whatever dies in between.

A request that was in the user's code when the process died has failed. One that waited is sent again, to the next
process. The connection is used by one batch of requests at a time.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable

from ..failures import LockTimeout
from ..sockets import hung_up
from .calls import Call, CannotCross, PredictorDied, PredictTimeout
from .channel import Channel, Gone, Message, Unreadable
from .home import NotOurs
from .page import LOADING, STATES, Page
from .protocol import ANSWER, CANCEL, CHUNK, HELLO, REFUSED, WELCOME, Welcome
from .start import Starter, Unavailable

_SLICE_S = 0.25
_GRACE_S = 0.5
"""What the predictor process has, beyond a deadline, to keep it itself."""
_MOST_SENDINGS = 3


class _Connection:
    """One life of the predictor process, seen from here."""

    def __init__(self, channel: Channel, page: Page, welcome: Welcome) -> None:
        self.channel = channel
        self.page = page
        self.welcome = welcome
        self.pending: dict[int, Call] = {}


class Link:
    """What the worker holds.

    Args:
        starter: Finds or starts the process.
        lock_timeout_s: How long a call may wait for the device, in seconds.
        predict_timeout_s: How long the user's predict may take; the process is killed when it takes longer.
        logger: Told of deaths.

    Attributes:
        opened: `open` has connected it once.
        welcomed: Called with each welcome, the next process's too, before anything is sent.
    """

    def __init__(
        self,
        starter: Starter,
        *,
        lock_timeout_s: float,
        predict_timeout_s: float | None,
        logger: logging.Logger,
    ) -> None:
        self._starter = starter
        self._lock_timeout_s = lock_timeout_s
        self._predict_timeout_s = predict_timeout_s
        self._logger = logger
        self._connection: _Connection | None = None
        self._changing = threading.RLock()
        self._numbers = 0
        self._looked = 0.0
        self.opened = False
        self.welcomed: Callable[[Welcome], None] = lambda _welcome: None

    def open(self) -> Welcome:
        """Connect for the first time; waits until the model is loaded.

        Raises:
            Unavailable: It cannot be loaded; says why.
        """
        with self._changing:
            welcome = self._connected(math.inf).welcome
        self.opened = True
        return welcome

    def run(self, call: Call) -> None:
        """Send a call and wait until it is done; by the only thread that uses the link meanwhile."""
        self.send(call)
        while not call.done:
            self.receive()

    def send(self, call: Call) -> None:
        """Send a call. It may be done when this returns: nobody can take it, or it cannot be pickled."""
        with self._changing:
            self._numbers += 1
            call.number = self._numbers
            self._place(call)

    def receive(self) -> None:
        """Take what has come, waiting a quarter of a second at most; one thread at a time."""
        connection = self._connection
        if connection is None:
            return
        try:
            messages = connection.channel.receive()
        except Gone:
            self._recover(connection)
            return
        for message in messages:
            self._take(connection, message)
        if not messages or time.monotonic() - self._looked > _SLICE_S:
            self._watch(connection)

    def mend(self) -> None:
        """Connect again if the process has died, while nothing is under way; quietly."""
        if not self._changing.acquire(blocking=False):
            return
        try:
            connection = self._connection
            if connection is not None and not connection.pending and hung_up(connection.channel.fileno()):
                self._recover(connection)
            if self._connection is None:
                with contextlib.suppress(Unavailable):
                    self._connected(time.monotonic())
        finally:
            self._changing.release()

    def close(self) -> None:
        """End the connection."""
        with self._changing:
            if self._connection is not None:
                self._connection.channel.close()
                self._connection = None

    def _place(self, call: Call) -> None:
        """Give a call to the process that runs; to the next one, if it has just died."""
        while not call.done:
            try:
                connection = self._connected(self._deadline(call))
            except Unavailable as error:
                call.finish(None, error)
                return
            connection.pending[call.number] = call
            call.sendings += 1
            try:
                connection.channel.send(call.kind, call.number, call.value)
                return
            except Gone:
                self._recover(connection)  # which places it again, or settles it
                return
            except Exception as error:
                connection.pending.pop(call.number, None)
                told = CannotCross(
                    f"what preprocess returned cannot be sent to the predictor process: {error}; "
                    "write stages: predictor"
                )
                told.__cause__ = error  # which tells a lack of memory from the rest
                call.finish(None, told.with_traceback(None))

    def _connected(self, deadline: float) -> _Connection:
        """The connection, made if there is none.

        Args:
            deadline: `time.monotonic()` value after which to give up waiting for a process.
        """
        while self._connection is None:
            try:
                channel, page = self._starter.connect(deadline)
            except (
                OSError,
                NotOurs,
            ) as error:  # the lock directory is read-only, no more files may be opened
                raise Unavailable(f"its process cannot be reached: {error}") from error
            channel.set_wait(_SLICE_S)
            try:
                channel.send(HELLO, 0, os.getpid())
                self._connection = _Connection(channel, page, self._welcomed(channel, deadline))
                self.welcomed(self._connection.welcome)
            except Gone:
                channel.close()
                if page.look().state == STATES[LOADING]:
                    raise Unavailable(
                        self._starter.reason() or "the predictor process ended while it loaded"
                    ) from None
                time.sleep(0.01)  # it had loaded long ago, and is just dying: the next one takes its place
            except BaseException:
                channel.close()
                raise
        return self._connection

    def _welcomed(self, channel: Channel, deadline: float) -> Welcome:
        while True:
            for message in channel.receive():
                if message.kind == WELCOME:
                    welcome: Welcome = message.value
                    return welcome
                if message.kind == REFUSED:
                    raise Unavailable(message.value)
            if time.monotonic() > deadline:
                raise Unavailable("the model is still being loaded")

    def _take(self, connection: _Connection, message: Message) -> None:
        call = connection.pending.get(message.number)
        if call is None:  # cancelled meanwhile
            return
        value = message.value
        if isinstance(value, Unreadable):
            error = value.error
            connection.pending.pop(message.number, None)
            call.finish(None, RuntimeError(f"the predictor process's answer cannot be read: {error}"))
        elif message.kind == ANSWER:
            connection.pending.pop(message.number, None)
            call.finish(value)
        elif message.kind == CHUNK and call.on_chunk is not None:
            call.begun = True
            try:
                call.on_chunk(value)
            except Exception as error:
                self._cancel(connection, call, error)

    def _cancel(self, connection: _Connection, call: Call, error: BaseException) -> None:
        connection.pending.pop(call.number, None)
        with contextlib.suppress(Gone):
            connection.channel.send(CANCEL, call.number)
        call.finish(None, error)

    def _watch(self, connection: _Connection) -> None:
        """See that no call waits beyond its deadline, and no predict beyond its own."""
        self._looked = time.monotonic()
        now = time.monotonic_ns()
        picture = connection.page.look()
        limit = self._predict_timeout_s
        if limit is not None and picture.state == "predicting" and picture.since_s > limit + _GRACE_S:
            self._kill(connection)
            return
        for call in list(connection.pending.values()):
            if call.waiting_ns is None:
                if time.monotonic() > call.deadline:
                    told = f"predictor process {picture.pid} does not answer"
                    self._cancel(connection, call, Unavailable(told))
            elif connection.page.holds(connection.welcome.peer, call.number):
                call.waiting_ns = now
            elif (now - call.waiting_ns) / 1e9 > self._lock_timeout_s + _GRACE_S:
                told = (
                    f"the device was not free within {self._lock_timeout_s:g} s (predictor process "
                    f"{picture.pid} has been {picture.state} for {picture.since_s:.1f} s)"
                )
                retry_after_s = max(1, math.ceil(self._lock_timeout_s / 10))
                self._cancel(connection, call, LockTimeout(told, retry_after_s=retry_after_s))

    def _kill(self, connection: _Connection) -> None:
        pid = connection.welcome.pid
        self._logger.error(
            "predict has taken longer than predict_timeout_s (%g s): predictor process %d is killed",
            self._predict_timeout_s,
            pid,
        )
        connection.page.condemn()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def _recover(self, connection: _Connection) -> None:
        """The process is gone: settle the calls that it had, and give the others to the next one."""
        with self._changing:
            if connection is not self._connection:
                return
            self._connection = None
            connection.channel.close()
            page, peer = connection.page, connection.welcome.peer
            waiting = []
            for number, call in connection.pending.items():
                if page.holds(peer, number) or call.begun or call.sendings >= _MOST_SENDINGS:
                    call.finish(None, self._death(page))
                else:
                    waiting.append(call)
            connection.pending = {}
            for call in waiting:
                self._place(call)

    def _death(self, page: Page) -> BaseException:
        if page.timed_out and self._predict_timeout_s is not None:
            return PredictTimeout(self._predict_timeout_s)
        return PredictorDied(f"the predictor process {page.look().pid} died while it had this request")

    def _deadline(self, call: Call) -> float:
        if call.waiting_ns is None:
            return call.deadline
        return call.waiting_ns / 1e9 + self._lock_timeout_s
