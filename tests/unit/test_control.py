"""Commands to a worker in the headers of DESCRIBE: hold a request, release it, refuse predictions."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from handlergen.runtime.codec.content import COMMAND
from handlergen.runtime.server_process import ProcessFiles, server_of_this_process
from handlergen.runtime.torchserve.control import Commands
from tests.histories import until
from tests.serving import ServerContext

HERE = os.getpid()
SOURCE = """
def predict(inputs):
    return inputs + 1
"""


class Commanded:
    """A worker that obeys commands, as TorchServe would ask it."""

    def __init__(self, worker: Any, directory: Path) -> None:
        self.worker = worker
        self.closed = False
        self.worker._commands = Commands(("m", "1.0"), directory, lambda: self.closed)
        self.held = ProcessFiles(directory, "held", "{} {}".format(*server_of_this_process()), "m", "1.0")

    def describe(self, text: str) -> tuple[int, Any]:
        context = ServerContext([{"describe": "True", COMMAND: text}])
        (body,) = self.worker.handle([{}], context)
        return context.statuses[0], json.loads(body)

    def command(self, **commands: Any) -> dict[str, Any]:
        status, answer = self.describe(json.dumps(commands))
        assert status == 200
        return dict(answer)

    def holding(self, seconds: float) -> threading.Thread:
        thread = threading.Thread(target=self.command, kwargs={"hold": [1, HERE], "seconds": seconds})
        thread.start()
        until(lambda: self.held.pids() == [HERE])
        return thread

    def predict(self, data: int, **headers: str) -> tuple[int, Any, dict[str, str]]:
        context = ServerContext([{"content-type": "application/json", "url_path": "", "explain": "False", **headers}])
        (body,) = self.worker.handle([{"body": data}], context)
        return context.statuses[0], json.loads(body), context.headers[0]


@pytest.fixture
def commanded(serve_project: Callable[..., Any], tmp_path: Path) -> Commanded:
    directory = tmp_path / "locks"
    directory.mkdir()
    return Commanded(serve_project(SOURCE).worker, directory)


def test_a_worker_that_is_not_named_answers_at_once(commanded: Commanded) -> None:
    assert commanded.command(hold=[1, 2], seconds=60) == {"pid": HERE, "holding": [], "refusing": False}


def test_a_request_is_held_until_it_is_released(commanded: Commanded) -> None:
    thread = commanded.holding(60)
    assert commanded.command() == {"pid": HERE, "holding": [HERE], "refusing": False}
    assert commanded.command(release=[1])["holding"] == [HERE]
    assert commanded.command(release=[HERE])["holding"] == []
    thread.join(5)
    assert not thread.is_alive()


def test_a_request_is_held_no_longer_than_it_says(commanded: Commanded) -> None:
    thread = commanded.holding(0.3)
    thread.join(5)
    assert not thread.is_alive()
    assert commanded.held.pids() == []


def test_a_worker_whose_server_has_gone_holds_nothing(commanded: Commanded) -> None:
    thread = commanded.holding(60)
    commanded.closed = True
    thread.join(5)
    assert not thread.is_alive()


def test_predictions_are_refused_while_the_model_stops(commanded: Commanded) -> None:
    assert commanded.command(refuse=60)["refusing"]
    status, body, headers = commanded.predict(1)
    assert (status, body["type"], headers["Retry-After"]) == (503, "Stopping", "1")
    assert commanded.describe("{}") == (200, {"pid": HERE, "holding": [], "refusing": True})
    assert not commanded.command(refuse=0)["refusing"]
    assert commanded.predict(1)[:2] == (200, 2)


def test_refusing_ends_by_itself(commanded: Commanded) -> None:
    commanded.command(refuse=0.2)
    until(lambda: commanded.predict(1)[0] == 200)


def test_a_worker_that_starts_later_refuses_nothing(commanded: Commanded, tmp_path: Path) -> None:
    commanded.command(refuse=60)
    time.sleep(0.3)  # longer than the clocks may differ
    commanded.worker._commands = Commands(("m", "1.0"), tmp_path / "locks", bool)
    assert commanded.predict(1)[:2] == (200, 2)
    assert commanded.command(refuse=60)["refusing"]


def test_what_ended_workers_held_does_not_count_and_is_removed(commanded: Commanded, tmp_path: Path) -> None:
    thread = commanded.holding(60)
    (own,) = (tmp_path / "locks").glob("held-*")
    dead = own.with_name(f"{own.name.rsplit('-', 2)[0]}-4000000-17")
    dead.touch()
    assert commanded.command()["holding"] == [HERE]
    commanded.command(release=[HERE], refuse=1)
    thread.join(5)
    assert not dead.exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"hold": 1}', '{"release": ["x"]}', '{"refuse": []}', "17"])
def test_a_command_that_makes_no_sense_is_a_400(commanded: Commanded, text: str) -> None:
    status, body = commanded.describe(text)
    assert (status, body["type"]) == (400, "BadCommand")


def test_a_client_of_predictions_cannot_command(commanded: Commanded) -> None:
    began = time.monotonic()
    command = json.dumps({"hold": [HERE], "seconds": 60, "refuse": 60})
    assert commanded.predict(1, **{COMMAND: command, "describe": "True"})[:2] == (200, 2)
    assert time.monotonic() - began < 30
    assert commanded.predict(1)[0] == 200


def test_without_torchserve_there_are_no_commands(serve_project: Callable[..., Any]) -> None:
    context = ServerContext([{"describe": "True", COMMAND: json.dumps({"hold": [HERE], "seconds": 60})}])
    (body,) = serve_project(SOURCE).worker.handle([{}], context)
    assert "settings" in json.loads(body)
