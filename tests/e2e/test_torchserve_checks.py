"""What TorchServe's own regression suite asks of a server over REST, asked of a model that handlergen packed.

The suite's Postman collections (pytorch/serve, test/postman: management, inference, explanation, kf and kfv2)
register a model by URL, predict, compare, explain, scale, unregister, and read the metrics; tables of requests and
statuses drive them. Their models come from the network; here the same requests go to a digit classifier out of the
model store. The statuses are the suite's. `docs/answers-and-errors.md` says what of it passes.
"""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.archives import make_archive

pytestmark = pytest.mark.e2e

DIGITS = '''
"""The digit whose place in a picture of ten pixels is the brightest."""
import base64
import torch

def load(context):
    return torch.nn.Identity()

def preprocess(data):
    if isinstance(data, dict):       # KServe v1, as in TorchServe's examples: {"data": "base64", "target": 0}
        data = base64.b64decode(data["data"])
    elif isinstance(data, list):     # KServe v2, BYTES
        data = base64.b64decode(data[0])
    if isinstance(data, bytes):
        data = list(data)
    return torch.as_tensor(data, dtype=torch.float32).reshape(10)

def predict(inputs, model):
    return model(inputs)

def postprocess(outputs):
    return int(outputs.argmax())

def explain(inputs, data):
    inputs.requires_grad_()
    (inputs ** 2).sum().backward()
    return inputs.grad
'''

SCORES = DIGITS.replace(
    "return int(outputs.argmax())", "return {str(digit): float(p) for digit, p in enumerate(outputs.softmax(0))}"
)

PICTURE = bytes([0, 1, 9, 3, 0, 0, 0, 0, 0, 0])
TENSOR = {"name": "input-0", "shape": [1, 10], "datatype": "FP32", "data": [list(map(float, PICTURE))]}


@dataclass(frozen=True)
class Suite:
    """The requests of the suite, to the ports of one server."""

    server: Any

    def management(self, method: str, path: str) -> httpx.Response:
        return self._send("management", self.server.settings.management_address, method, path)

    def inference(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self._send("inference", self.server.settings.inference_address, method, path, **options)

    def metrics(self) -> str:
        return self._send("inference", self.server.settings.metrics_address, "GET", "/metrics").text

    def _send(self, kind: str, address: str, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.server.key(kind)}", **options.pop("headers", {})}
        return httpx.request(method, address + path, headers=headers, trust_env=False, timeout=120, **options)


@pytest.fixture(scope="module")
def suite(shared: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Suite:
    home = tmp_path_factory.mktemp("suite")
    server = shared()
    for name, source in (("digits", DIGITS), ("scores", SCORES)):
        shutil.copy(make_archive(home, name, source), server.store)
    return Suite(server)


def registered(suite: Suite, name: str) -> None:
    answer = suite.management("POST", f"/models?url={name}.mar&model_name={name}&initial_workers=1&synchronous=true")
    assert answer.status_code == 200, answer.text


def unregistered(suite: Suite, name: str) -> None:
    assert suite.management("DELETE", f"/models/{name}").status_code in (200, 201, 202)


@pytest.fixture(scope="module")
def digits(suite: Suite) -> Iterator[Suite]:
    """The suite, with its model registered for tests that only predict."""
    registered(suite, "digits")
    yield suite
    unregistered(suite, "digits")


def test_inference_register_predict_compare_unregister(suite: Suite) -> None:
    """inference_api_test_collection: a file without a content type; text compared whole, probabilities to 1 %."""
    registered(suite, "digits")
    answer = suite.inference("POST", "/predictions/digits", content=PICTURE)
    assert (answer.status_code, answer.text) == (200, "2")
    unregistered(suite, "digits")
    assert suite.inference("POST", "/predictions/digits", content=PICTURE).status_code == 404

    registered(suite, "scores")
    scores = suite.inference("POST", "/predictions/scores", content=PICTURE).json()
    assert sorted(scores) == [str(digit) for digit in range(10)]
    assert scores["2"] == pytest.approx(0.99687, rel=0.01)
    unregistered(suite, "scores")


# Method, path and status of management_data.json's requests, in the order of their effects; 200 where it names none.
# Where TorchServe 0.12 itself differs from the suite, its status, and the suite's beside it.
MANAGEMENT = [
    ("POST", "/models?url=digits.mar&model_name=digits", 200),
    ("POST", "/models?url=digits.mar&model_name=digits", 409),  # suite: 500
    ("POST", "/models", 400),
    ("GET", "/models/digits/all", 200),
    ("GET", "/models/digits/1.0", 200),
    ("GET", "/models/digits", 200),
    ("DELETE", "/models/digits", 200),
    ("POST", "/models?url=digits.mar&model_name=digits&runtime=python4", 400),
    ("GET", "/models?limit=&next_page_token=", 200),
    ("POST", "/models?url=digits.mar&model_name=digits&initial_workers=0", 200),
    ("PUT", "/models/digits?min_worker=1", 202),
    ("PUT", "/models/digits?min_worker=1&synchronous=true", 200),
    ("PUT", "/models/digits/1.0?min_worker=1&synchronous=true", 200),
    ("PUT", "/models/digits/0.0?min_worker=1&synchronous=true", 404),
    ("PUT", "/models/digits?min_worker=1&number_gpu=1", 202),
    ("PUT", "/models/digits/1.0/set-default", 200),
    ("PUT", "/models/digits/0.0/set-default", 404),
    ("PUT", "/models/digits0_1/1.0/set-default", 404),
    ("GET", "/models?limit=1", 200),
    ("GET", "/models?limit=-1", 200),
    ("GET", "/models?limit=1&next_page_token=1", 200),
    ("GET", "/models?limit=1&next_page_token=-1", 200),
    ("GET", "/models?next_page_token=12", 200),
    ("PUT", "/models/digits?number_gpu=10", 202),
    ("PUT", "/models/digits?min_worker=1&max_worker=1&synchronous=true", 200),
    ("PUT", "/models/digits?min_worker=1&max_worker=1&synchronous=false", 202),
    ("PUT", "/models/digits?number_gpu=-1", 202),
    ("PUT", "/models/digits?timeout=-1", 202),
    ("PUT", "/models/digits?timeout=0", 202),
    ("PUT", "/models/digits?min_worker=nan&synchronous=nan", 202),
    ("PUT", "/models/digits", 202),
    ("POST", "/models?url=&model_name=digits", 404),
    ("POST", "/models?url=invalid-digits.mar&model_name=invalid", 404),  # suite: 400, for a URL on the network
    ("GET", "/models/invalid_digits", 404),
    ("GET", "/models/digits/0.0", 404),
    ("PUT", "/models/digits?min_worker=1&synchronous=Nan", 202),
    ("PUT", "/models/digits181?min_worker=1", 404),
    ("PUT", "/models/digits?min_worker=2&max_worker=1", 400),
    ("PUT", "/models/digits?min_worker=0", 202),
    ("PUT", "/models/digits?min_worker=-1", 500),
    ("PUT", "/models/digits?max_worker=-1", 400),
    ("PUT", "/models/invalid_digits/1.0/set-default", 404),
    ("DELETE", "/models/digits/0.0", 404),
    ("DELETE", "/models/digits/?synchronous=true", 200),
    ("POST", "/models?url=digits.mar&model_name=digits&batch_size=2&initial_workers=1&max_batch_delay=junk", 200),
    ("DELETE", "/models/digits", 200),
    ("POST", "/models?url=digits.mar&model_name=digits&batch_size=dd&synchronous=true", 200),
    ("DELETE", "/models/digits/?timeout=true&synchronous=-1", 200),
    ("DELETE", "/models/invalid_digits", 404),
]


def test_management(suite: Suite) -> None:
    """management_data.json: every request has the status that the suite expects."""
    different = []
    for method, path, status in MANAGEMENT:
        answer = suite.management(method, path)
        if answer.status_code != status:
            different.append((method, path, status, answer.status_code, answer.text[:200]))
    assert different == []


def test_a_model_registered_with_another_batch_size_answers(suite: Suite) -> None:
    registered = suite.management(
        "POST", "/models?url=digits.mar&model_name=other&batch_size=3&initial_workers=1&synchronous=true"
    )
    assert registered.status_code == 200
    assert suite.inference("POST", "/predictions/other", content=PICTURE).text == "2"
    unregistered(suite, "other")


def test_url_path(digits: Suite) -> None:
    """test/pytest/test_url_path.py: what follows the version in the address is predicted with, too."""
    assert digits.inference("POST", "/predictions/digits/1.0/any/further/path", content=PICTURE).text == "2"


def test_explanations(digits: Suite) -> None:
    """explanation_api_test_collection."""
    answer = digits.inference("POST", "/explanations/digits", content=PICTURE)
    assert (answer.status_code, answer.json()) == (200, [2.0 * pixel for pixel in PICTURE])


def test_kserve_v1(digits: Suite) -> None:
    """kf_api_test_collection."""
    body = {"instances": [{"data": base64.b64encode(PICTURE).decode(), "target": 0}]}
    answer = digits.inference("POST", "/v1/models/digits:predict", json=body)
    assert (answer.status_code, answer.json()) == (200, {"predictions": [2]})
    answer = digits.inference("POST", "/v1/models/digits:explain", json=body)
    assert (answer.status_code, len(answer.json()["explanations"][0])) == (200, 10)


def test_kserve_v2(digits: Suite) -> None:
    """kfv2_api_test_collection: the whole answer is compared, the output's name and shape included."""
    expected = {
        "id": "d3b15cad",
        "model_name": "digits",
        "model_version": "1.0",
        "outputs": [{"name": "input-0", "shape": [1], "datatype": "INT64", "data": [2]}],
    }
    as_bytes = {**TENSOR, "shape": [-1], "datatype": "BYTES", "data": [base64.b64encode(PICTURE).decode()]}
    for tensor in (TENSOR, as_bytes):
        answer = digits.inference("POST", "/v2/models/digits/infer", json={"id": "d3b15cad", "inputs": [tensor]})
        assert (answer.status_code, answer.json()) == (200, expected)
    answer = digits.inference("POST", "/v2/models/digits/explain", json={"id": "d3b15cad", "inputs": [TENSOR]})
    assert answer.json()["outputs"][0]["shape"] == [10]


def test_kserve_v2_in_binary(digits: Suite) -> None:
    """No test of the suite: a tensor after the JSON, in the request and in the answer."""
    head = (
        b'{"id":"7","inputs":[{"name":"x","shape":[1,10],"datatype":"UINT8","parameters":{"binary_data_size":10}}],'
        b'"parameters":{"binary_data_output":true}}'
    )
    size = {"Inference-Header-Content-Length": str(len(head))}
    answer = digits.inference("POST", "/v2/models/digits/infer", content=head + PICTURE, headers=size)
    head = (
        b'{"model_name":"digits","model_version":"1.0","id":"7","outputs":[{"name":"x","shape":[1],"datatype":"INT64",'
        b'"parameters":{"binary_data_size":8}}]}'
    )
    assert (answer.status_code, answer.content) == (200, head + (2).to_bytes(8, "little"))
    assert answer.headers["Inference-Header-Content-Length"] == str(len(head))
    assert answer.headers["Content-Type"] == "application/octet-stream"
    answer = digits.inference("POST", "/v2/models/digits/infer", content=head[:-1] + PICTURE, headers=size)
    assert (answer.status_code, answer.json()["error"]) == (400, answer.json()["message"])


def test_metrics(digits: Suite) -> None:
    digits.inference("POST", "/predictions/digits", content=PICTURE)
    assert re.search(r'Requests2XX\{Level="Host",Hostname=".*",\} \d+\.\d+', digits.metrics())
