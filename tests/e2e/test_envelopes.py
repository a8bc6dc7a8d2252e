"""An archive behind TorchServe's service envelopes, which Vertex AI's and KServe's images force upon every model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from handlergen.errors import RequestFailed
from tests.histories import until
from tests.homes.environments import with_torchserve
from tests.homes.homes import HOMES, Running, make_archives, own, running

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

BY_VARIABLE = ("0.12.0", "kservev2")
"""Set by TS_SERVICE_ENVELOPE, as in KServe's image; the others in config.properties, as in Vertex AI's."""

SERVERS = (("0.12.0", "json"), ("0.12.0", "kserve"), BY_VARIABLE, ("0.9.0", "json"), ("0.9.0", "kserve"))

MODULE = """
class Refused(Exception):
    status_code = 418
    detail = "this is refused"
    headers = {"x-reason": "tea"}

def preprocess(data):
    if isinstance(data, str) and data == "refuse":
        raise Refused
    return data if isinstance(data, (bytes, str)) else getattr(data, "tolist", lambda: data)()

def predict(inputs):
    return [{"together": len(inputs), "got": each} for each in inputs]

def explain(inputs):
    return {"why": inputs}

def postprocess(outputs):
    if isinstance(outputs["got"], bytes):
        return outputs["got"]
    return (f"{number};" for number in range(3)) if outputs["got"] == "stream" else outputs
"""

TENSOR = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1.5, 2]}

both_placements = pytest.mark.parametrize("name", ["other", "apart"])


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_archives(tmp_path_factory.mktemp("archives"), MODULE)


@pytest.fixture(scope="module", params=SERVERS, ids="-".join)
def server(
    request: pytest.FixtureRequest, archives: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """A server with an envelope, and the archives registered as `other` and `apart`."""
    version, envelope = request.param
    home = replace(HOMES["own"], lay_out=partial(own, service_envelope=envelope))
    if request.param == BY_VARIABLE:
        lay_out = partial(own, enable_envvars_config="true")
        home = replace(home, lay_out=lay_out, environ={"TS_SERVICE_ENVELOPE": envelope})
    found = with_torchserve(sys.executable, version, tmp_path_factory.mktemp("torchserve"))
    with running(home, found, tmp_path_factory.mktemp("home"), archives) as server:
        yield server


@both_placements
def test_wrapped_requests_at_every_address(server: Running, name: str) -> None:
    for path in (f"predictions/{name}", f"v1/models/{name}:predict", f"invocations?model_name={name}"):
        status, answer = server.post(path, {"instances": [1, {"a": 2}, {"b64": "AP8="}]})
        assert (status, list(answer)) == (200, ["predictions"])
        assert [each.get("got", each) for each in answer["predictions"]] == [1, {"a": 2}, {"b64": "AP8="}]
        refused = server.http("POST", path, json={"instances": [1, "refuse"]})
        assert (refused.status_code, refused.headers["x-reason"]) == (418, "tea")
        assert refused.json()["error"] == "instances[1]: this is refused"
    for path in (f"predictions/{name}", f"v2/models/{name}/infer"):
        status, answer = server.post(path, {"id": "7", "inputs": [TENSOR]})
        assert (status, answer["model_name"], answer["id"]) == (200, name, "7")
        assert answer["outputs"][1] == {**TENSOR, "name": "got", "datatype": "FP64"}
    for path in (f"explanations/{name}", f"v1/models/{name}:explain"):
        assert server.post(path, {"instances": [1]}) == (200, {"explanations": [{"why": 1}]})


@both_placements
def test_other_requests_answer_as_without_the_envelope(server: Running, name: str) -> None:
    for plain in ({"a": 1}, [1], {"instances": 1}, {"inputs": ["text"]}):
        assert server.post(f"predictions/{name}", plain) == (200, {"together": 1, "got": plain})
    assert server.client.predict(name, content=b"\0\xff").body == b"\0\xff"
    assert b"".join(server.client.stream(name, "stream")) == b"0;1;2;"
    assert server.post(f"explanations/{name}", 5) == (200, {"why": 5})
    refused = server.http("POST", f"predictions/{name}", json="refuse")
    assert (refused.status_code, refused.headers["x-reason"]) == (418, "tea")
    assert (refused.json()["message"], "error" in refused.json()) == ("this is refused", False)
    assert server.described(name)["module"] == {"other": "m", "apart": "p"}[name]


@both_placements
def test_grpc(server: Running, name: str) -> None:
    client = server.client
    assert client.predict_grpc(name, {"b": 2}).json() == {"together": 1, "got": {"b": 2}}
    assert b"".join(client.stream_grpc(name, inputs={"data": b'"stream"', "ts_stream_next": b"true"})) == b"0;1;2;"
    answer = client.predict_grpc(name, {"id": "7", "inputs": [TENSOR]}).json()
    assert (answer["id"], answer["outputs"][1]["data"]) == ("7", TENSOR["data"])
    assert client.predict_grpc(name, {"instances": [3]}).json() == {"predictions": [{"together": 1, "got": 3}]}
    for value in ("refuse", {"instances": ["refuse"]}):
        with pytest.raises(RequestFailed, match="this is refused"):
            client.predict_grpc(name, value)


def test_batches_of_eight_in_order(server: Running) -> None:
    """Plain, wrapped and refused requests share batches."""

    def send(number: int) -> tuple[int, int, int]:
        if number == 3:
            status, answer = server.post("predictions/other", "refuse")
            return 3 if answer["message"] == "this is refused" else -1, status, 0
        if number % 2:
            status, answer = server.post("predictions/other", {"instances": [number]})
            (answer,) = answer["predictions"]
        else:
            status, answer = server.post("predictions/other", number)
        return answer["got"], status, answer["together"]

    def largest_batch() -> int:
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(send, range(16)))
        assert [answer[:2] for answer in answers] == [(number, 418 if number == 3 else 200) for number in range(16)]
        return max(together for _number, _status, together in answers)

    until(lambda: largest_batch() >= 7, within_s=60)  # the refused one is not predicted


def test_no_worker_died_and_no_envelope_worked(server: Running) -> None:
    """Last: what the tests above have left in the log."""
    text = server.log_text()
    assert "Worker died" not in text
    assert "Traceback" not in text
