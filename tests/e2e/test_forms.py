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

import grpc
import httpx
import numpy as np
import pytest
import torch
from torch import nn

from handlergen.archiving import archive
from handlergen.errors import RequestFailed
from handlergen.recordings import beside, of_stage, overlapping
from handlergen.starter import create_starter

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

KEYWORDS = """
def setup(context):
    global greeting
    greeting = context.config["greeting"]


def predict(name, times=1, context=None):
    return {"text": (greeting + " " + name + "! ") * times}
"""


def run(function: Callable[[Any], Any], values: list[Any], threads: int = 16) -> list[Any]:
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, values))


@pytest.fixture(scope="module")
def served(
    shared: Callable[..., Any], example: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """The forms module, flow and sagemaker."""
    pytest.importorskip("xgboost")
    home = tmp_path_factory.mktemp("forms")
    (home / "net.py").write_text(MODULE)
    torch.manual_seed(1)
    linear = nn.Linear(3, 2)
    torch.save({f"module.linear.{key}": value for key, value in linear.state_dict().items()}, home / "net.pt")
    (home / "inference.py").write_text(SAGEMAKER)
    torch.save({"fc.weight": torch.tensor([[1.0, 10.0]])}, home / "model.pth")
    common: dict[str, Any] = {
        "batch_size": 8, "workers_per_device": 1, "max_batch_delay_ms": 20, "model_store": home / "store",
    }  # fmt: skip
    sizes = {"in_features": 3, "n_classes": 2}
    made = [
        archive(home / "net.py", name="module", weights="net.pt", model_kwargs=sizes, **common),
        archive(example("cancer"), name="flow", **common),
        archive(home / "inference.py", name="sagemaker", weights="model.pth", **common),
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
    """Three models of three forms share one device; a flow's three stages each take their turn."""
    client = served.client
    jobs = [("module", [1, 2, 3]), ("sagemaker", {"inputs": [[1.0, 2.0]]})]
    jobs += [("flow", row["data"]) for row in rows(example("cancer"), 4)]
    run(lambda job: client.predict(*job), jobs * 8)
    spans = served.spans()
    predictions = of_stage(spans, "predict")
    assert overlapping(predictions) == []
    assert len({span.pid for span in predictions}) == 3
    flows = [span for span in predictions if span.model == "flow"]
    assert len(flows) == 3 * len({span.request_id for span in flows})
    assert beside(of_stage(spans, "preprocess"), predictions)
    assert beside(of_stage(spans, "postprocess"), predictions)


# ---- the functions form's extras, the starters and the examples ----


@pytest.fixture(scope="module")
def extras(
    shared: Callable[..., Any], example: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    home = tmp_path_factory.mktemp("extras")
    (home / "words.py").write_text(KEYWORDS)
    (home / "nothing.py").write_text('"""No predict: the weights predict."""\n')
    (home / "round_off.py").write_text(
        textwrap.dedent("""
        def preprocess(data):
            return data["x"]

        def postprocess(outputs):
            return {"y": [round(float(value), 3) for value in outputs]}
        """)
    )
    network = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Flatten(0))
    nn.init.ones_(network[0].weight)
    torch.jit.save(torch.jit.trace(network, torch.zeros(3, 2)), home / "net.pt")
    batch = {0: torch.export.Dim("batch")}
    torch.export.save(
        torch.export.export(network, (torch.zeros(3, 2),), dynamic_shapes=(batch,)), home / "net.pt2"
    )
    write_onnx(home / "net.onnx")
    common: dict[str, Any] = {"workers_per_device": 1, "model_store": home / "store"}
    archives = [
        archive(home / "words.py", config={"greeting": "Hello"}, **common),
        archive(home / "nothing.py", name="scripted", weights="net.pt", **common),
        archive(home / "round_off.py", name="exported", weights="net.pt2", **common),
        archive(home / "round_off.py", name="onnx", weights="net.onnx", **common),
        archive(example("iris"), **common),
        archive(example("cancer") / "linear.py", extra_files=["cancer.py"], **common),
    ]
    for form in ("module", "flow", "sagemaker"):
        name, _ = create_starter(home / f"start-{form}", form=form)
        archives.append(archive(home / f"start-{form}", name=name, **common))
    return shared(*[made.path for made in archives])


def write_onnx(path: Path) -> None:
    """(N, 2) to (N,): the rows' sums."""
    onnx = pytest.importorskip("onnx")
    helper, real = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)],
        "sums",
        [helper.make_tensor_value_info("x", real, ["n", 2])],
        [helper.make_tensor_value_info("y", real, ["n"])],
        [helper.make_tensor("axes", onnx.TensorProto.INT64, [1], [1])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


@pytest.mark.parametrize("way", ["predict", "predict_grpc"])
def test_keyword_arguments_and_setup(extras: Any, way: str) -> None:
    ask = getattr(extras.client, way)
    assert ask("words", {"name": "you", "times": 2}).json() == {"text": "Hello you! Hello you! "}
    with pytest.raises(RequestFailed, match="missing key: name; unknown key: nmae"):
        ask("words", {"nmae": "you"})


@pytest.mark.parametrize("way", ["predict", "predict_grpc"])
def test_weights_that_predict_by_themselves(extras: Any, way: str) -> None:
    ask = getattr(extras.client, way)
    assert ask("scripted", [[1.5, 2], [3, 4]]).json() == [3.5, 7.0]
    for name in ("exported", "onnx"):
        assert ask(name, {"x": [[1.5, 2], [3, 4]]}).json() == {"y": [3.5, 7.0]}
        assert ask(name, {"x": [[1, 2], [3, 4]]}).json() == {"y": [3.0, 7.0]}  # JSON's whole numbers too


@pytest.mark.parametrize("form", ["module", "flow", "sagemaker"])
@pytest.mark.parametrize("way", ["predict", "predict_grpc"])
def test_starters_answer_their_own_request(extras: Any, form: str, way: str) -> None:
    assert getattr(extras.client, way)(f"start-{form}", [1, 2, 3]).json() == [2.0, 4.0, 6.0]


@pytest.mark.parametrize(("model", "name"), [("iris", "iris"), ("linear", "cancer")])
def test_examples_give_their_samples_true_answer(
    extras: Any, example: Callable[[str], Path], model: str, name: str
) -> None:
    sample = json.loads((example(name) / "sample.json").read_text(encoding="utf-8"))
    truth = json.loads((example(name) / "answer.json").read_text(encoding="utf-8"))
    answer = extras.client.predict(model, sample).json()
    assert answer.items() >= truth.items()
    held_out = rows(example(name), 30)
    answers = run(lambda row: extras.client.predict(model, row["data"]).json(), held_out, threads=8)
    (key,) = truth
    assert sum(answer[key] == row[key] for answer, row in zip(answers, held_out, strict=True)) >= 27


def test_the_flows_example_gives_its_samples_true_answer(served: Any, example: Callable[[str], Path]) -> None:
    sample = json.loads((example("cancer") / "sample.json").read_text(encoding="utf-8"))
    truth = json.loads((example("cancer") / "answer.json").read_text(encoding="utf-8"))
    assert served.client.predict("flow", sample).json().items() >= truth.items()


def test_grpc_statuses_of_the_forms(served: Any) -> None:
    with pytest.raises(RequestFailed) as raised:
        served.client.predict_grpc("sagemaker", [1])  # a list has no "inputs": the module's own TypeError
    assert grpc.StatusCode.INTERNAL.name in str(raised.value)
