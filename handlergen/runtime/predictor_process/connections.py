"""The workers' connections, on the side of the predictor process: accepting, reading, and logging through them."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable

from ..codec.redaction import WithoutSecrets
from ..diagnostics import DescriptorHandler, logger
from .run_directory import ForeignProcess, StatusFile, check_peer
from .transport import Gone, Kind, Message, Refused, Transport, Welcome

_logger = logger()


class WorkerConnection:
    """A worker's connection.

    Attributes:
        number: Tells it from the others of this process's life.
        pid: The worker; 0 before it has said so.
        cancelled: Numbers of its requests that it does not wait for any more.
    """

    def __init__(self, number: int, transport: Transport) -> None:
        self.number = number
        self.transport = transport
        self.pid = 0
        self.closed = False
        self.cancelled: set[int] = set()

    def send(self, kind: int, number: int, value: object) -> None:
        """Send the worker something, unless it has gone.

        Raises:
            Exception: The value cannot be pickled.
        """
        if not self.closed:
            with contextlib.suppress(Gone):
                self.transport.send(kind, number, value)
        if kind in (Kind.ANSWER, Kind.UNSENDABLE):
            self.cancelled.discard(number)


class WorkerRequest:
    """A request of a worker's; the status file names it while it is in the user's code.

    Args:
        status: Of this process.
        worker: The connection of the worker that has sent it.
        number: As the worker counts.
    """

    def __init__(self, status: StatusFile, worker: WorkerConnection, number: int) -> None:
        self.worker = worker
        self.number = number
        self._status = status
        self._slot = -1

    def send(self, kind: int, value: object) -> None:
        """Send the worker a message about it. See `WorkerConnection.send`."""
        self.worker.send(kind, self.number, value)

    def abandoned(self) -> bool:
        """Return whether nobody waits for its answer any more."""
        return self.worker.closed or self.number in self.worker.cancelled

    def enter(self) -> None:
        """Note that it is in the user's code from now on."""
        if self._slot < 0:
            self._slot = self._status.take_slot(self.worker.number, self.number)

    def leave(self) -> None:
        """Note that it is not any more: if the process dies now, the request is predicted again."""
        slot, self._slot = self._slot, -1
        self._status.free_slot(slot)


class Connections:
    """Accepts workers, and reads what each of them sends on a thread of its own.

    Attributes:
        take: Called with each request, on the thread that has read it; must not wait. No worker sends one before
            `announce` has told it that the model is loaded.
        current: `current.request` is the one that this thread works on.
        seen: A worker has connected. A process that only looks whether this one listens is none.
        alone_since: When the last one went, or else when the first could come, `time.monotonic()`.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.take: Callable[[WorkerConnection, Message], None] = lambda _worker, _message: None
        self._connections: dict[int, WorkerConnection] = {}
        self._changing = threading.Lock()
        self._announced: tuple[int, Welcome | Refused] | None = None
        self._metrics: list[str] = []
        self._accepted = 0
        self.seen = False
        self.alone_since = time.monotonic()
        self.current = threading.local()
        threading.Thread(target=self._accept, name="handlergen-accept", daemon=True).start()

    def __len__(self) -> int:
        return len(self._connections)

    def workers(self) -> int:
        """Return how many workers are connected."""
        return len({each.pid for each in self._named()})

    def announce(self, kind: int, value: Welcome | Refused) -> None:
        """Tell everybody, those who come later too, whether the model is loaded."""
        with self._changing:
            self._announced = kind, value
            connections = self._named()
        for connection in connections:
            connection.send(kind, connection.number, value)

    def log(self, logger: str, level: int, text: str) -> bool:
        """Send a log record to the worker whose request it concerns, else to any; return whether there is one."""
        request: WorkerRequest | None = getattr(self.current, "request", None)
        if request is not None and not request.worker.closed:
            connection: WorkerConnection | None = request.worker
        else:
            connection = next(iter(self._named()), None)
        if connection is None:
            return False
        connection.send(Kind.LOG, 0, (logger, level, text))
        return True

    def print_metrics(self, text: str) -> None:
        """Let a worker print lines of metrics; when there is none, the next one that connects."""
        with self._changing:
            self._metrics.append(text)
            connection = next(iter(self._named()), None)
            if connection is not None:
                texts, self._metrics = self._metrics, []
                connection.send(Kind.METRICS, 0, "".join(texts))

    def close(self) -> None:
        """Accept no more workers."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()

    def _named(self) -> list[WorkerConnection]:
        return [each for each in list(self._connections.values()) if each.pid and not each.closed]

    def _accept(self) -> None:
        while self._listener.fileno() >= 0:
            try:
                connection, _address = self._listener.accept()
            except OSError:  # closed; or too many open files: who waits keeps waiting
                time.sleep(0.01)
                continue
            try:
                check_peer(connection)
            except ForeignProcess:
                continue
            self._accepted += 1
            worker = WorkerConnection(self._accepted, Transport(connection))
            self._connections[worker.number] = worker
            threading.Thread(target=self._read, args=(worker,), name="handlergen-reader", daemon=True).start()

    def _read(self, worker: WorkerConnection) -> None:
        try:
            while True:
                self._hand_on(worker, worker.transport.receive())
        except Gone:
            pass
        except Exception:  # the other workers are served on
            _logger.exception("the connection of worker %d is closed", worker.pid)
        worker.closed = True
        if worker.pid:
            self.alone_since = time.monotonic()
        del self._connections[worker.number]
        worker.transport.close()

    def _hand_on(self, worker: WorkerConnection, message: Message) -> None:
        if message.kind == Kind.HELLO:
            with self._changing:
                worker.pid, self.seen = message.value, True
                announced = self._announced
            if announced is not None:
                worker.send(announced[0], worker.number, announced[1])
        elif message.kind == Kind.CANCEL:
            worker.cancelled.add(message.number)
        else:
            self.take(worker, message)


class WorkerLogHandler(DescriptorHandler):
    """Sends log records to a worker, which logs them into TorchServe's model log; prints them without a worker."""

    def __init__(self, connections: Connections) -> None:
        super().__init__(2)
        self._connections = connections
        # Whatever is logged: the module's own loggers have no filter.
        self.addFilter(WithoutSecrets())

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if not self._connections.log(record.name, record.levelno, self.format(record)):
                super().emit(record)
        except Exception:
            self.handleError(record)
