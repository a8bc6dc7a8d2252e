"""The REST client: what it sends, how it reads errors, how it gets tokens. No server: httpx's mock transport."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from handlergen.client import Client, ModelStatus
from handlergen.client.client import payload
from handlergen.client.connection import read_key
from handlergen.errors import RequestFailed, ServerError
from handlergen.server.properties import server_settings

Handler = Callable[[httpx.Request], httpx.Response]


def client(handler: Handler, *, key_file: Path | None = None) -> Client:
    settings = server_settings(token_authorization=key_file is not None)
    made = Client(settings, key_file=key_file)
    made._http.close()
    made._http = httpx.Client(transport=httpx.MockTransport(handler))
    # The connections hold the transport they were made with.
    for connection in (made._inference, made._management):
        connection._http = made._http
    return made


def write_keys(path: Path) -> Path:
    expires = "2099-01-01T00:00:00.123456789Z"
    keys = {kind: {"key": kind[:3], "expiration time": expires} for kind in ("management", "inference")}
    path.write_text(json.dumps({**keys, "API": {"key": "api"}}))
    return path


def test_one_body_only():
    with pytest.raises(ValueError, match="json, content"):
        payload(json=None, content=b"")
    with pytest.raises(ValueError, match="not none"):
        payload()


def test_null_is_json():
    assert payload(json=None) == ({"Content-Type": "application/json"}, {"content": b"null"})


def test_a_file_is_sent_with_the_type_of_its_name(tmp_path: Path):
    (tmp_path / "three.png").write_bytes(b"\x89PNG")
    (tmp_path / "three").write_bytes(b"?")
    assert payload(file=tmp_path / "three.png")[0] == {"Content-Type": "image/png"}
    assert payload(file=tmp_path / "three")[0] == {"Content-Type": "application/octet-stream"}
    assert payload(file=tmp_path / "three.png", content_type="x/y")[0] == {"Content-Type": "x/y"}


def test_fields_become_a_form_with_file_names(tmp_path: Path):
    (tmp_path / "three.png").write_bytes(b"\x89PNG")
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, content=b"ok")

    client(answer).predict("digits", fields={"top": "3", "image": tmp_path / "three.png"})
    assert seen[0].headers["content-type"].startswith("multipart/form-data; boundary=")
    body = seen[0].read()
    assert b'name="top"\r\n\r\n3\r\n' in body
    assert b'name="image"; filename="three.png"\r\nContent-Type: image/png\r\n\r\n\x89PNG' in body


def test_names_are_quoted_and_versions_appended():
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=request.url.raw_path)

    assert client(answer).predict("a/b", 1, version="2.0").body == b"/predictions/a%2Fb/2.0"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"code": 400, "type": "BadRequest", "message": "no pixels"}', "400: no pixels"),
        (b"plain words", "400: plain words"),
        (b"", "400: Bad Request"),
        (b"[1]", "400: [1]"),
    ],
)
def test_an_error_answer_keeps_status_and_body(body: bytes, said: str):
    with pytest.raises(RequestFailed) as caught:
        client(lambda request: httpx.Response(400, content=body)).predict("digits", 1)
    assert (caught.value.status, caught.value.body, caught.value.message) == (400, body, said)


def test_a_refused_token_says_where_tokens_come_from(tmp_path: Path):
    body = {"code": 400, "type": "InvalidKeyException", "message": "Token Authorization failed."}

    def hint(key_file: Path | None) -> str:
        with pytest.raises(RequestFailed) as caught:
            client(lambda request: httpx.Response(400, json=body), key_file=key_file).predict("digits", 1)
        return caught.value.hint or ""

    missing = hint(tmp_path / "none.json")
    assert f"there is no {tmp_path / 'none.json'}" in missing
    assert "--key-file" in missing
    other = hint(write_keys(tmp_path / "key_file.json"))
    assert "belong to another server" in other
    assert "--key-file" in other
    assert "turns tokens off" in hint(None)


def test_a_callers_own_authorization_wins(tmp_path: Path):
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=request.headers["authorization"].encode())

    one = client(answer, key_file=write_keys(tmp_path / "key_file.json"))
    assert one.predict("digits", 1, headers={"authorization": "Bearer mine"}).body == b"Bearer mine"


def test_a_key_file_of_something_else_is_an_error_with_its_name(tmp_path: Path):
    (tmp_path / "key_file.json").write_text("[]")
    with pytest.raises(ServerError, match=r"key_file\.json is not a TorchServe key file"):
        read_key(tmp_path / "key_file.json", "inference")


def test_models_of_all_pages_are_listed():
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.params.get("next_page_token") == "1":
            return httpx.Response(200, json={"models": [{"modelName": "a"}]})
        return httpx.Response(200, json={"models": [{"modelName": "b"}], "nextPageToken": "1"})

    assert client(answer).models() == ["a", "b"]


def described(*workers: dict[str, Any], wanted: int = 2, waiting: int = 2) -> dict[str, Any]:
    return {
        "modelName": "digits",
        "modelVersion": "1.0",
        "minWorkers": wanted,
        "maxWorkers": wanted,
        "batchSize": 1,
        "maxBatchDelay": 1,
        "responseTimeout": 120,
        "workers": list(workers),
        "jobQueueStatus": {"remainingCapacity": 98, "pendingRequests": waiting},
    }


def worker(number: int, state: str = "READY", *, usage: str = "N/A", gpu: bool = False) -> dict[str, Any]:
    return {"id": str(number), "status": state, "pid": number, "gpu": gpu, "gpuUsage": usage, "memoryUsage": 5}


def test_placement_is_read_from_the_description():
    usage = "gpuId::{} utilization.gpu [%]::0 % utilization.memory [%]::0 % memory.used [MiB]::400 MiB"
    status = ModelStatus.from_description(
        described(
            worker(9000, gpu=True, usage=usage.format(1)),
            worker(9001, gpu=True, usage=usage.format(0)),
            worker(9002, gpu=True, usage=usage.format(1)),
            worker(9003, gpu=True, usage="failed to obtained gpu usage"),
            worker(9004, "UNLOADING"),
        )
    )
    assert status.placement == {"gpu": 1, "gpu:0": 1, "gpu:1": 2}
    assert (status.queue_free, status.queue_waiting) == (98, 2)
    assert not status.ready


def test_ready_means_all_workers_that_should_be_there():
    assert ModelStatus.from_description(described(worker(1), worker(2))).ready
    assert not ModelStatus.from_description(described(worker(1))).ready
    assert not ModelStatus.from_description(described(worker(1), worker(2, "UNLOADING"))).ready


UNFINISHED = [
    {"code": 500, "type": "NullPointerException", "message": 'Cannot invoke "Job.isControlCmd()"'},
    {"code": 500, "type": "ConcurrentModificationException"},
]


def test_scale_asks_again_when_torchserve_gives_up_midway():
    asked: list[str] = []
    refusals = list(UNFINISHED)

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "PUT":
            asked.append(request.url.query.decode())
            if refusals:
                return httpx.Response(500, json=refusals.pop())
            return httpx.Response(202, json={"status": "Processing worker updates..."})
        return httpx.Response(200, json=[described(worker(1), wanted=1)])

    assert client(answer).scale("digits", 1).ready_workers == 1
    assert asked == ["min_worker=1&max_worker=1"] * 3


def test_scale_does_not_ask_for_ever_nor_after_a_refusal():
    def asked(refusal: dict[str, Any]) -> int:
        puts: list[httpx.Request] = []

        def answer(request: httpx.Request) -> httpx.Response:
            if request.method == "GET":
                return httpx.Response(200, json=[described(worker(1), wanted=1)])
            puts.append(request)
            return httpx.Response(500, json=refusal)

        with pytest.raises(RequestFailed):
            client(answer).scale("digits", 1)
        return len(puts)

    assert asked(UNFINISHED[0]) == 5
    assert asked({"code": 500, "type": "InternalServerException", "message": "Failed to start workers"}) == 1


class FakeServer:
    """A model `digits` as a server has it, and what was asked of it besides descriptions."""

    def __init__(self, workers: int, *, versions: int = 1, refusals: dict[str, list[httpx.Response]]) -> None:
        self.workers = workers
        self.versions = versions
        self.refusals = refusals
        self.asked: list[str] = []
        self.waiting = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            one = described(*map(worker, range(self.workers)), wanted=self.workers, waiting=self.waiting)
            return httpx.Response(200, json=[one] * (self.versions if request.url.path.endswith("/all") else 1))
        version = request.url.path.removeprefix("/models/digits").strip("/")
        if request.method == "DELETE" and len(version) > len("1.0-"):
            self.asked.append("DELETE of none")
        else:
            counts = request.url.params.get("min_worker")
            self.asked.append(f"{request.method} {counts}" if counts else request.method)
        if waiting := self.refusals.get(self.asked[-1]):
            return waiting.pop(0)
        if request.method == "PUT":
            self.workers = int(request.url.params["min_worker"])
        return httpx.Response(200, json={"status": 'Model "digits" unregistered'})


def refused(status: int, kind: str) -> httpx.Response:
    return httpx.Response(status, json={"code": status, "type": kind, "message": kind})


def test_workers_are_ended_before_a_model_is_unregistered():
    no_version, gave_up = refused(404, "ModelVersionNotFoundException"), refused(500, "NullPointerException")
    refusals = {"DELETE of none": [no_version], "PUT 1": [gave_up], "PUT 0": [gave_up]}
    server = FakeServer(3, refusals=refusals)
    assert client(server).unregister("digits") == 'Model "digits" unregistered'
    assert server.asked == ["DELETE of none", "PUT 1", "PUT 1", "PUT 0", "PUT 0", "DELETE"]


@pytest.mark.parametrize(("versions", "status"), [(1, 405), (2, 403)])
def test_a_model_that_cannot_be_unregistered_keeps_its_workers(versions: int, status: int):
    refusals = {"DELETE of none": [refused(405, "MethodNotAllowed")], "DELETE": [refused(403, "InvalidModelVersion")]}
    server = FakeServer(2, versions=versions, refusals=refusals)
    with pytest.raises(RequestFailed) as caught:
        client(server).unregister("digits")
    assert caught.value.status == status
    assert server.asked == ["DELETE of none" if versions == 1 else "DELETE"]


def test_a_model_that_is_not_unregistered_after_all_gets_its_workers_back():
    refusals = {
        "DELETE of none": [refused(404, "ModelVersionNotFoundException")],
        "DELETE": [refused(408, "RequestTimeoutException")],
    }
    server = FakeServer(3, refusals=refusals)
    with pytest.raises(RequestFailed, match="408"):
        client(server).unregister("digits")
    assert server.asked[-2:] == ["DELETE", "PUT 3"]


def test_all_workers_are_ended_one_first():
    server = FakeServer(4, refusals={"PUT 1": [refused(500, "ConcurrentModificationException")]})
    assert client(server).scale("digits", 0).workers == ()
    assert server.asked == ["PUT 1", "PUT 1", "PUT 0"]


def test_scale_gives_up_in_time():
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=[described(worker(1, "UNLOADING"))])

    with pytest.raises(ServerError, match="0 of 2 workers are READY"):
        client(answer).scale("digits", 2, timeout=0)
