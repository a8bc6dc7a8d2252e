"""Every shape of module on a real TorchServe, in batches of up to eight, over REST and gRPC.

test_parity.py serves them one by one. The modules are written the way their systems' documentation writes them.
"""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from torch import nn

from handlergen.archives.build import archive
from handlergen.errors import RequestFailed
from handlergen.performance.recordings import beside, of_stage, overlapping

pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")]

# A module that carries its own preprocess and postprocess. Each answer tells how large its batch was.
MODULE = """
import time
import torch
from torch import nn


class Classifier(nn.Module):
    def __init__(self, in_features, n_classes):
        super().__init__()
        self.linear = nn.Linear(in_features, n_classes)

    def preprocess(self, x):
        if not isinstance(x, list):
            raise ValueError("send a list of numbers")
        return {"x": torch.tensor(x, dtype=torch.float32), "length": len(x)}

    def forward(self, batch):
        time.sleep(0.02)  # so that requests gather meanwhile
        logits = self.linear(batch["x"])
        return {"logits": logits, "batch": torch.full((len(logits),), len(logits))}

    def postprocess(self, output):
        return {"class": int(output["logits"].argmax()), "batch": int(output["batch"])}
"""

# SageMaker's documentation: a model_fn that loads a state dict, an input_fn that looks at the content type.
SAGEMAKER = """
import json
import os

import torch
import torch.nn as nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 1, bias=False)

    def forward(self, x):
        return self.fc(x)


def model_fn(model_dir):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = Net()
    with open(os.path.join(model_dir, "model.pth"), "rb") as f:
        model.load_state_dict(torch.load(f))
    return model.to(device)


def input_fn(request_body, request_content_type):
    if request_content_type == "application/json":
        return torch.tensor(json.loads(request_body)["inputs"])
    raise ValueError(f"{request_content_type} is not supported")


def predict_fn(input_data, model):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.eval()
    with torch.no_grad():
        return model(input_data.to(device))
"""

TRUSS = {
    "config.yaml": """
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
        """,
    "model/__init__.py": "",
    "model/helper.py": "def twice(text):\n    return f'{text} {text}'\n",
    "model/model.py": """
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
                self._tries = 0

            def load(self):
                self._tries += 1
                if self._tries == 1:
                    raise ConnectionError("the hub did not answer")
                self._word = (self._data_dir / "word.txt").read_text().strip()

            async def predict(self, model_input):
                text = twice(f"{self._greeting} {self._word} {model_input['name']}")
                key = self._secrets["api_key"][-4:]
                return {"text": shout(text), "style": STYLE, "key": key, "tries": self._tries}
        """,
    "packages/shout/__init__.py": "def shout(text):\n    return text.upper()\n",
    "data/word.txt": "dear",
}
"""A Truss directory; its load fails the first time."""


def run(function: Callable[[Any], Any], values: list[Any]) -> list[Any]:
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(function, values))


@pytest.fixture(scope="module")
def served(shared: Callable[..., Any], example: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The forms module, flow, sagemaker and model-class."""
    pytest.importorskip("xgboost")
    home = tmp_path_factory.mktemp("forms")
    (home / "net.py").write_text(MODULE)
    torch.manual_seed(1)
    linear = nn.Linear(3, 2)
    torch.save({f"module.linear.{key}": value for key, value in linear.state_dict().items()}, home / "net.pt")
    (home / "inference.py").write_text(SAGEMAKER)
    torch.save({"fc.weight": torch.tensor([[1.0, 10.0]])}, home / "model.pth")
    for name, text in TRUSS.items():
        path = home / "speaker" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    common: dict[str, Any] = {
        "batch_size": 8, "workers_per_device": 1, "max_batch_delay_ms": 20, "model_store": home / "store",
    }  # fmt: skip
    sizes = {"in_features": 3, "n_classes": 2}
    made = [
        archive(home / "net.py", name="module", weights="net.pt", model_kwargs=sizes, **common),
        # Without its requirements, for which TorchServe would make a virtual environment.
        archive(example("cancer"), name="flow", requirements=[], **common),
        archive(home / "inference.py", name="sagemaker", weights="model.pth", **common),
        archive(home / "speaker", name="say", **common),
    ]
    return shared(*[each.path for each in made])


def rows(example: Path, count: int) -> list[dict[str, Any]]:
    lines = (example / "held-out.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:count]]


@pytest.mark.parametrize("way", ["predict", "predict_grpc"])
def test_module(served: Any, way: str) -> None:
    torch.manual_seed(1)
    linear = nn.Linear(3, 2)
    inputs = torch.randn(32, 3).tolist()
    wanted = linear(torch.tensor(inputs)).argmax(dim=1).tolist()
    ask = getattr(served.client, way)
    answers = run(lambda x: ask("module", x).json(), inputs)
    assert [answer["class"] for answer in answers] == wanted
    batches = {answer["batch"] for answer in answers}
    assert max(batches) > 1
    with pytest.raises(RequestFailed, match="send a list of numbers"):
        ask("module", "text")


@pytest.mark.parametrize("way", ["predict", "predict_grpc"])
def test_flow(served: Any, example: Callable[[str], Path], way: str) -> None:
    """scikit-learn's scaler, a torch encoder, an XGBoost classifier: right on nearly all of the held-out data."""
    ask = getattr(served.client, way)
    patients = rows(example("cancer"), 60)
    answers = run(lambda row: ask("flow", row["data"]).json(), patients)
    right = sum(a["diagnosis"] == row["diagnosis"] for a, row in zip(answers, patients, strict=True))
    assert right >= 54
    with pytest.raises(RequestFailed, match="send a list of 30 numbers"):
        ask("flow", [1, 2])


@pytest.mark.parametrize("way", ["predict", "predict_grpc"])
def test_sagemaker(served: Any, way: str) -> None:
    ask = getattr(served.client, way)
    answers = run(lambda x: ask("sagemaker", {"inputs": [[x, 1.0]]}).json(), [float(x) for x in range(24)])
    assert answers == [[[x + 10.0]] for x in range(24)]


@pytest.mark.parametrize("way", ["predict", "predict_grpc"])
def test_a_truss_directory(served: Any, way: str) -> None:
    ask = getattr(served.client, way)
    answers = run(lambda name: ask("say", {"name": name}).json(), ["ann", "bob", "cid", "dan"])
    texts = [f"HELLO DEAR {name} HELLO DEAR {name}" for name in ("ANN", "BOB", "CID", "DAN")]
    assert answers == [{"text": text, "style": "loud", "key": "4711", "tries": 2} for text in texts]
    log = served.log_text()
    assert log.count("ConnectionError: the hub did not answer") == 1  # it is tried once more, and the log says why
    assert "sesame" not in log  # the secret


def test_sagemaker_content_types(served: Any) -> None:
    url = f"{served.settings.inference_address}/predictions/sagemaker"
    token = served.client.authorization()

    def post(content: bytes, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.post(url, content=content, headers={**token, **named})

    body = b'{"inputs": [[1.0, 2.0], [3.0, 4.0]]}'
    answer = post(body, content_type="application/json", accept="text/csv")
    assert (answer.status_code, answer.text) == (200, "21.0\n43.0\n")
    assert answer.headers["content-type"] == "text/csv"
    answer = post(body, content_type="application/json", accept="application/x-npy")
    assert np.load(io.BytesIO(answer.content)).tolist() == [[21.0], [43.0]]
    assert post(body, content_type="application/json", accept="image/png").status_code == 406
    answer = post(b"1,2", content_type="text/csv")
    assert (answer.status_code, "text/csv is not supported" in answer.json()["message"]) == (400, True)


def test_nothing_predicts_beside_anything_else(served: Any, example: Callable[[str], Path]) -> None:
    """Models of several forms share one device; a flow's three stages each take their turn."""
    client = served.client
    jobs = [("module", [1, 2, 3]), ("sagemaker", {"inputs": [[1.0, 2.0]]})]
    jobs += [("flow", row["data"]) for row in rows(example("cancer"), 4)]
    run(lambda job: client.predict(*job), jobs * 8)
    spans = served.spans()
    predictions = of_stage(spans, "predict")
    assert overlapping(predictions) == []
    processes = {span.model: span.pid for span in predictions}
    assert processes.keys() >= {"module", "sagemaker", "flow"}
    assert len(set(processes.values())) == len(processes)
    flows = [span for span in predictions if span.model == "flow"]
    assert len(flows) == 3 * len({span.request_id for span in flows})
    assert beside(of_stage(spans, "preprocess"), predictions)
    assert beside(of_stage(spans, "postprocess"), predictions)
