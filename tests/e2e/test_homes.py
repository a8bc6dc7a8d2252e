"""Archives where people run them: the systems of tests/homes, with the TorchServe and the Python that each carries.

`make test` runs those of `CELLS` with this Python, `make homes` all of them with every Python that has a torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from handlergen.errors import RequestFailed
from tests.histories import until
from tests.homes.environments import with_torchserve
from tests.homes.homes import BATCH, HOMES, Running, make_archives, running

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

CELLS = os.environ.get("HANDLERGEN_HOMES", "own 0.9.0,kserve-v1 0.9.0,sagemaker 0.12.0").split(",")
"""Home and version of TorchServe; the Python's executable, where it is not this one."""

TENSOR = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1.5, 2]}


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_archives(tmp_path_factory.mktemp("archives"))


@pytest.fixture(scope="module", params=CELLS)
def server(
    request: pytest.FixtureRequest, archives: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    home, version, python = (*request.param.split(), sys.executable)[:3]
    found = with_torchserve(python, version, tmp_path_factory.mktemp("torchserve"))
    with running(HOMES[home], found, tmp_path_factory.mktemp(home), archives) as started:
        yield started


@pytest.fixture(params=["worker", "process"])
def name(request: pytest.FixtureRequest, server: Running) -> str:
    """A model's: of the one whose workers predict, or of the one with a predictor process."""
    return server.models[request.param == "process"]


def test_json(server: Running, name: str) -> None:
    assert server.post(f"predictions/{name}", {"a": 1}) == (200, {"data": {"a": 1}, "together": 1})


def test_bytes(server: Running, name: str) -> None:
    assert server.client.predict(name, content=b"\0\xff").json() == {"name": name, "bytes": 2, "together": 1}


def test_form(server: Running, name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"four")
    form = server.client.predict(name, fields={"text": "1", "file": tmp_path / "file"}).json()
    assert form == {"name": name, "fields": {"text": "1"}, "files": {"file": 4}, "together": 1}


def test_grpc(server: Running, name: str) -> None:
    client = server.client
    assert client.predict_grpc(name, {"b": 2}).json() == {"data": {"b": 2}, "together": 1}
    assert b"".join(client.stream_grpc(name, inputs={"data": b'"stream"', "ts_stream_next": b"true"})) == b"0;1;2;"
    assert b"".join(client.stream_grpc(name, 3)) == b'{"data":3,"together":1}'
    # A client that does not ask for chunks: only TorchServe 0.9 and 0.10 tell a worker the method that it called.
    unmarked = client.grpc.message("PredictionsRequest", model_name=name, input={"data": b'"stream"'})
    parts = [part.prediction for part in client.grpc.stream("StreamPredictions", unmarked, timeout=60)]
    told = server.version.startswith(("0.9", "0.10"))
    assert parts == ([b"0;", b"1;", b"2;", b""] if told else [b'"0;1;2;"'])
    with pytest.raises(RequestFailed, match="this is refused") as refused:
        client.predict_grpc(name, "refuse")
    assert refused.value.status == 400


def test_batch(server: Running, name: str) -> None:
    """Rounds, until one has arrived at TorchServe within the batch's delay."""

    def batch() -> int:
        answers = list(pool.map(lambda number: server.post(f"predictions/{name}", number), range(BATCH)))
        assert [(status, answer["data"]) for status, answer in answers] == [(200, number) for number in range(BATCH)]
        return max(answer["together"] for _, answer in answers)

    with ThreadPoolExecutor(BATCH) as pool:
        until(lambda: batch() == BATCH, 60)


def test_error(server: Running, name: str) -> None:
    status, answer = server.post(f"predictions/{name}", "refuse")
    assert (status, answer["code"], answer["message"]) == (400, 400, "this is refused")
    assert {"type", "request_id"} < answer.keys()


def test_stream(server: Running, name: str) -> None:
    assert list(server.client.stream(name, "stream")) == [b"0;", b"1;", b"2;"]


def test_scaling(server: Running, name: str) -> None:
    for workers in (2, 1):
        assert server.client.scale(name, workers, timeout=120).ready_workers == workers
        assert server.post(f"predictions/{name}", workers) == (200, {"data": workers, "together": 1})


def test_kserve(server: Running, name: str) -> None:
    """At KServe's addresses, and where the body decides also at `/predictions`, where KServe and Vertex AI send it."""
    status, answer = server.post(f"v1/models/{name}:predict", {"instances": [1, 2]})
    assert (status, [each["data"] for each in answer["predictions"]]) == (200, [1, 2])
    status, answer = server.post(f"v1/models/{name}:predict", {"instances": [1, "refuse"]})
    assert (status, answer["error"]) == (400, "instances[1]: this is refused")
    status, answer = server.post(f"v1/models/{name}:explain", {"instances": [1, 2]})
    assert (status, answer) == (200, {"explanations": [{"why": 1}, {"why": 2}]})
    status, answer = server.post(f"v2/models/{name}/infer", {"id": "7", "inputs": [TENSOR]})
    assert (status, answer["model_name"], answer["id"]) == (200, name, "7")
    assert answer["outputs"][0] == {"name": "data", "shape": [2], "datatype": "FP32", "data": [1.5, 2.0]}
    head = b'{"inputs":[{"name":"x","shape":[2],"datatype":"INT64","parameters":{"binary_data_size":16}}],'
    head += b'"parameters":{"binary_data_output":true}}'
    numbers = (1).to_bytes(8, "little") + (2).to_bytes(8, "little")
    headers = {"Inference-Header-Content-Length": str(len(head))}
    binary = server.http("POST", f"v2/models/{name}/infer", content=head + numbers, headers=headers)
    assert numbers in binary.content[int(binary.headers["Inference-Header-Content-Length"]) :]
    broken = server.http("POST", f"v2/models/{name}/infer", content=head + numbers[1:], headers=headers)
    assert (broken.status_code, '"binary_data_size" is 16' in broken.json()["error"]) == (400, True)
    assert server.post(f"explanations/{name}", 5) == (200, {"why": 5})
    wrapped, old = {"instances": [1]}, server.version != "0.12.0"
    status, answer = server.post(f"predictions/{name}", wrapped)
    as_kserve = {"predictions": [{"data": 1, "together": 1}]}
    assert (status, answer) == (200, as_kserve if old or server.home.envelope else {"data": wrapped, "together": 1})
    if old and not server.home.envelope:
        assert server.post(f"predictions/{name}", wrapped, url_path="") == (200, {"data": wrapped, "together": 1})
    for own in ({"instances": 1}, {"inputs": ["text"]}, {"inputs": []}, [1]):
        for path in (f"predictions/{name}", *([f"v1/models/{name}:predict"] if old else [])):
            assert server.post(path, own) == (200, {"data": own, "together": 1})


def test_addresses(server: Running) -> None:
    """What the platforms themselves ask: is it healthy; SageMaker's address, with the types that its clients send."""
    assert server.http("GET", "ping").json() == {"status": "Healthy"}
    if server.home.late:
        answers = [
            server.http("POST", "invocations", content=content, headers={"content-type": kind})
            for kind, content in (("application/json", b"[1]"), ("text/csv", b"1,2\n"), ("image/png", b"\x89PNG\r\n"))
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 200]
        expected = [{"data": [1]}, {"data": "1,2\n"}, {"name": "model", "bytes": 6}]
        assert [answer.json() for answer in answers] == [{**each, "together": 1} for each in expected]


def test_description(server: Running, name: str) -> None:
    status = server.client.describe(name)
    assert (status.name, status.batch_size, status.ready) == (name, BATCH, True)
    described = server.described(name)
    assert (described["module"], described["worker"]["pid"]) == ("mp"[name == server.models[1]], status.workers[0].pid)
    held = server.described(name, **{"x-handlergen-command": '{"hold": [], "seconds": 0}'})
    assert held == {"pid": status.workers[0].pid, "holding": [], "refusing": False}


def test_metrics(server: Running, name: str) -> None:
    """With the registered name, where TorchServe is configured to report the metrics of models."""
    if not server.home.own_metrics:
        pytest.skip("this home's configuration leaves out the metrics of models")
    server.client.predict(name, 1)
    line = f'handlergen_answers_total{{status="200",model="{name}"'
    until(lambda: line in server.metrics())
    assert 'model="m"' not in server.metrics()


def test_log(server: Running) -> None:
    """Last: what the tests above have left in the log."""
    text = server.log_text()
    assert "Failed to parse metrics line" not in text
    assert "Worker died" not in text
    assert "NullPointerException" not in text
