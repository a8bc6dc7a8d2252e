"""Models as Truss's documentation shows them on a real TorchServe: batches of up to eight, REST and gRPC."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from handlergen.archives.build import archive
from handlergen.errors import RequestFailed

pytestmark = pytest.mark.e2e

# The model of Truss's first guide, the weights replaced by a network that is made on the spot.
CLASSIFIER = """
from typing import Any, Dict, List

import torch


class Model:
    def __init__(self, **kwargs) -> None:
        self._model = None
        self._tries = 0

    def load(self):
        self._tries += 1
        if self._tries == 1:
            raise ConnectionError("the hub did not answer")
        torch.manual_seed(0)
        self._model = torch.nn.Linear(2, 2).eval()
        with torch.no_grad():
            self._model.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
            self._model.bias.zero_()

    def preprocess(self, request: Dict) -> torch.Tensor:
        return torch.tensor(request["point"], dtype=torch.float32)

    def predict(self, point: torch.Tensor) -> torch.Tensor:
        return self._model(point)

    async def postprocess(self, scores: torch.Tensor) -> Dict[str, Any]:
        label = int(scores.argmax())
        return {"label": ["left", "up"][label], "scores": scores.tolist(), "tries": self._tries}
"""

# Truss's guide on requests: the second argument, by its annotation.
REQUESTS = """
class HTTPException(Exception):
    def __init__(self, status_code, detail):
        self.status_code, self.detail = status_code, detail


class Model:
    async def preprocess(self, inputs, request: "Request"):
        if await request.is_disconnected():
            raise HTTPException(499, "gone")
        if request.headers.get("x-tenant") == "unknown":
            raise HTTPException(403, "no such tenant")
        if inputs == {}:
            raise ValueError("hidden")
        return {"tenant": request.headers.get("x-tenant"), "same": await request.json() == inputs}

    def predict(self, inputs):
        return inputs
"""

CONFIG = """
model_name: Say it
python_version: py311
model_metadata:
  greeting: hello
requirements: []
resources:
  cpu: "1"
  memory: 2Gi
  use_gpu: false
  accelerator: null
secrets:
  api_key: null
environment_variables:
  SAY_STYLE: loud
runtime:
  predict_concurrency: 1
"""

SPEAKER = """
import os
from pathlib import Path

from model.helper import twice
from shout import shout

STYLE = os.environ["SAY_STYLE"]


class Model:
    def __init__(self, config, data_dir: Path, secrets):
        self._greeting = config["model_metadata"]["greeting"]
        self._data_dir = data_dir
        self._secrets = secrets

    def load(self):
        self._word = (self._data_dir / "word.txt").read_text().strip()

    def predict(self, model_input):
        text = twice(f"{self._greeting} {self._word} {model_input['name']}")
        return {"text": shout(text), "style": STYLE, "key": self._secrets["api_key"][-4:]}
"""


def write(directory: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return directory


@pytest.fixture(scope="module")
def server(shared: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("truss")
    write(home, {"classifier.py": CLASSIFIER, "tenants.py": REQUESTS})
    truss = write(
        home / "speaker",
        {
            "config.yaml": CONFIG,
            "model/__init__.py": "",
            "model/model.py": SPEAKER,
            "model/helper.py": "def twice(text):\n    return f'{text} {text}'\n",
            "packages/shout/__init__.py": "def shout(text):\n    return text.upper()\n",
            "data/word.txt": "dear",
        },
    )
    store = home / "store"
    batch: dict[str, Any] = {"batch_size": 8, "max_batch_delay_ms": 200, "workers_per_device": 1}
    sources = {"classifier": home / "classifier.py", "tenants": home / "tenants.py", "say": truss}
    mars = [archive(source, model_store=store, name=name, **batch).path for name, source in sources.items()]
    return shared(*mars)


@pytest.fixture(params=["rest", "grpc"])
def ask(server: Any, request: pytest.FixtureRequest) -> Callable[[str, Any], Any]:
    client = server.client
    call = client.predict if request.param == "rest" else client.predict_grpc
    return lambda name, data: call(name, data).json()


def test_a_class_whose_load_fails_the_first_time(ask: Callable[[str, Any], Any]) -> None:
    points = [[float(number % 3), 1.0] for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda point: ask("classifier", {"point": point}), points))
    assert answers == [
        {
            "label": "left" if point[0] > point[1] or point[0] == point[1] else "up",
            "scores": point,
            "tries": 2,
        }
        for point in points
    ]


def test_a_truss_directory(ask: Callable[[str, Any], Any]) -> None:
    names = [f"n{number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda name: ask("say", {"name": name}), names))
    assert answers == [
        {"text": f"HELLO DEAR {name} HELLO DEAR {name}".upper(), "style": "loud", "key": "4711"} for name in names
    ]


def test_the_request_and_errors(server: Any) -> None:
    client, name = server.client, "tenants"
    answer = client.predict(name, {"a": 1}, headers={"X-Tenant": "one"})
    assert answer.json() == {"tenant": "one", "same": True}
    assert client.predict_grpc(name, {"a": 1}).json() == {"tenant": None, "same": True}
    with pytest.raises(RequestFailed, match="no such tenant") as failed:
        client.predict(name, {"a": 1}, headers={"X-Tenant": "unknown"})
    assert failed.value.status == 403
    with pytest.raises(RequestFailed) as failed:
        client.predict(name, {})
    assert (failed.value.status, "hidden" in str(failed.value)) == (500, False)


def test_the_first_failure_of_load_is_logged_and_the_secret_is_not(server: Any) -> None:
    log = server.log_text()
    assert log.count("ConnectionError: the hub did not answer") == 1
    assert "sesame" not in log
