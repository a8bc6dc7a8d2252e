"""An archive in the TorchServe versions that images and clouds carry, beside the one that is installed here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from handlergen.errors import RequestFailed
from tests.archives import make_archive
from tests.histories import until
from tests.torchserve_versions import VersionedServer, running

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

VERSIONS = ("0.9.0", "0.10.0", "0.11.1")

MODULE = """
def preprocess(data, files, context):
    if isinstance(data, str) and data == "refuse":
        raise ValueError("this is refused")
    if files:
        return {"name": context.model_name, "fields": data, "files": {file.name: len(file.read()) for file in files}}
    return {"name": context.model_name, "bytes": len(data)} if isinstance(data, bytes) else {"data": data}

def predict(inputs):
    return [{**each, "together": len(inputs)} for each in inputs]

def explain(inputs):
    return {"why": inputs["data"]}

def postprocess(outputs):
    if isinstance(outputs.get("data"), str) and outputs["data"] == "stream":
        return (f"{number};" for number in range(3))
    return outputs
"""

TENSOR = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1.5, 2]}


@pytest.fixture(scope="module", params=VERSIONS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VersionedServer]:
    directory = tmp_path_factory.mktemp("archives")
    archive = make_archive(directory, "m", MODULE, batch="list", batch_size=4, max_batch_delay_ms=200)
    shared = make_archive(directory, "p", MODULE, batch="list", predictor="process")
    with running(request.param, {"other": archive, "apart": shared}, tmp_path_factory) as server:
        yield server


@pytest.mark.parametrize("name", ["other", "apart"])
def test_predictions(server: VersionedServer, name: str, tmp_path: Path) -> None:
    client = server.client
    (tmp_path / "file").write_bytes(b"four")
    assert server.post(f"predictions/{name}", {"a": 1}) == (200, {"data": {"a": 1}, "together": 1})
    assert client.predict(name, content=b"\0\xff").json() == {"name": name, "bytes": 2, "together": 1}
    form = client.predict(name, fields={"text": "1", "file": tmp_path / "file"}).json()
    assert form == {"name": name, "fields": {"text": "1"}, "files": {"file": 4}, "together": 1}
    assert b"".join(client.stream(name, "stream")) == b"0;1;2;"
    assert client.predict_grpc(name, {"b": 2}).json() == {"data": {"b": 2}, "together": 1}
    assert b"".join(client.stream_grpc(name, inputs={"data": b'"stream"', "ts_stream_next": b"true"})) == b"0;1;2;"
    assert b"".join(client.stream_grpc(name, 3)) == b'{"data":3,"together":1}'
    unmarked = client.grpc.message("PredictionsRequest", model_name=name, input={"data": b'"stream"'})
    parts = [part.prediction for part in client.grpc.stream("StreamPredictions", unmarked, timeout=30)]
    assert parts == ([b'"0;1;2;"'] if server.version == "0.11.1" else [b"0;", b"1;", b"2;", b""])
    with pytest.raises(RequestFailed, match="this is refused") as refused:
        client.predict(name, "refuse")
    assert refused.value.status == 400
    with pytest.raises(RequestFailed, match="this is refused") as refused:
        client.predict_grpc(name, "refuse")
    assert refused.value.status == 400
    assert server.post(f"explanations/{name}", 5) == (200, {"why": 5})


def test_a_batch_of_four(server: VersionedServer) -> None:
    def largest_batch() -> int:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda number: server.post("predictions/other", number), range(8)))
        assert [(status, answer["data"]) for status, answer in answers] == [(200, number) for number in range(8)]
        return max(answer["together"] for _, answer in answers)

    until(lambda: largest_batch() == 4, within_s=60)


@pytest.mark.parametrize("name", ["other", "apart"])
def test_kserve_is_recognised_by_its_body(server: VersionedServer, name: str) -> None:
    status, answer = server.post(f"v1/models/{name}:predict", {"instances": [1, 2]})
    assert (status, [each["data"] for each in answer["predictions"]]) == (200, [1, 2])
    status, answer = server.post(f"v1/models/{name}:predict", {"instances": [1, "refuse"]})
    assert (status, answer["error"]) == (400, "instances[1]: this is refused")
    status, answer = server.post(f"v1/models/{name}:explain", {"instances": [1, 2]})
    assert (status, answer) == (200, {"explanations": [{"why": 1}, {"why": 2}]})
    status, answer = server.post(f"v2/models/{name}/infer", {"id": "7", "inputs": [TENSOR]})
    assert (status, answer["model_name"], answer["id"]) == (200, name, "7")
    assert answer["outputs"][0] == {"name": "data", "shape": [2], "datatype": "FP32", "data": [1.5, 2.0]}
    # Binary tensors are recognised by their header.
    head = b'{"inputs":[{"name":"x","shape":[2],"datatype":"INT64","parameters":{"binary_data_size":16}}],'
    head += b'"parameters":{"binary_data_output":true}}'
    numbers = (1).to_bytes(8, "little") + (2).to_bytes(8, "little")
    for tensors, expected in ((numbers, 200), (numbers[1:], 400)):
        binary = httpx.post(
            f"{server.client.settings.inference_address}/v2/models/{name}/infer",
            content=head + tensors,
            headers={"Inference-Header-Content-Length": str(len(head))},
            trust_env=False,
            timeout=30,
        )
        assert binary.status_code == expected
        assert expected == 400 or numbers in binary.content[int(binary.headers["Inference-Header-Content-Length"]) :]
    assert '"binary_data_size" is 16' in binary.json()["error"]
    # TorchServe hides the address: what is no request of KServe's is the module's own, at every address ...
    for own in ({"instances": 1}, {"inputs": ["text"]}, {"inputs": []}, [1]):
        for path in (f"predictions/{name}", f"v1/models/{name}:predict"):
            assert server.post(path, own) == (200, {"data": own, "together": 1})
    # ... and what is one is KServe's, unless the client says otherwise.
    status, answer = server.post(f"predictions/{name}", {"instances": [1]})
    assert (status, list(answer)) == (200, ["predictions"])
    own = {"instances": [1]}
    assert server.post(f"predictions/{name}", own, url_path="") == (200, {"data": own, "together": 1})


def test_descriptions_and_commands(server: VersionedServer) -> None:
    status = server.client.describe("other")
    assert (status.name, status.batch_size, status.ready) == ("other", 4, True)
    described = server.described("other")
    assert (described["module"], described["worker"]["pid"]) == ("m", status.workers[0].pid)
    held = server.described("other", **{"x-handlergen-command": json.dumps({"hold": [], "seconds": 0})})
    assert held == {"pid": status.workers[0].pid, "holding": [], "refusing": False}


def test_metrics_have_the_registered_name(server: VersionedServer) -> None:
    """The archives are called `m` and `p`."""
    for name in ("other", "apart"):
        server.client.predict(name, 1)
        line = f'handlergen_answers_total{{status="200",model="{name}"'
        until(lambda line=line: line in server.metrics())  # type: ignore[misc]
    assert 'model="m"' not in server.metrics()


def test_no_worker_dies_and_no_line_is_lost(server: VersionedServer) -> None:
    """Last: what the tests above have left in the log."""
    text = server.log_text()
    assert "Failed to parse metrics line" not in text
    assert "Worker died" not in text
    assert "NullPointerException" not in text
