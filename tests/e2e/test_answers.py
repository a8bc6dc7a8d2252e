"""Every kind of answer, and every status of the error table, as a REST client and a gRPC client see them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from handlergen.client.results import error_of
from handlergen.errors import RequestFailed
from tests.archives import make_archive
from tests.commands import handlergen
from tests.histories import until

pytestmark = pytest.mark.e2e

FAILS = '''
"""Does what it is asked to."""
import datetime, time
import numpy, torch

class Teapot(Exception):
    status_code = 418
    detail = "short and stout"
    headers = {"X-Tea": "Earl Grey"}

class Response:
    def __init__(self, status_code, body, headers):
        self.status_code, self.body, self.headers = status_code, body, headers

healthy = True

def load(context):
    return torch.nn.Linear(2, 1, bias=False)

def preprocess(data, request):
    wish = data.get("wish") if isinstance(data, dict) else None
    if wish == "value error":
        raise ValueError("x must be a number")
    if wish == "teapot":
        raise Teapot()
    if wish == "key error in preprocess":
        raise KeyError("/etc/passwd")
    if wish == "exit":
        raise SystemExit(3)
    return data

def predict(inputs, model, context):
    global healthy
    wish = inputs.get("wish") if isinstance(inputs, dict) else None
    if wish == "prediction exception":
        from ts.utils.util import PredictionException
        raise PredictionException("no pixels", 404)
    if wish == "crash":
        raise RuntimeError("the password is 4711")
    if wish == "memory":
        raise MemoryError
    if wish == "device memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4711 GiB")
    if wish == "sleep":
        time.sleep(inputs["s"])
    if wish == "ill":
        healthy = False
    return inputs

def postprocess(outputs):
    wish = outputs.get("wish") if isinstance(outputs, dict) else None
    return {
        "huge": lambda: "a" * 7_000_000,
        "unencodable": lambda: {"a": [1, {2}, object()]},
        "circular": circular,
        "not a number": lambda: [float("nan"), 1.0],
        "array": lambda: numpy.arange(6).reshape(2, 3),
        "tensor": lambda: {"t": torch.tensor(1.5, dtype=torch.bfloat16), "b": torch.tensor([True])},
        "date": lambda: datetime.datetime(2024, 5, 1),
        "bytes": lambda: b"\\x00\\xff",
        "response": lambda: Response(202, b"<a/>", {"Content-Type": "text/xml", "X-Own": "1"}),
    }.get(wish, lambda: outputs)()

def circular():
    value = []
    value.append(value)
    return value

def explain(inputs, data, model):
    inputs = torch.tensor(inputs, requires_grad=True)
    model(inputs).sum().backward()
    return {"gradient": inputs.grad, "of": data}

def is_healthy():
    return healthy
'''

TYPED = """
from dataclasses import dataclass

@dataclass
class Query:
    text: str
    top_k: int = 3

def preprocess(data: Query):
    return data

def predict(inputs) -> list[str]:
    return [inputs.text] * inputs.top_k
"""

IMPATIENT = """
def predict(inputs):
    return inputs
"""

NARROW = """
import time
from pathlib import Path

def predict(inputs):
    Path(inputs + ".begun").touch()
    while not Path(inputs).exists():
        time.sleep(0.02)
    return inputs
"""


@pytest.fixture(scope="module")
def server(shared: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("answers")
    return shared(
        make_archive(home, "fails", FAILS),
        make_archive(home, "several", FAILS, batch_size=4, max_batch_delay_ms=1000),
        make_archive(home, "typed", TYPED),
        make_archive(home, "impatient", IMPATIENT, lock_timeout_s=0.2),
        make_archive(home, "narrow", NARROW, queue_size=1),
    )


@pytest.fixture(autouse=True)
def no_worker_dies(server: Any) -> Iterator[None]:
    """Whatever a test sends, the workers are the same afterwards."""
    before = {name: server.worker_pids(name) for name in server.models}
    yield
    assert {name: server.worker_pids(name) for name in server.models} == before


def post(server: Any, path: str, *, method: str = "POST", **options: Any) -> httpx.Response:
    headers = {**server.client.authorization(), **options.pop("headers", {})}
    url = server.settings.inference_address + path
    return httpx.request(method, url, headers=headers, trust_env=False, timeout=60, **options)


# What is asked for, the status that REST has, the error's type, and what gRPC calls the status. TorchServe knows gRPC
# codes for few statuses (GRPCUtils.getGRPCStatusCode); the rest is INTERNAL.
FAILURES = [
    ("value error", 400, "ValueError", "INVALID_ARGUMENT"),
    ("teapot", 418, "Teapot", "FAILED_PRECONDITION"),
    ("prediction exception", 404, "PredictionException", "NOT_FOUND"),
    ("key error in preprocess", 500, "InternalError", "INTERNAL"),
    ("exit", 500, "InternalError", "INTERNAL"),
    ("crash", 500, "InternalError", "INTERNAL"),
    ("memory", 507, "OutOfMemory", "INTERNAL"),
    ("device memory", 507, "OutOfMemory", "INTERNAL"),
    ("huge", 500, "EncodeError", "INTERNAL"),
    ("unencodable", 500, "EncodeError", "INTERNAL"),
    ("circular", 500, "EncodeError", "INTERNAL"),
]


@pytest.mark.parametrize(("wish", "status", "kind", "code"), FAILURES)
def test_each_failure_over_rest_and_grpc(server: Any, wish: str, status: int, kind: str, code: str) -> None:
    answer = post(server, "/predictions/fails", json={"wish": wish})
    body = answer.json()
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert set(body) == {"code", "type", "message", "request_id"}
    assert (body["code"], body["type"]) == (status, kind)
    assert body["request_id"] == answer.headers["x-request-id"]
    for secret in ("4711", "passwd", "Traceback", ".py", str(server.directory)):
        assert secret not in answer.text
    if wish == "teapot":
        assert answer.headers["x-tea"] == "Earl Grey"
    if kind == "EncodeError":
        place = {"huge": "max_response_size", "unencodable": "answer['a'][2] is of type object"}
        assert place.get(wish, "contains itself") in body["message"]
    with pytest.raises(RequestFailed) as caught:
        server.client.predict_grpc("fails", {"wish": wish})
    assert str(caught.value).startswith(f"{code}: {body['message'][:20]}")


def test_the_log_has_one_traceback_with_the_request_s_id(server: Any) -> None:
    before = server.log_marks()
    request_id = post(server, "/predictions/fails", json={"wish": "crash"}).json()["request_id"]
    until(lambda: "4711" in server.log_text(before))
    added = server.log_text(before)
    assert added.count("Traceback") == 1
    assert request_id in added
    assert "handlergen_runtime" not in added
    assert 'raise RuntimeError("the password is 4711")' in added


def test_a_device_that_is_not_free_in_time_is_503_with_retry_after(server: Any) -> None:
    with ThreadPoolExecutor(1) as pool:
        holder = pool.submit(post, server, "/predictions/fails", json={"wish": "sleep", "s": 3})
        while (answer := post(server, "/predictions/impatient", json=1)).status_code == 200:
            assert not holder.done()
        assert (answer.status_code, answer.json()["type"]) == (503, "DeviceBusy")
        assert int(answer.headers["retry-after"]) >= 1
        with pytest.raises(RequestFailed) as caught:
            server.client.predict_grpc("impatient", 1)
        assert str(caught.value).startswith("UNAVAILABLE: The device is busy")
        assert holder.result().status_code == 200
    assert post(server, "/predictions/impatient", json=1).status_code == 200


def test_a_full_queue_is_told_from_a_model_without_workers(server: Any, tmp_path: Path) -> None:
    release, begun = tmp_path / "release", tmp_path / "release.begun"
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(post, server, "/predictions/narrow", json=str(release))]
        try:
            until(begun.exists)
            asked.append(pool.submit(post, server, "/predictions/narrow", json=str(release)))
            until(lambda: server.client.describe("narrow").queue_waiting == 1)
            for way in ((), ("--grpc",)):
                done = handlergen("invoke", "narrow", "--data", "1", *way, cwd=server.directory)
                assert done.returncode == 6
                assert "has no worker to serve inference request" in done.stderr
                assert "its workers are READY, so its queue was full: retry" in done.stderr
        finally:
            release.touch()
        assert [each.result().status_code for each in asked] == [200, 200]


@pytest.mark.parametrize(
    ("wish", "content_type", "body"),
    [
        ("not a number", "application/json", b"[null,1.0]"),
        ("array", "application/json", b"[[0,1,2],[3,4,5]]"),
        ("tensor", "application/json", b'{"t":1.5,"b":[true]}'),
        ("date", "application/json", b'"2024-05-01T00:00:00"'),
        ("bytes", "application/octet-stream", b"\x00\xff"),
        ("response", "text/xml", b"<a/>"),
    ],
)
def test_answers_over_rest_and_grpc(server: Any, wish: str, content_type: str, body: bytes) -> None:
    answer = post(server, "/predictions/fails", json={"wish": wish})
    assert answer.headers["content-type"] == content_type
    assert answer.content == body
    if wish == "response":
        assert (answer.status_code, answer.headers["x-own"]) == (202, "1")
    assert server.client.predict_grpc("fails", {"wish": wish}).body == body


def test_broken_json_and_lost_bodies_are_the_client_s_fault(server: Any) -> None:
    json_type = {"Content-Type": "application/json"}
    answer = post(server, "/predictions/fails", content=b'{"a": ', headers=json_type)
    assert (answer.status_code, answer.json()["type"]) == (400, "BadRequest")
    form = {"Content-Type": "application/x-www-form-urlencoded"}  # what curl -d says by itself
    answer = post(server, "/predictions/fails", content=b'{"a": 1}', headers=form)
    assert answer.status_code == 400
    assert "Content-Type: application/json" in answer.json()["message"]
    # In some bodies TorchServe's form decoder loses nothing.
    assert post(server, "/predictions/fails", content=b'{"a":"x=1"}', headers=form).json() == {"a": "x=1"}


def test_what_the_frontend_cannot_read_it_answers_itself(server: Any) -> None:
    answer = post(server, "/predictions/fails", content=b"a" * 6_600_000)
    assert (answer.status_code, answer.content) == (413, b"")
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = post(server, "/predictions/fails", content=b"a=%zz", headers=form)
    assert (answer.status_code, "request_id" in answer.json()) == (500, False)


def test_typed_input_over_rest_and_grpc(server: Any) -> None:
    assert post(server, "/predictions/typed", json={"text": "a", "top_k": 2}).json() == ["a", "a"]
    assert post(server, "/predictions/typed", files={"text": (None, "b"), "top_k": (None, "1")}).json() == ["b"]
    assert server.client.predict_grpc("typed", inputs={"text": b"c", "top_k": b"1"}).json() == ["c"]
    answer = post(server, "/predictions/typed", json={"top_k": "many", "k": 1})
    assert (answer.status_code, answer.json()["type"]) == (400, "ValidationError")
    assert answer.json()["message"] == (
        "text: Field required; top_k: Input should be a valid integer, unable to parse string as an integer; "
        "k: Unexpected keyword argument"
    )
    with pytest.raises(RequestFailed, match="INVALID_ARGUMENT: text: Field required"):
        server.client.predict_grpc("typed", {})


def test_in_a_batch_each_request_has_its_own_status(server: Any) -> None:
    wishes = ["", "value error", "crash", "array"]
    barrier = threading.Barrier(len(wishes))

    def ask(wish: str) -> tuple[int, Any]:
        barrier.wait()
        answer = post(server, "/predictions/several", json={"wish": wish})
        return answer.status_code, answer.json()

    with ThreadPoolExecutor(len(wishes)) as pool:
        answers = list(pool.map(ask, wishes))
    assert [status for status, _ in answers] == [200, 400, 500, 200]
    assert answers[0][1] == {"wish": ""}
    assert answers[3][1] == [[0, 1, 2], [3, 4, 5]]


def test_grpc_in_a_batch_gets_the_error_s_body_for_an_answer(server: Any) -> None:
    """TorchServe has no gRPC status per request: of several, none can fail by code."""
    barrier = threading.Barrier(2)

    def ask(wish: str) -> bytes | RequestFailed:
        barrier.wait()
        try:
            return server.client.grpc.predict("several", {"data": json.dumps({"wish": wish}).encode()}, timeout=60)
        except RequestFailed as error:
            return error

    def answer_to_bad() -> bytes | None:
        with ThreadPoolExecutor(2) as pool:
            good, bad = pool.map(ask, ["", "value error"])
        assert good == b'{"wish":""}'
        assert error_of(good) is None
        if isinstance(bad, bytes):
            return bad
        assert bad.status == 400  # they came one after the other
        return None

    error = error_of(until(answer_to_bad, within_s=60))
    assert error is not None
    assert (error["code"], error["message"]) == (400, "x must be a number")


def test_stream_predictions_of_a_model_that_does_not_stream(server: Any) -> None:
    assert b"".join(server.client.stream_grpc("fails", {"wish": "array"})) == b"[[0,1,2],[3,4,5]]"
    with pytest.raises(RequestFailed):
        list(server.client.stream_grpc("fails", {"wish": "crash"}))


def test_explanations(server: Any) -> None:
    explained = post(server, "/explanations/fails", json=[1.0, 2.0]).json()
    assert (explained["of"], len(explained["gradient"])) == ([1.0, 2.0], 2)
    answer = post(server, "/explanations/typed", json={"text": "a"})
    assert (answer.status_code, answer.json()["type"]) == (501, "NotSupported")


def test_options_stay_valid(server: Any) -> None:
    answer = post(server, "/predictions/fails", method="OPTIONS")
    assert answer.status_code == 200
    assert "/prediction/fails" in answer.json()["paths"]  # TorchServe's own slip of the pen


def test_describe_has_contract_types_counts_and_health(server: Any) -> None:
    before = server.describe("typed")["worker"]
    post(server, "/predictions/typed", json={"text": "a"})
    post(server, "/predictions/typed", json={})
    found = server.describe("typed")
    assert found["form"] == "functions"
    assert found["hooks"]["preprocess"]["parameters"] == ["data"]
    assert found["settings"]["lock"] == "device"
    assert found["predictor"]["device"] == "cpu"
    assert found["input"]["schema"]["required"] == ["text"]
    assert found["output"]["schema"] == {"type": "array", "items": {"type": "string"}}
    assert found["worker"]["requests"] == before["requests"] + 2
    assert found["worker"]["failures"]["400"] == before["failures"].get("400", 0) + 1
    assert [found["worker"]["pid"]] == server.worker_pids("typed")
    assert found.get("health") is None  # TorchServe leaves out what is null


def test_describe_is_not_for_clients_of_predictions(server: Any) -> None:
    answer = post(server, "/predictions/impatient", json=[1], headers={"describe": "True"})
    assert answer.json() == [1]
    for method in ("POST", "GET"):
        said = post(server, "/invocations?model_name=impatient", method=method, headers={"describe": "True"})
        assert "hooks" not in said.text


def test_health_is_in_describe_and_in_the_metrics(server: Any) -> None:
    def gauge() -> str:
        address = f"{server.settings.metrics_address}/metrics?name[]=ModelHealthy"
        text = httpx.get(address, headers=server.client.authorization(), trust_env=False).text
        lines = [line for line in text.splitlines() if 'ModelName="several"' in line]
        return lines[0].rsplit(" ", 1)[1] if lines else ""

    assert server.describe("several")["health"] == {"healthy": True}
    until(lambda: gauge() == "1.0", within_s=60)
    post(server, "/predictions/several", json={"wish": "ill"})
    assert server.describe("several")["health"] == {"healthy": False}
    until(lambda: gauge() == "0.0", within_s=60)


def test_kserve_errors(server: Any) -> None:
    """What succeeds is in test_torchserve_checks.py."""
    answer = post(server, "/v1/models/fails:predict", json={"instances": [1, {"wish": "array"}]})
    assert answer.json() == {"predictions": [1, [[0, 1, 2], [3, 4, 5]]]}
    answer = post(server, "/v1/models/fails:predict", json={"instances": [1, {"wish": "value error"}]})
    assert (answer.status_code, answer.json()["error"]) == (400, "instances[1]: x must be a number")
    body = {"inputs": [{"name": "input-0", "shape": [2], "datatype": "FP32", "data": [1, 2]}]}
    answer = post(server, "/v2/models/typed/explain", json=body)
    assert (answer.status_code, set(answer.json())) == (501, {"error", "code", "type", "message", "request_id"})
