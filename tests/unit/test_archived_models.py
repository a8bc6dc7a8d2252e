"""Models from their archives, in this process: what a server would answer too (tests/e2e/test_parity.py)."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import handlergen

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

KEYWORDS = """
def setup(context):
    global greeting
    greeting = context.config["greeting"]


def predict(name, times=1, context=None):
    return {"text": (greeting + " " + name + "! ") * times}
"""

ROUND_OFF = """
def preprocess(data):
    return data["x"]

def postprocess(outputs):
    return {"y": [round(float(value), 3) for value in outputs]}
"""


@pytest.fixture
def archived(tmp_path: Path) -> Callable[..., Any]:
    """`archived(source, **settings)` -> a model that was loaded from the archive of that text or file."""

    def load(source: str | Path, **settings: Any) -> Any:
        if isinstance(source, str):
            (tmp_path / "source.py").write_text(textwrap.dedent(source))
            source = tmp_path / "source.py"
        made = handlergen.archive(source, model_store=tmp_path / "store", force=True, **settings)
        return handlergen.load(made.path)

    return load


def test_keyword_arguments_and_setup(archived: Callable[..., Any]) -> None:
    with archived(KEYWORDS, config={"greeting": "Hello"}) as model:
        assert model.predict({"name": "you", "times": 2}) == {"text": "Hello you! Hello you! "}
        with pytest.raises(handlergen.RequestFailed, match="missing key: name; unknown key: nmae"):
            model.predict({"nmae": "you"})


def test_weights_that_predict_by_themselves(
    archived: Callable[..., Any], write_onnx_sums: Callable[..., None], tmp_path: Path
) -> None:
    network = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Flatten(0))
    nn.init.ones_(network[0].weight)
    torch.jit.save(torch.jit.trace(network, torch.zeros(3, 2)), tmp_path / "net.pt")  # type: ignore[no-untyped-call]
    batch = {0: torch.export.Dim("batch")}
    torch.export.save(torch.export.export(network, (torch.zeros(3, 2),), dynamic_shapes=(batch,)), tmp_path / "net.pt2")
    write_onnx_sums(tmp_path / "net.onnx", columns=2)
    with archived('"""No predict: the weights predict."""\n', weights="net.pt") as model:
        assert list(model.predict([[1.5, 2], [3, 4]])) == [3.5, 7.0]
    for weights in ("net.pt2", "net.onnx"):
        with archived(ROUND_OFF, weights=weights) as model:
            assert model.predict({"x": [[1.5, 2], [3, 4]]}) == {"y": [3.5, 7.0]}
            assert model.predict({"x": [[1, 2], [3, 4]]}) == {"y": [3.0, 7.0]}  # JSON's whole numbers too


@pytest.mark.parametrize(
    ("name", "module", "settings"),
    [
        ("iris", ".", {}),
        ("cancer", ".", {}),
        ("cancer", "linear.py", {"extra_files": ["cancer.py"]}),
    ],
)
def test_an_example_gives_its_samples_true_answer(
    archived: Callable[..., Any], example: Callable[[str], Path], name: str, module: str, settings: dict[str, Any]
) -> None:
    directory = example(name)
    sample = json.loads((directory / "sample.json").read_text(encoding="utf-8"))
    truth = json.loads((directory / "answer.json").read_text(encoding="utf-8"))
    lines = (directory / "held-out.jsonl").read_text(encoding="utf-8").splitlines()
    held_out = [json.loads(line) for line in lines[:30]]
    with archived(directory / module, **settings) as model:
        assert model.predict(sample).items() >= truth.items()
        answers = [model.predict(row["data"]) for row in held_out]
    (key,) = truth
    assert sum(answer[key] == row[key] for answer, row in zip(answers, held_out, strict=True)) >= 27
