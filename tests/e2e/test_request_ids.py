"""A client's `x-request-id` in answers, errors, spans and `handlergen logs`, wherever the stages run."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from handlergen.errors import RequestFailed
from tests.archives import make_archive
from tests.commands import handlergen
from tests.histories import until

pytestmark = pytest.mark.e2e

SOURCE = """
def preprocess(data, request):
    print("preparing", data)
    return data, request.id

def predict(inputs):
    if inputs[0] == "stream":
        return (part for part in inputs[1:])
    if inputs[0] == "crash":
        raise RuntimeError("the cause is here")
    return inputs[1]
"""
PLACEMENTS = {
    "batching": {"predictor": "worker", "batch_size": 3, "max_batch_delay_ms": 300, "batch": "list"},
    "divided": {"predictor": "process", "stages": "worker"},
    "relayed": {"predictor": "process", "stages": "predictor"},
}
LIST_SOURCE = """
def preprocess(data, request):
    return data, request.id

def predict(inputs):
    if "crash" in dict(inputs):
        raise RuntimeError("the cause is here")
    return [request_id for data, request_id in inputs]
"""


@pytest.fixture(scope="module")
def server(shared: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("ids")
    sources = {"batching": LIST_SOURCE}
    return shared(*(make_archive(home, name, sources.get(name, SOURCE), **PLACEMENTS[name]) for name in PLACEMENTS))


def post(server: Any, model: str, data: Any, **headers: str) -> httpx.Response:
    return httpx.post(
        f"{server.settings.inference_address}/predictions/{model}",
        json=data,
        headers={**server.client.authorization(), **{name.replace("_", "-"): value for name, value in headers.items()}},
        trust_env=False,
        timeout=60,
    )


@pytest.mark.parametrize("model", PLACEMENTS)
def test_the_clients_id_is_in_the_answer_the_error_the_spans_and_the_log(server: Any, model: str) -> None:
    given = f"{model}.2026:1"
    with ThreadPoolExecutor(4) as pool:
        same = [pool.submit(post, server, model, 1, X_Request_ID=given) for _ in range(2)]
        unnamed = pool.submit(post, server, model, 1)
        failed = pool.submit(post, server, model, "crash", x_request_id=given)
    for answer in (each.result() for each in same):
        assert (answer.status_code, answer.json()) == (200, given)
        assert answer.headers["x-client-request-id"] == given
    own = unnamed.result().headers
    assert (unnamed.result().json(), "x-client-request-id" in own) == (own["x-request-id"], False)
    error = failed.result()
    assert (error.status_code, error.json()["request_id"]) == (500, given)
    assert error.headers["x-client-request-id"] == given
    # TorchServe writes its own to x-request-id; spans and log have both, so that two requests of one id are two.
    torchserves = [each.result().headers["x-request-id"] for each in (*same, failed)]
    assert len(set(torchserves)) == 3
    expected = {f"{given}/{one}" for one in torchserves} | {own["x-request-id"]}

    def recorded() -> bool:
        spans = [span for span in server.spans() if span.stage == "predict" and span.model == model]
        return expected <= {name for span in spans for name in span.request_id.split(",")}

    until(recorded)
    cause = "RuntimeError: the cause is here"
    until(lambda: cause in server.log_text().partition(torchserves[2])[2])
    for name in (given, torchserves[2]):
        done = handlergen("logs", name, "--json", cwd=server.directory)
        (event,) = [json.loads(line) for line in done.stdout.splitlines()]
        assert event["text"].startswith(f"request {given}/{torchserves[2]} failed in predict with status 500\n")
        assert cause in event["text"]
        assert (event["level"], event["model"]) == ("error", f"{model}_1.0")


@pytest.mark.parametrize("given", ["", "a b", "../x", "a,b", "é", "x" * 129])
def test_an_unusable_id_is_ignored(server: Any, given: str) -> None:
    answer = post(server, "relayed", 1, x_request_id=given.encode("latin-1"))  # type: ignore[arg-type]
    assert answer.json() == answer.headers["x-request-id"]
    assert "x-client-request-id" not in answer.headers


def test_a_stream_has_it_before_its_first_chunk(server: Any) -> None:
    answer = post(server, "divided", "stream", x_request_id="of-a-stream")
    assert (answer.text, answer.headers["x-client-request-id"]) == ("of-a-stream", "of-a-stream")


@pytest.mark.parametrize("model", PLACEMENTS)
def test_over_grpc_it_is_an_input(server: Any, model: str) -> None:
    named = {"x-request-id": b"grpc-1"}
    assert server.client.predict_grpc(model, inputs={"data": b"1", **named}).body == b'"grpc-1"'
    with pytest.raises(RequestFailed, match="under request id grpc-1"):
        server.client.predict_grpc(model, inputs={"data": b'"crash"', **named})
