"""Let a server answer what it has begun, and begin nothing new, before its processes are ended.

TorchServe ends as soon as it gets SIGTERM: it closes its connections and kills its workers, whatever they are doing
(ModelServer.stop). So the workers are told to refuse requests first (`runtime/torchserve/control`). TorchServe gives a
model's requests and these commands to its workers in the order of their arrival (Model.pollBatch): a worker that
answers a command has answered all that it was given before.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from handlergen.client import Client, ModelStatus
from handlergen.client.fence import UnknownCommand
from handlergen.errors import HandlergenError, ServerError
from handlergen.server.properties import ServerSettings

_POLL_S = 0.05
_STILL_REFUSED_S = 10.0
"""Workers refuse for so much longer than the drain: until TorchServe has ended them."""
_SENT_S = 0.2
"""TorchServe passes the last answers on in this time, on a busy machine too."""
_EMPTY_READINGS = 3


@dataclass(frozen=True)
class StopReport:
    """What became of the requests of a server that was stopped.

    Attributes:
        drain_s: Seconds that its requests had at most.
        busy: Number of workers that were still busy then, by model: `NAME VERSION`. What they had in hand, and what
            waited for them, was not answered.
        not_refusing: Models whose workers know no commands: other handlers, and archives that an earlier version of
            handlergen packed. Their queues were empty; what their workers had in hand was perhaps not answered.
        unread: Number of connections whose client had not received all of its answer.
        failure: Why nothing was drained: the server did not answer, or its configuration cannot be read.
    """

    drain_s: float
    busy: Mapping[str, int] = field(default_factory=dict)
    not_refusing: tuple[str, ...] = ()
    unread: int = 0
    failure: str | None = None


def drain_server(client: Client, seconds: float) -> StopReport:
    """Tell every worker of a server to refuse requests, and wait until what they had before is answered.

    Requests that are in a model's queue now are answered; later ones get 503 `Stopping`. The workers go on to
    refuse until the server ends, or some seconds after the drain if it does not.

    Args:
        client: Knows the server. The drain waits as long as its timeout for a server that does not answer.
        seconds: How long to wait at most.
    """
    deadline = time.monotonic() + seconds
    over = threading.Event()
    try:
        try:
            statuses = client.status()
        except HandlergenError as error:
            return StopReport(seconds, failure=error.message)
        models = [_Model(client, status, deadline, over) for status in statuses if status.ready_workers]
        for model in models:
            model.start()
        for model in models:
            model.join(max(0.0, deadline - time.monotonic()))
        if models:
            time.sleep(_SENT_S)
        while (unread := _unread(client.settings)) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
    finally:
        over.set()
    return StopReport(
        seconds,
        unread=unread,
        busy={model.title: len(model.busy) for model in models if model.busy},
        not_refusing=tuple(model.title for model in models if not model.knows_commands),
    )


class _Model(threading.Thread):
    """Drains one version of a model: a long queue of one must not delay the others."""

    def __init__(self, client: Client, status: ModelStatus, deadline: float, over: threading.Event) -> None:
        super().__init__(name="handlergen-drain", daemon=True)
        self.title = f"{status.name} {status.version}"
        self.busy = _ready(status)
        self.knows_commands = True
        self._client = client
        self._named: dict[str, str] = {"name": status.name, "version": status.version}
        self._deadline = deadline
        self._over = over

    def run(self) -> None:
        with suppress(HandlergenError):  # the server or the model is no more, or the time is up
            try:
                self._command()  # what arrived before is in a worker's hands when this is answered
            except UnknownCommand:
                self._empty_queue()
            else:
                self._refuse()
            self.busy = set()

    def _refuse(self) -> None:
        """Return when every worker refuses requests, and has answered what it had."""
        idle: set[int] = set()
        refusing = False
        while self.busy and not self._over.is_set():
            left = max(0.0, self._deadline - time.monotonic())
            answer = self._command(**{} if refusing else {"refuse": left + _STILL_REFUSED_S})
            refusing = answer["refusing"]
            found = refusing and answer["pid"] not in idle
            if found:
                idle.add(answer["pid"])
            with suppress(ServerError):  # no answer in time
                # Each time: one that died is not waited for, and one that has just started may have begun a request.
                self.busy = _ready(self._client.describe(**self._named)) - idle
            if not found:
                self._over.wait(_POLL_S)

    def _command(self, **commands: Any) -> dict[str, Any]:
        return self._client.command(**self._named, wait_s=self._deadline - time.monotonic(), **commands)

    def _empty_queue(self) -> None:
        """Return when the queue was empty several times: what the workers have in hand cannot be seen."""
        empty = 0
        while empty < _EMPTY_READINGS and not self._over.is_set():
            empty = 0 if self._client.describe(**self._named).queue_waiting else empty + 1
            self.knows_commands = False
            self._over.wait(_POLL_S)


def _unread(settings: ServerSettings) -> int:
    """Return how many connections to the server hold data that their client's system has not acknowledged.

    TorchServe resets its connections when it ends (their SO_LINGER is 0), and such data is lost. See proc_net_tcp(5),
    `tx_queue`; 0 where there is no /proc.
    """
    addresses = settings.addresses()
    ports = {addresses[purpose][1] for purpose in ("inference", "gRPC inference")}
    found = 0
    for table in ("tcp", "tcp6"):  # Java listens on IPv6 sockets for IPv4, too
        with suppress(OSError):
            for line in Path("/proc/net", table).read_text("utf-8").splitlines()[1:]:
                _, local, _, _, queues, *_ = line.split()
                found += int(local.rpartition(":")[2], 16) in ports and int(queues.partition(":")[0], 16) > 0
    return found


def _ready(status: ModelStatus) -> set[int]:
    return {worker.pid for worker in status.workers if worker.ready}
