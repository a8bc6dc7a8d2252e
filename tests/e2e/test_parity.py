"""One pipeline: served, local and offline answers are the same bytes, for every example and every form.

Local and offline answers come from a clean process, as a served one does: how many threads torch uses decides the last
digits of its sums. The shared server has all models.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from handlergen.archives.build import archive

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),  # the first test's setup trains, archives, serves and maps all models
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

FUNCTIONS = """
import datetime
import torch

labels = {1: "eins"}

class NotThere(Exception):
    status_code = 404
    detail = "no such thing"

class Teapot:
    status_code = 418
    body = {"short": True}
    headers = {"x-kind": "pot"}

def setup(context):
    labels[2] = "zwei"

def load(context):
    torch.manual_seed(0)
    return torch.nn.Linear(3, 5)

def preprocess(data, files, request):
    request.metadata["type"] = request.content_type
    if files:
        return {"x": [len(file.read()) for file in files]}
    if not isinstance(data, dict):
        return {"x": [float(len(data)), 0.5, 1e-9], "kind": type(data).__name__}
    if data.get("do") == "refuse":
        raise ValueError("not this, \\u00fcbrigens")
    return data

def predict(inputs, model):
    if inputs.get("do") == "fail":
        raise RuntimeError("inside")
    if "x" not in inputs:
        return None
    return model(torch.tensor(inputs["x"], dtype=torch.float32).reshape(-1)[:3])

def postprocess(outputs, input_data, request):
    do = input_data.get("do") if isinstance(input_data, dict) else None
    if do == "missing":
        raise NotThere
    special = {
        "teapot": Teapot, "bytes": lambda: b"\\x00\\xff", "text": lambda: "\\u00e4 \\ud83e",
        "odd": lambda: [float("nan"), float("inf"), 1e300, labels, datetime.datetime(2020, 1, 2), {1, }],
        "unsendable": lambda: {"a": [object()]},
    }
    if do in special:
        return special[do]()
    return {"y": outputs, "type": request.metadata["type"], "labels": labels}
"""

KEYWORDS = """
def predict(first, second=2):
    return {"sum": first + second}
"""

MODEL_CLASS = """
import asyncio
import torch

class Model:
    def __init__(self, config, secrets):
        self.scale = config.get("scale", 3)

    def load(self):
        torch.manual_seed(1)
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.GELU(), torch.nn.Linear(64, 4))

    async def preprocess(self, body, request: "Request"):
        await asyncio.sleep(0)
        self.seen = request.headers.get("x-word", "nothing")
        return torch.tensor(body["x"], dtype=torch.float32)

    def predict(self, inputs):
        return self.net(inputs) * self.scale

    async def postprocess(self, outputs):
        return {"y": outputs, "word": self.seen}
"""

STREAM = """
def predict(inputs):
    for number in range(inputs["n"]):
        yield {"n": number} if inputs.get("rows") else f"w\\u00f6rd {number} "
"""

MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.conv = nn.Conv2d(3, 8, 3)
        self.out = nn.Linear(8, 4)

    def preprocess(self, x):
        if x == "bad":
            raise ValueError("bad")
        return torch.full((3, 9, 9), float(x))

    def forward(self, batch):
        return {"logits": self.out(self.conv(batch).mean((2, 3)))}

    def postprocess(self, output):
        return {"class": int(output["logits"].argmax()), "logits": output["logits"]}
"""

SAGEMAKER = """
import json
import numpy as np

def model_fn(model_dir):
    return np.eye(2)

def input_fn(body, content_type):
    if content_type == "text/csv":
        return np.array([float(cell) for cell in body.split(",")])
    return np.array(json.loads(body))

def predict_fn(data, model):
    return model @ data

def output_fn(prediction, accept):
    return json.dumps({"y": prediction.tolist()})
"""

FLOW = """
import numpy as np

def double(data):
    return np.asarray(data["x"]) * 2

def shift(data):
    return data + 1

FLOW = [("python", double), ("python", shift, {"post": lambda result, input_data: {"y": result, "was": input_data}})]
"""

INLINE: dict[str, tuple[str, dict[str, Any]]] = {
    "functions": (FUNCTIONS, {}),
    "keywords": (KEYWORDS, {}),
    "model_class": (MODEL_CLASS, {"config": {"scale": 2}}),
    "stream": (STREAM, {}),
    "module": (MODULE, {}),
    "sagemaker": (SAGEMAKER, {}),
    "flow": (FLOW, {}),
}

JSON = "application/json"
WHOLE = {"Accept": JSON}
"""A stream's chunks as one value, which is what an offline row gets."""


def as_json(*values: Any, **headers: str) -> list[dict[str, Any]]:
    return [{"body": json.dumps(value), "type": JSON, "headers": headers} for value in values]


REQUESTS: dict[str, list[dict[str, Any]]] = {
    "functions": [
        *as_json({"x": [1, 2, 3]}, {"x": [0.1, 0.2, 0.3]}, "text", None),
        *as_json(*({"x": [1, 2, 3], "do": what} for what in ("refuse", "fail", "missing", "teapot", "bytes"))),
        *as_json(*({"x": [1, 2, 3], "do": what} for what in ("text", "odd", "unsendable"))),
        {"body": "{broken", "type": JSON},
        {"body": "plain w\u00f6rds", "type": "text/plain; charset=utf-8"},
        {"body": "octets", "type": "application/octet-stream"},
    ],
    "keywords": as_json({"first": 1}, {"first": 1, "second": 5}, {"third": 3}, 7),
    "model_class": [*as_json({"x": [1, 2, 3, 4]}, {"x": "no"}), *as_json({"x": [0, 0, 1, 0]}, **{"X-Word": "w"})],
    "stream": as_json({"n": 3}, {"n": 2, "rows": True}, {"n": 0}, {"m": 1}, **WHOLE),
    "module": as_json(1, 0.3, "bad"),
    "sagemaker": [*as_json([1.5, 2]), {"body": "3,4", "type": "text/csv"}, *as_json([1, 2, 3])],
    "flow": as_json({"x": [1, 2]}, {"x": [0.5]}, {"z": 1}),
}

PROGRAM = """
import base64, json, sys, logging
import handlergen
logging.disable()

def plain(answer, headers=None):
    return [answer.status, answer.content_type, base64.b64encode(answer.body).decode(), headers or {}]

found = {}
for name, (sources, requests) in json.load(open(sys.argv[1])).items():
    for way, source in sources.items():
        with handlergen.load(source) as model:
            found[f"{name} {way}"] = [
                plain(a, a.headers) for a in (
                    model.request(base64.b64decode(r["body"]), content_type=r["type"], headers=r.get("headers"))
                    for r in requests
                )
            ]
            for workers in (0, 1):
                found[f"{name} {way} offline {workers}"] = rows = []
                for request in requests:
                    # A row of a map has a content type and nothing else, like a file of that name.
                    from handlergen.local.offline.rows import Row, in_chunks, result_of
                    from handlergen.local.offline.engine import LocalEngine
                    row = Row("row-0", base64.b64decode(request["body"]), request["type"])
                    finish = lambda chunk, items: result_of("row-0", items[0])
                    chunks = in_chunks([row], 1)
                    (result,) = LocalEngine(model, workers=workers).answer(chunks, finish)
                    rows.append(plain(result))
json.dump(found, sys.stdout)
"""

MODELS = [*INLINE, *sorted(path.name for path in EXAMPLES.iterdir() if (path / "handlergen.yaml").is_file())]


@pytest.fixture(scope="module")
def answers(
    shared: Callable[..., Any], example: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[list[Any]]]:
    """Model and way → its answers: status, content type, body, headers."""
    home = tmp_path_factory.mktemp("parity")
    marks, work = [], {}
    for name in MODELS:
        source, requests, settings = _inline(home, name) if name in INLINE else _example(example(name))
        settings = {"workers_per_device": 1, "model_store": home / "store", **settings}
        mark = archive(source, name=name, **settings)
        marks.append(mark.path)
        for request in requests:
            body = request["body"]
            request["body"] = base64.b64encode(body if isinstance(body, bytes) else body.encode()).decode()
        # Settings of the archive that its source alone does not have stand in it only.
        work[name] = ({"source": str(source), "archive": str(mark.path)}, requests)
    (home / "work.json").write_text(json.dumps(work))
    server = shared(*marks)
    found: dict[str, list[list[Any]]] = {}
    for name, (_, requests) in work.items():
        found[f"{name} served"] = [_served(server.client, name, request) for request in requests]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(home / "work.json")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found.update(json.loads(done.stdout))
    return found


def _inline(home: Path, name: str) -> tuple[Path, list[dict[str, Any]], dict[str, Any]]:
    text, settings = INLINE[name]
    directory = home / name
    directory.mkdir()
    (directory / f"{name}_source.py").write_text(textwrap.dedent(text))
    lines = [f"source: {name}_source.py", *(f"{key}: {json.dumps(value)}" for key, value in settings.items())]
    (directory / "handlergen.yaml").write_text("\n".join(lines) + "\n")
    return directory, REQUESTS[name], {}


def _example(directory: Path) -> tuple[Path, list[dict[str, Any]], dict[str, Any]]:
    """An example with its samples and what it has held out."""
    pictures = [*sorted(directory.glob("sample.png")), *sorted(directory.glob("held-out/*.png"))[:5]]
    requests = [{"body": path.read_bytes(), "type": "image/png"} for path in pictures]
    texts = [path.read_text() for path in directory.glob("sample.json")]
    texts += [text for path in directory.glob("held-out.jsonl") for text in path.read_text().splitlines()[:5]]
    requests += [{"body": text, "type": JSON} for text in texts]
    assert requests, "an example has a sample"
    return directory, requests, {}


def _served(client: Any, name: str, request: dict[str, Any]) -> list[Any]:
    from handlergen.errors import RequestFailed

    content = base64.b64decode(request["body"])
    options: dict[str, Any] = {"content": content, "content_type": request["type"]}
    try:
        answer = client.predict(name, **options, headers=request.get("headers"))
    except RequestFailed as error:
        return [error.status, JSON, base64.b64encode(error.body).decode(), {}]
    headers = {key: value for key, value in answer.headers.items() if key == "x-kind"}
    return [answer.status, answer.headers.get("content-type", ""), base64.b64encode(answer.body).decode(), headers]


def _seen(answer: list[Any]) -> tuple[int, str, Any]:
    """Status, content type and body; the id of the request, which differs, is taken out of an error's."""
    status, content_type, encoded, _ = answer
    body = base64.b64decode(encoded)
    if status >= 400 and b'"request_id"' in body:
        error = json.loads(body)
        return status, content_type, json.dumps(error).replace(error["request_id"], "ID")
    return status, content_type, body


def _without_server(seen: tuple[int, str, Any]) -> tuple[int, str, Any]:
    """An offline row has no server whose log could say more."""
    status, content_type, body = seen
    if isinstance(body, str):
        body = body.replace("; the server's log says why, under request id ID", "")
    return status, content_type, body


@pytest.mark.parametrize("name", MODELS)
def test_served_local_and_offline_answers_are_the_same_bytes(answers: dict[str, list[list[Any]]], name: str) -> None:
    served = answers[f"{name} served"]
    assert any(status == 200 for status, *_ in served)
    for way in ("source", "archive"):
        assert [_seen(answer) for answer in answers[f"{name} {way}"]] == [_seen(answer) for answer in served]
        for workers in (0, 1):
            offline = answers[f"{name} {way} offline {workers}"]
            for ours, theirs, request in zip(offline, served, _requests(name, served), strict=True):
                if request.get("headers") in (None, {}, WHOLE):  # a row has no headers of its own
                    assert _seen(ours) == _without_server(_seen(theirs))


def _requests(name: str, served: list[list[Any]]) -> list[dict[str, Any]]:
    return REQUESTS.get(name) or [{}] * len(served)
