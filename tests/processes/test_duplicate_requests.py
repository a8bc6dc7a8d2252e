"""A request that TorchServe gives to two workers, as it may when it ends one of them.

Its frontend does so by chance only: the tests write to real TorchServe workers what the frontend would.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import ts

from handlergen.runtime.pipeline.pipeline import open_items
from handlergen.runtime.torchserve.duplicate_requests import ANSWERED, STREAMED, AnsweredRequests, DuplicateRequests
from tests.archives import make_archive
from tests.histories import until

WORKER = Path(ts.__file__).with_name("model_service_worker.py")
END = struct.pack("!i", -1)
NO_HEADERS: Mapping[str, str] = {}
METRICS = Path(ts.__file__).parent / "configs" / "metrics.yaml"

SOURCE = """
import os
import time


def predict(inputs):
    if isinstance(inputs, list):
        return chunks(inputs)
    if inputs.get("fails"):
        raise RuntimeError("as asked")
    if "until" in inputs:
        open(inputs["until"] + " awaited", "w").close()
        while not os.path.exists(inputs["until"]):
            time.sleep(0.01)
    return {"n": inputs["n"], "pid": os.getpid()}


def chunks(inputs):
    for each in inputs:
        if isinstance(each, str):
            while not os.path.exists(each):
                time.sleep(0.01)
        else:
            yield {"chunk": each}
"""


def field(content: bytes) -> bytes:
    """A value as TorchServe's protocol frames it: its length, then itself."""
    return struct.pack("!i", len(content)) + content


class Prediction(NamedTuple):
    """One request's part of a message.

    Attributes:
        more: It is a chunk of a stream that goes on.
    """

    request_id: str
    status: int
    body: bytes
    more: bool


class Frontend:
    """A worker of TorchServe's, and the end of its connection that is the frontend's."""

    def __init__(self, directory: Path, model_dir: Path, number: int) -> None:
        address = directory / f"socket.{number}"
        self.log = directory / f"log.{number}"
        environ = {**os.environ, "HANDLERGEN_STATE_DIR": str(directory / "state"), "PYTHONPATH": str(model_dir)}
        command = [sys.executable, str(WORKER), "--sock-type", "unix", "--sock-name", str(address)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--metrics-config", str(METRICS)], cwd=model_dir, env=environ, stdout=log, stderr=log
            )
        until(lambda: "Torch worker started" in self.log.read_text(), within_s=60)
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.settimeout(60)
        self.connection.connect(str(address))
        manifest = json.loads((model_dir / "MAR-INF" / "MANIFEST.json").read_text())
        handler = manifest["model"]["handler"].encode()
        place = str(model_dir).encode()
        self.connection.sendall(
            b"L"
            + field(b"twice")
            + field(place)
            + struct.pack("!i", 8)
            + field(handler)
            + struct.pack("!i", -1)
            + field(b"")
            + b"\1"
        )
        assert self._int() == 200, self.log.read_text()
        self._field()
        assert self._int() == -1

    def send(self, *requests: tuple[str, Any], headers: Mapping[str, str] = NO_HEADERS) -> None:
        """Give it a batch, each request an id and a JSON value."""
        message = b"I"
        more = b"".join(field(part.encode()) for pair in headers.items() for part in pair)
        for request_id, value in requests:
            message += field(request_id.encode()) + field(b"content-type") + field(b"application/json") + more + END
            message += field(b"body") + field(b"application/json") + field(json.dumps(value).encode()) + END
        self.connection.sendall(message + END)

    def receive(self) -> tuple[int, list[Prediction]]:
        """The next message: the status of the batch, and of each request in it."""
        status = self._int()
        self._field()
        found = []
        while (length := self._int()) != -1:
            request_id = self._bytes(length).decode()
            self._field()
            each = self._int()
            self._field()
            headers = {self._field(): self._field() for _ in range(self._int())}
            found.append(Prediction(request_id, each, self._field(), headers.get(b"ts_stream_next") == b"true"))
        return status, found

    def ask(self, request_id: str, value: Any) -> Prediction:
        self.send((request_id, value))
        status, (answer,) = self.receive()
        assert status == 200
        return answer

    def close(self) -> None:
        self.connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.process.kill()
        self.process.wait()

    def _field(self) -> bytes:
        return self._bytes(self._int())

    def _int(self) -> int:
        return int(struct.unpack("!i", self._bytes(4))[0])

    def _bytes(self, length: int) -> bytes:
        received = b""
        while len(received) < length:
            received += (more := self.connection.recv(length - len(received)))
            assert more, self.log.read_text()
        return received


@pytest.fixture(scope="module", params=["process", "worker"])
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an unpacked archive."""
    directory = tmp_path_factory.mktemp("twice")
    mar = make_archive(directory, "twice", SOURCE, predictor=request.param)
    with zipfile.ZipFile(mar) as packed:
        packed.extractall(directory / "model")
    return directory


@pytest.fixture(scope="module")
def workers(home: Path) -> Iterator[tuple[Frontend, Frontend]]:
    with contextlib.ExitStack() as stack:
        both = []
        for number in (9000, 9001):
            both.append(Frontend(home, home / "model", number))
            stack.callback(both[-1].close)
        yield both[0], both[1]


def new_id() -> str:
    return str(uuid.uuid4())


def test_what_one_worker_has_answered_another_refuses(workers: tuple[Frontend, Frontend]) -> None:
    first, second = workers
    twice, once, failing = new_id(), new_id(), new_id()
    assert json.loads(first.ask(twice, {"n": 1}).body)["n"] == 1
    assert first.ask(failing, {"fails": True}).status == 500

    second.send((twice, {"n": 1}), (once, {"n": 2}), (failing, {"n": 3}))
    status, (refused, answered, again) = second.receive()
    assert status == 200
    assert (refused.request_id, refused.status) == (twice, 503)
    assert json.loads(refused.body)["type"] == "DuplicateRequest"
    assert json.loads(answered.body)["n"] == 2
    assert json.loads(again.body)["n"] == 3  # an error had closed its client's connection: nothing is lost by trying
    assert second.ask(new_id(), {"n": 4}).status == 200
    assert second.ask(twice, {"n": 1}).status == 503  # alone in its batch too

    second.send((twice, {"n": 1}), headers={"explain": "False"})  # as from `/invocations`
    _, (refused,) = second.receive()
    assert "error" in json.loads(refused.body)  # which a client of KServe's reads


def test_a_stream_that_has_begun_is_not_begun_again(home: Path, workers: tuple[Frontend, Frontend]) -> None:
    first, second = workers
    request_id, release = new_id(), home / f"release {new_id()}"
    first.send((request_id, [1, str(release), 2]))
    assert first.receive() == (200, [Prediction(request_id, 200, b'{"chunk":1}\n', more=True)])
    second.send((request_id, [1, str(release), 2]))
    release.touch()
    status, _ = second.receive()  # of the batch as a whole: only that closes a connection in the middle of a stream
    assert status == 503
    neighbour = new_id()
    second.send((neighbour, {"n": 6}), (request_id, [1, str(release), 2]))
    status, _ = second.receive()
    assert status == 503
    assert json.loads(second.ask(neighbour, {"n": 6}).body)["n"] == 6  # if it comes again
    assert [first.receive()[1][0].body, first.receive()[1][0].body] == [b'{"chunk":2}\n', b""]
    second.send((request_id, [1, str(release), 2]))
    assert second.receive()[0] == 503  # after its end too


def test_what_nobody_could_take_any_more_is_answered(home: Path, workers: tuple[Frontend, Frontend]) -> None:
    first, second = workers
    request_id, release = new_id(), home / f"release {new_id()}"
    # The last test of these workers: it ends one.
    first.send((request_id, {"n": 5, "until": str(release)}))
    until(lambda: Path(f"{release} awaited").exists())
    first.connection.close()
    release.touch()
    assert first.process.wait(20) is not None
    assert json.loads(second.ask(request_id, {"n": 5, "until": str(release)}).body)["n"] == 5


def test_ids_are_told_apart_and_outlive_their_process(tmp_path: Path) -> None:
    ids = [new_id() for _ in range(1000)]
    hows = [(ANSWERED, STREAMED)[number % 2] for number in range(1000)]
    one, other = AnsweredRequests(lambda: tmp_path), AnsweredRequests(lambda: tmp_path)
    for each, how in zip(ids, hows, strict=True):
        one.note(each, how)
    right = sum(other.find(each) == how for each, how in zip(ids, hows, strict=True))
    assert right > 950  # some share a slot
    assert [other.find(new_id()) for _ in range(1000)] == [b""] * 1000


def test_a_deleted_directory_is_made_again_and_found_by_those_that_start_later(tmp_path: Path) -> None:
    directory = tmp_path / "locks"

    def made() -> Path:
        directory.mkdir(exist_ok=True)
        return directory

    running = AnsweredRequests(made)
    running.note("before", ANSWERED)
    running.follow()
    assert running.find("before") == ANSWERED
    shutil.rmtree(directory)
    running.follow()
    running.note("after", ANSWERED)
    assert AnsweredRequests(made).find("after") == ANSWERED


@pytest.mark.parametrize(("version", "refused"), [("0.9.0", True), ("0.10.0", False)])
def test_a_request_that_torchserve_0_9_has_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, refused: bool
) -> None:
    """It re-queues a request without its content, which would be the model's empty input. Later versions do not."""
    monkeypatch.setattr(ts, "__version__", version)
    items = open_items([{}, {"data": b"1"}, {}], [{}, {}, {"describe": "True"}], ["emptied", "grpc", "describe"])
    new = DuplicateRequests(AnsweredRequests(lambda: tmp_path)).unanswered(items)
    assert [item.request.id for item in new] == ["grpc", "describe"] if refused else ["emptied", "grpc", "describe"]
    assert [item.failure.status for item in items if item.failure is not None] == [503] * refused
