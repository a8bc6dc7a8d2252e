"""How a server is drained, with a client that plays the server: dead workers, full queues, other handlers."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import chain, cycle, repeat
from typing import Any

import pytest

from handlergen.client import ModelStatus
from handlergen.client.fence import patient_command
from handlergen.client.results import READY, WorkerStatus
from handlergen.errors import RequestFailed, ServerError
from handlergen.runtime.codec.content import COMMAND
from handlergen.server.draining import StopReport, drain_server
from handlergen.server.ports import free_port_settings
from handlergen.server.properties import server_settings

Answer = Callable[[dict[str, Any]], dict[str, Any]]


class Server:
    """A client of a server with one worker thread a model, which answers commands as told.

    Args:
        answers: For each model, what comes of its commands, one after the other.
        pids: For each model, its READY workers each time that it is described; none: no answer in time.
    """

    def __init__(self, answers: dict[str, Iterable[Any]], pids: dict[str, Iterable[tuple[int, ...]]]) -> None:
        ports: dict[str, Any] = free_port_settings()
        self.settings = server_settings(**ports)
        self.sent: dict[str, list[dict[str, Any]]] = {name: [] for name in answers}
        self.queue = chain((3, 1, 0, 2), repeat(0))
        self._answers = {name: iter(each) for name, each in answers.items()}
        self._pids = {name: iter(each) for name, each in pids.items()}

    def status(self) -> list[ModelStatus]:
        return [self.describe(name) for name in self._answers]

    def describe(self, name: str, *, version: str | None = None) -> ModelStatus:
        pids = next(self._pids[name])
        if not pids:
            raise ServerError("timed out")
        workers = tuple(WorkerStatus(str(pid), READY, pid, "cpu") for pid in pids)
        return ModelStatus(name, "1.0", 1, 1, 1, 1, 120, workers, queue_waiting=next(self.queue))

    def command(self, name: str, *, version: str, wait_s: float, **commands: Any) -> Any:
        return patient_command(partial(self._customized, name), time.monotonic() + wait_s, **commands)

    def _customized(self, name: str, headers: Mapping[str, str], timeout: float | None = None) -> Any:
        commands = json.loads(headers[COMMAND])
        self.sent[name].append(commands)
        answer = next(self._answers[name])
        if isinstance(answer, Exception):
            raise answer
        return answer(commands) if callable(answer) else answer


def drained(server: Any, seconds: float = 5.0) -> StopReport:
    return drain_server(server, seconds)


def from_worker(pid: int, refusing: bool = True) -> dict[str, Any]:
    return {"pid": pid, "holding": [], "refusing": refusing}


def failed(status: int, kind: str, message: str) -> RequestFailed:
    return RequestFailed("", status=status, body=json.dumps({"type": kind, "message": message}).encode())


def test_the_queue_goes_first_and_each_worker_is_waited_for() -> None:
    server = Server({"m": map(from_worker, cycle((1, 1, 2)))}, {"m": repeat((1, 2))})
    assert drained(server) == StopReport(5.0)
    marker, refusal, *others = server.sent["m"]
    assert marker == {}
    assert 5 < refusal["refuse"] < 30
    assert others == [{}]


def test_a_worker_that_stays_busy_is_counted() -> None:
    server = Server({"m": map(from_worker, repeat(1))}, {"m": repeat((1, 2))})
    assert drained(server, 0.3) == StopReport(0.3, busy={"m 1.0": 1})


def test_a_worker_that_dies_is_not_waited_for_and_the_next_one_is() -> None:
    described = chain([(1, 2), (1,)], repeat((1, 3)))
    server = Server({"m": map(from_worker, chain((1, 1), repeat(3)))}, {"m": described})
    assert drained(server).busy == {}
    server = Server({"m": map(from_worker, repeat(1))}, {"m": chain([(1, 2), (1, 2)], repeat((1, 3)))})
    assert drained(server, 0.3).busy == {"m 1.0": 1}


def test_a_description_that_is_late_is_asked_for_again() -> None:
    server = Server({"m": map(from_worker, cycle((1, 2)))}, {"m": chain([(1, 2), ()], repeat((1, 2)))})
    assert drained(server) == StopReport(5.0)
    assert len(server.sent["m"]) == 3


def test_a_refusal_that_was_lost_is_sent_again() -> None:
    answers = [from_worker(1), from_worker(1, refusing=False), from_worker(1)]
    server = Server({"m": answers}, {"m": repeat((1,))})
    assert drained(server).busy == {}
    assert ["refuse" in each for each in server.sent["m"]] == [False, True, True]


@pytest.mark.parametrize(
    "failure",
    [
        failed(503, "ServiceUnavailableException", 'Model "m" has no worker to serve describe request.'),
        failed(500, "InternalServerException", "Worker died."),
    ],
)
def test_a_full_queue_and_a_dying_worker_are_asked_again(failure: RequestFailed) -> None:
    server = Server({"m": chain([failure, failure], map(from_worker, repeat(1)))}, {"m": repeat((1,))})
    assert drained(server) == StopReport(5.0)
    assert len(server.sent["m"]) == 4


@pytest.mark.parametrize("answer", [{"settings": {}}, [1], failed(503, "InternalServerException", "Prediction")])
def test_workers_that_know_no_commands_have_their_queue_emptied(answer: Any) -> None:
    server = Server({"m": repeat(answer)}, {"m": repeat((1,))})
    assert drained(server) == StopReport(5.0, not_refusing=("m 1.0",))
    assert next(server.queue) == 0  # it has read 3, 1, 0, 2 and three times 0


def test_a_model_with_a_long_queue_does_not_delay_the_others() -> None:
    never = threading.Event()

    def late(commands: dict[str, Any]) -> Any:
        never.wait(10)
        raise ServerError("ended")

    server = Server({"slow": [late], "m": map(from_worker, repeat(2))}, {"slow": repeat((1,)), "m": repeat((2,))})
    try:
        assert drained(server, 0.5) == StopReport(0.5, busy={"slow 1.0": 1})
    finally:
        never.set()
    assert "refuse" in server.sent["m"][1]


def test_a_server_that_does_not_answer_is_not_drained() -> None:
    class Hung(Server):
        def status(self) -> list[ModelStatus]:
            raise ServerError("timed out")

    assert drained(Hung({}, {})) == StopReport(5.0, failure="timed out")


def test_an_answer_that_its_client_has_not_received_is_waited_for() -> None:
    server = Server({}, {})
    with socket.create_server(("127.0.0.1", server.settings.addresses()["inference"][1])) as listener:
        with socket.create_connection(listener.getsockname()[:2]) as client:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    connection.sendall(bytes(2**26))
                assert drained(server, 0.3) == StopReport(0.3, unread=1)
                reader = threading.Thread(target=lambda: client.makefile("rb").read(), daemon=True)
                reader.start()
                assert drained(server) == StopReport(5.0)
        reader.join(10)
