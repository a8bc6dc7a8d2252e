"""A worker's connection to the predictor process: requests go out, answers come back, whatever dies in between.

A request that was in the user's code when the process died has failed. One that waited is sent again, to the next
process.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..codec.errors import LockTimeout, is_out_of_memory
from ..diagnostics import logger, printer
from ..environment import REPORT, Unsuitable
from ..pipeline.backend import BackendOptions
from ..server_process import server_of_this_process
from .launcher import Launcher, Unavailable
from .run_directory import LOADING, STATES, ForeignProcess, Identity, RunDirectory, StatusFile
from .transport import Gone, Kind, Message, Refused, Transport, Unreadable, describe_error

_TICK_S = 0.25
_GRACE_S = 0.5
"""What the predictor process has, beyond a deadline, to keep it itself."""
_MOST_SENDINGS = 3
_WARN_EVERY = 40


class CannotLoad(Unsuitable):
    """The predictor process could not load the model.

    Args:
        reason: One line.
        user_traceback: The user's own traceback; empty without one.
    """

    def __init__(self, reason: str, user_traceback: str) -> None:
        super().__init__(reason)
        self.user_traceback = user_traceback


class PredictorDied(Exception):
    """The predictor process died while it had this request."""


class PredictTimeout(Exception):
    """The predictor process was killed, because predict took longer than `predict_timeout_s`."""

    status_code = 504

    def __init__(self, limit_s: float) -> None:
        self.detail = f"The model took longer than {limit_s:g} s"
        super().__init__(self.detail)


class UnsendableValue(Exception):
    """A value of a request or of its answer cannot be pickled, or not be unpickled at the other end."""


class Call:
    """One request of a worker's to the predictor process.

    No `concurrent.futures.Future`: its condition costs a request 25 µs, a tenth of what the process adds.

    Args:
        kind, value: Of the message.
        settled: Called once, with the call, when `result` or `error` is there; on the reader thread, mostly.
        on_chunk: Called with the value of each CHUNK, on the reader thread; what it raises cancels the call and becomes
            its error.
        ready_ns: Since when it may be waiting for the device; None for a call that does not.
        within_s: How long such a call may take, in seconds.

    Attributes:
        result: The value of the ANSWER.
        error: Why there is none.
    """

    def __init__(
        self,
        kind: int,
        value: Any = None,
        *,
        settled: Callable[[Call], None],
        on_chunk: Callable[[Any], None] | None = None,
        ready_ns: int | None = None,
        within_s: float = 10.0,
    ) -> None:
        self.kind = kind
        self.value = value
        self.on_chunk = on_chunk
        self.waiting_ns = ready_ns
        self.deadline = time.monotonic() + within_s
        self.number = 0
        self.sendings = 0
        self.begun = False  # a part of its answer is out: it cannot be done again
        self.result: Any = None
        self.error: BaseException | None = None
        self._settled = settled

    def settle(self, result: Any = None, error: BaseException | None = None) -> None:
        self.result, self.error = result, error
        self._settled(self)

    def fail(self, error: BaseException) -> None:
        self.settle(error=error)


@dataclass
class _Connection:
    transport: Transport
    status: StatusFile
    number: int
    pid: int
    pending: dict[int, Call] = field(default_factory=dict)
    """By number. Whoever pops a call settles it."""

    def in_user_code(self, number: int) -> bool:
        return self.status.holds(self.number, number)


class PredictorClient:
    """The connection, a thread that reads it, and one that keeps deadlines and connects again.

    Attributes:
        device_key: The device, as in the key of its lock; once the model is loaded.
        is_healthy: Calls the module's `is_healthy` in the predictor process; None without one.
    """

    def __init__(self, options: BackendOptions) -> None:
        settings = self._settings = options.bundle.settings
        model_dir, gpu_id = options.model_dir, options.gpu_id
        self._logger = logger()
        identity = Identity(
            *server_of_this_process(),
            settings.name,
            settings.version,
            f"{model_dir}:{model_dir.stat().st_ino}",
            "cpu" if gpu_id is None else f"gpu {gpu_id}",
        )
        self._directory = RunDirectory(identity)
        arguments = {
            "bundle": options.bundle.to_json(),
            "model_dir": str(model_dir),
            "gpu_id": gpu_id,
            "batch_size": options.batch_size,
        }
        self._launcher = Launcher(self._directory, arguments, self._logger)
        # From here on this process sees no GPU: it could only waste its memory with a context of its own.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)
        self.is_healthy: Callable[[Mapping[str, Any]], Any] | None = None
        if "is_healthy" in options.bundle.contract.hooks:
            self.is_healthy = lambda _values: self.ask(Kind.HEALTH)
        self._print_metrics = printer()
        self._logged = ""
        self._unsendable = ""
        self._connection: _Connection | None = None
        self._changing = threading.RLock()
        self._numbers = 0
        self._ended = threading.Event()
        self.device_key = ""

    def open(self) -> None:
        """Connect for the first time; wait until the model is loaded.

        Raises:
            CannotLoad: The model cannot be loaded.
        """
        try:
            with self._changing:
                self._connected(math.inf)
        except Unavailable as error:
            raise CannotLoad(str(error), error.traceback) from None
        threading.Thread(target=self._look_after, name="handlergen-client", daemon=True).start()

    def close(self) -> None:
        """End the connection. The process ends when no worker is connected to it any more."""
        self._ended.set()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.transport.close()

    def send(self, call: Call) -> None:
        """Send a call. It may be done when this returns: nobody can take it, or its value cannot be pickled."""
        left = min(max(0.0, self._deadline(call) - time.monotonic()), threading.TIMEOUT_MAX)
        if not self._changing.acquire(timeout=left):
            call.fail(Unavailable("the model is still being loaded"))
            return
        try:
            self._numbers += 1
            call.number = self._numbers
            self._place(call)
        finally:
            self._changing.release()

    def ask(self, kind: int) -> Any:
        """Send a call that is no client's request; return its answer, or raise why there is none."""
        settled: queue.SimpleQueue[Call] = queue.SimpleQueue()
        self.send(Call(kind, settled=settled.put))
        call = settled.get()
        if call.error is not None:
            raise call.error
        return call.result

    def describe(self) -> dict[str, Any]:
        """Return what the predictor process says of itself: `predictor`, and `types` if it has the stages."""
        try:
            answer: dict[str, Any] = self.ask(Kind.DESCRIBE)
            answer["predictor"]["restarts"] = self._directory.starts().restarts
        except Exception as error:
            about = {"placement": "process", "stages": self._settings.stages, "unavailable": str(error)}
            answer = {"predictor": about}
        if self._unsendable:
            answer["predictor"].update(stages="predictor", stages_because=self._unsendable)
        return answer

    def note_unsendable(self, reason: str) -> None:
        """Note, for `describe` and `handlergen status`, why this worker sends whole requests from now on."""
        self._unsendable = reason
        with contextlib.suppress(OSError):  # a full disk: only `status` does not say so then
            self._directory.note_unsendable(reason)

    def _place(self, call: Call) -> None:
        """Give a call to the process that runs; to the next one, if it has just died."""
        try:
            connection = self._connected(self._deadline(call))
        except Unavailable as error:
            self._log_once(error)
            call.fail(error)
            return
        connection.pending[call.number] = call
        call.sendings += 1
        try:
            connection.transport.send(call.kind, call.number, call.value)
        except Gone:
            self._recover(connection)  # which places the call again, or settles it
        except Exception as error:
            if connection.pending.pop(call.number, None) is None:
                return
            if not is_out_of_memory(error):
                reason = f"what preprocess returned cannot be sent to the predictor process ({describe_error(error)})"
                error = UnsendableValue(reason)
            call.fail(error)

    def _connected(self, deadline: float) -> _Connection:
        """Return the connection, made if there is none, until `deadline` (`time.monotonic()`); under the lock."""
        while (connection := self._connection) is None:
            try:
                transport, status = self._launcher.connect(deadline)
            except (OSError, ForeignProcess) as error:  # a read-only lock directory, too many open files
                raise Unavailable(f"its process cannot be reached: {error}") from error
            try:
                transport.send(Kind.HELLO, 0, os.getpid())
                welcome = self._welcome(transport, deadline)
            except Gone:
                transport.close()
                if status.look().state == STATES[LOADING]:
                    raise self._launcher.cannot_load() from None
                time.sleep(0.01)  # it had loaded long ago, and is just dying: the next one takes its place
                continue
            except BaseException:
                transport.close()
                raise
            self.device_key = welcome.value.device_key
            connection = self._connection = _Connection(transport, status, welcome.number, welcome.value.pid)
            threading.Thread(target=self._read, args=(connection,), name="handlergen-reader", daemon=True).start()
        return connection

    def _welcome(self, transport: Transport, deadline: float) -> Message:
        while not self._ended.is_set():
            if transport.wait(_TICK_S):
                message = transport.receive()
                if message.kind == Kind.WELCOME:
                    return message
                if message.kind == Kind.REFUSED:
                    refused: Refused = message.value
                    raise Unavailable(refused.reason, traceback=refused.traceback)
                self._print(message)
            elif time.monotonic() > deadline:
                raise Unavailable("the model is still being loaded")
        raise Unavailable("the worker has ended")

    def _log_once(self, error: Unavailable) -> None:
        if error.traceback and error.traceback != self._logged:
            self._logged = error.traceback
            self._logger.error("%s%s\n%s", REPORT, error, error.traceback)

    def _read(self, connection: _Connection) -> None:
        """Take what the process sends, on a thread of its own, until the process is gone."""
        try:
            while True:
                self._take(connection, connection.transport.receive())
        except Gone:
            pass
        except Exception:
            self._logger.exception("the connection to the predictor process is closed")
        self._recover(connection)

    def _take(self, connection: _Connection, message: Message) -> None:
        kind, number, value = message
        if kind in (Kind.LOG, Kind.METRICS):
            self._print(message)
            return
        if kind == Kind.CHUNK:
            call = connection.pending.get(number)
            if call is not None and call.on_chunk is not None:
                call.begun = True
                try:
                    call.on_chunk(value)
                except Exception as error:
                    self._cancel(connection, call, error)
            return
        call = connection.pending.pop(number, None)
        if call is None:  # cancelled meanwhile
            return
        if isinstance(value, Unreadable) and is_out_of_memory(value.error):
            call.fail(value.error)
        elif isinstance(value, Unreadable):
            reason = f"what predict returned cannot be read in the worker ({describe_error(value.error)})"
            call.fail(UnsendableValue(reason))
        elif kind == Kind.UNSENDABLE:
            call.fail(UnsendableValue(value))
        elif kind == Kind.ANSWER:
            call.settle(value)

    def _print(self, message: Message) -> None:
        """Hand a log record, or metrics, on to TorchServe."""
        if message.kind == Kind.LOG:
            name, level, text = message.value
            logger(name).log(level, "%s", text)
        elif message.kind == Kind.METRICS:
            self._print_metrics(message.value)

    def _cancel(self, connection: _Connection, call: Call, error: BaseException) -> None:
        if connection.pending.pop(call.number, None) is None:
            return
        with contextlib.suppress(Gone):
            connection.transport.send(Kind.CANCEL, call.number)
        call.fail(error)

    def _recover(self, connection: _Connection) -> None:
        """Settle the calls that a dead process had in the user's code, and give the others to the next one."""
        with self._changing:
            if connection is not self._connection:
                return
            self._connection = None
            connection.transport.close()
            waiting = []
            limit, status = self._settings.predict_timeout_s, connection.status
            died: Exception = PredictorDied(f"the predictor process {connection.pid} died while it had this request")
            if status.timed_out and limit is not None:
                died = PredictTimeout(limit)
            for number in list(connection.pending):
                call = connection.pending.pop(number, None)
                if call is None:
                    continue
                if connection.in_user_code(number) or call.begun or call.sendings >= _MOST_SENDINGS:
                    call.fail(died)
                else:
                    waiting.append(call)
            for call in waiting:
                self._place(call)

    def _look_after(self) -> None:
        """Keep deadlines; connect again, so that the next request finds a process that has loaded the model."""
        turn = 0
        while not self._ended.wait(_TICK_S):
            turn += 1
            try:
                connection = self._connection
                if connection is not None:
                    self._keep_deadlines(connection)
                elif self._changing.acquire(blocking=False):
                    try:
                        self._connected(math.inf)
                    except Unavailable as error:
                        self._log_once(error)
                    finally:
                        self._changing.release()
            except Exception as error:  # a full disk, say: it may pass
                if turn % _WARN_EVERY == 0:
                    self._logger.warning("looking after the predictor process failed: %s", error)

    def _keep_deadlines(self, connection: _Connection) -> None:
        """See that no call waits beyond its deadline, and no predict takes longer than it may."""
        now = time.monotonic_ns()
        seen = connection.status.look()
        limit = self._settings.predict_timeout_s
        if limit is not None and seen.state == "predicting" and seen.since_s > limit + _GRACE_S:
            self._logger.error(
                "predict has taken longer than predict_timeout_s (%g s): predictor process %d is killed",
                limit,
                connection.pid,
            )
            connection.status.note_timeout()
            with contextlib.suppress(ProcessLookupError):
                os.kill(connection.pid, signal.SIGKILL)
            return
        lock_timeout_s = self._settings.lock_timeout_s
        for call in list(connection.pending.values()):
            if call.waiting_ns is None:
                if time.monotonic() > call.deadline:
                    reason = f"predictor process {seen.pid} does not answer"
                    self._cancel(connection, call, Unavailable(reason))
            elif connection.in_user_code(call.number):
                call.waiting_ns = now
            elif (now - call.waiting_ns) / 1e9 > lock_timeout_s + _GRACE_S:
                reason = (
                    f"the device was not free within {lock_timeout_s:g} s (predictor process {seen.pid} has been "
                    f"{seen.state} for {seen.since_s:.1f} s)"
                )
                retry_after_s = max(1, math.ceil(lock_timeout_s / 10))
                self._cancel(connection, call, LockTimeout(reason, retry_after_s=retry_after_s))

    def _deadline(self, call: Call) -> float:
        if call.waiting_ns is None:
            return call.deadline
        return call.waiting_ns / 1e9 + self._settings.lock_timeout_s
