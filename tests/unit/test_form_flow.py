"""The form `flow`: how FLOW is read, each stage type on a real model, arities, conversions, errors by stage."""

from __future__ import annotations

import json
import sys
import textwrap
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from torch import nn

from handlergen.archives.staging import make_plan
from handlergen.errors import ContractError
from handlergen.inspection.project import open_project
from handlergen.performance.recordings import beside, of_stage, overlapping, read_spans
from handlergen.runtime.contract import Contract
from handlergen.runtime.forms.flow import FlowError

# TorchScript is deprecated since torch 2.13, and what most exported models are.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

Serve = Callable[..., Any]


def read(directory: Path, text: str, **settings: Any) -> Contract:
    (directory / "steps.py").write_text(textwrap.dedent(text))
    return open_project(directory / "steps.py", overrides=settings, environ={}).contract


def problems(directory: Path, text: str, **settings: Any) -> list[str]:
    with pytest.raises(ContractError) as refused:
        read(directory, text, **settings)
    return [str(problem) for problem in refused.value.problems]


class Sum(nn.Module):
    """(N, 3) to (N, 1): the row's sum."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(dim=1, keepdim=True)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Small real models, each in the format its library writes."""
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.preprocessing import StandardScaler

    torch.jit.save(torch.jit.trace(Sum(), torch.zeros(1, 3)), tmp_path / "sum.pt")  # type: ignore[no-untyped-call]
    batch = torch.export.Dim("batch")
    exported = torch.export.export(Sum(), (torch.zeros(2, 3),), dynamic_shapes={"x": {0: batch}})
    torch.export.save(exported, tmp_path / "sum.pt2")
    x = np.arange(12, dtype=float).reshape(6, 2)
    y = np.array([0, 0, 0, 1, 1, 1])
    joblib.dump(StandardScaler().fit(x), tmp_path / "scaler.joblib")
    joblib.dump(LogisticRegression().fit(x, y), tmp_path / "classifier.pkl")
    joblib.dump(LinearRegression().fit(x, x.sum(axis=1)), tmp_path / "regressor.joblib")
    return tmp_path


def test_stages_files_and_functions_are_read_without_importing(models: Path) -> None:
    contract = read(
        models,
        """
        ENCODER = "sum.pt"
        raise SystemExit("not to be imported")
        def prepare(data, context): ...
        FLOW = [
            ("python", prepare),
            ("torch", ENCODER, {"pre": prepare, "post": None}),
            ["sklearn_classifier", "classifier.pkl", lambda result, data: result],
        ]
        """,
    )
    assert [(s["type"], s["file"], s["format"]) for s in contract.details["stages"]] == [
        ("python", "", None),
        ("torch", "sum.pt", "torchscript"),
        ("sklearn_classifier", "classifier.pkl", None),
    ]
    assert list(contract.hooks) == ["predict 1", "pre 2", "post 3"]
    assert [p.source for p in contract.hooks["post 3"].parameters] == ["outputs", "input_data"]


def test_its_files_are_packed(models: Path) -> None:
    (models / "deep").mkdir()
    (models / "sum.pt").rename(models / "deep" / "sum.pt")
    read(models, 'FLOW = [("torch", "deep/sum.pt"), ("sklearn", "regressor.joblib")]')
    plan = make_plan(open_project(models / "steps.py", environ={}))
    packed = {file.archive_path for file in plan.files}
    assert {"steps.py", "deep/sum.pt", "regressor.joblib"} <= packed
    assert "classifier.pkl" not in packed


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ('("tensorflow", "a.pb")', "The types are: torch, sklearn"),
        ('("torch",)', "got a tuple of 1"),
        ('"torch"', "expected a tuple of type and file"),
        ('("torch", "sum.pt", f().h)', "`f().h` is not a function"),
        ('("torch", f)', "the file `f` is not a string"),
        ('("python", "h")', "`h` is not a function"),
        ('("torch", "sum.pt", {"pre": lambda: 1})', "pre takes no data"),
        ('("torch", "steps.py")', "steps.py does not hold a torch model"),
    ],
)
def test_what_is_wrong_with_a_stage(models: Path, stage: str, message: str) -> None:
    (found,) = problems(models, f"def f(data): ...\nFLOW = [\n    {stage},\n]\n")
    assert message in found.replace("\n    ", " "), found
    assert "steps.py:3:" in found


def test_a_state_dict_needs_the_one_class_of_the_module(models: Path) -> None:
    torch.save(nn.Linear(3, 1).state_dict(), models / "linear.pt")
    (found,) = problems(models, 'FLOW = [("torch", "linear.pt")]')
    assert "linear.pt is a state dict, which needs exactly one nn.Module class in this module; there is none" in found
    torch.save(nn.Linear(3, 1), models / "whole.pt")
    (found,) = problems(models, 'FLOW = [("torch", "whole.pt")]')
    assert "a pickle of a whole object (torch.nn.modules.linear.Linear)" in found


@pytest.mark.parametrize(
    ("stage", "data", "answer"),
    [
        ('("torch", "sum.pt")', [[1, 2, 3.5], [1, 1, 1]], [[6.5], [3.0]]),
        ('("torch", "sum.pt2")', [[1.0, 2, 3], [1, 1, 1], [0, 0, 2]], [[6.0], [3.0], [2.0]]),
        ('("sklearn", "regressor.joblib", lambda result: result.round(6))', [[1, 2], [3, 4]], [3.0, 7.0]),
        ('("sklearn_preprocessor", "scaler.joblib")', [[5, 6]], [[0.0, 0.0]]),
        ('("sklearn_classifier", "classifier.pkl", lambda p: p.argmax(axis=1))', [[0, 1], [10, 11]], [0, 1]),
        ('("python", lambda data: [data, data])', "x", ["x", "x"]),
    ],
)
def test_a_stage_type(models: Path, serve_project: Serve, stage: str, data: Any, answer: Any) -> None:
    assert serve_project(f"FLOW = [{stage}]")(data) == [(200, answer)]


@pytest.mark.parametrize("suffix", ["json", "ubj", "joblib"])
@pytest.mark.parametrize("kind", ["classifier", "regressor"])
def test_xgboost(tmp_path: Path, serve_project: Serve, kind: str, suffix: str) -> None:
    xgboost = pytest.importorskip("xgboost")
    x = np.array([[0.0], [1.0], [10.0], [11.0]] * 10)
    y = np.array([0, 0, 1, 1] * 10)
    make = xgboost.XGBClassifier if kind == "classifier" else xgboost.XGBRegressor
    model = make(n_estimators=20, max_depth=2).fit(x, y)
    if suffix == "joblib":
        joblib.dump(model, tmp_path / "head.joblib")
    else:
        model.save_model(tmp_path / f"head.{suffix}")
    ((status, answer),) = serve_project(f'FLOW = [("xgboost_{kind}", "head.{suffix}")]')([[0.5], [10.5]])
    assert status == 200
    wanted = model.predict_proba([[0.5], [10.5]]) if kind == "classifier" else model.predict([[0.5], [10.5]])
    assert np.allclose(answer, wanted, atol=1e-6)


def test_onnx(tmp_path: Path, serve_project: Serve, write_onnx_sums: Callable[..., None]) -> None:
    pytest.importorskip("onnxruntime")
    write_onnx_sums(tmp_path / "sums.onnx", columns=3)
    torch.jit.save(torch.jit.trace(nn.Identity(), torch.zeros(1, 3)), tmp_path / "same.pt")  # type: ignore[no-untyped-call]
    # A tensor goes into it, an array comes out of it and goes into the next.
    model = serve_project(
        'FLOW = [("torch", "same.pt"), ("onnx", "sums.onnx"), ("torch", "same.pt"), '
        '("onnx", "sums.onnx", {"pre": lambda y: {"x": [[y[0], y[1], 0]]}})]'
    )
    assert model([[1, 2, 3], [4, 5, 6]]) == [(200, [21.0])]


def test_spacy_by_directory_and_by_package(
    tmp_path: Path, serve_project: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """spaCy itself is not installed for the tests: its one function is stood in for."""
    (tmp_path / "nlp").mkdir()
    (tmp_path / "nlp" / "meta.json").write_text("{}")
    loaded = []

    def load(name: Any) -> Callable[[str], Any]:
        loaded.append(name)
        return lambda text: types.SimpleNamespace(words=text.split())

    monkeypatch.setitem(sys.modules, "spacy", types.SimpleNamespace(load=load))  # type: ignore[arg-type]
    text = 'FLOW = [("spacy", {!r}, lambda doc: doc.words)]'
    assert serve_project(text.format("nlp"))("a b") == [(200, ["a", "b"])]
    assert serve_project(text.format("en_core_web_sm"))("a b") == [(200, ["a", "b"])]
    assert loaded == [tmp_path / "nlp", "en_core_web_sm"]


def test_a_huggingface_pipeline(tmp_path: Path, serve_project: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers is not installed for the tests either."""
    (tmp_path / "sentiment").mkdir()
    (tmp_path / "sentiment" / "config.json").write_text("{}")
    calls = []

    def pipeline(**options: Any) -> Callable[[str], Any]:
        calls.append(options)
        return lambda text: [{"label": text.upper()}]

    monkeypatch.setitem(sys.modules, "transformers", types.SimpleNamespace(pipeline=pipeline))  # type: ignore[arg-type]
    text = 'FLOW = [("huggingface_pipeline", {"task": "text-classification", "model": "sentiment", "top_k": 1})]'
    assert serve_project(text)("good") == [(200, [{"label": "GOOD"}])]
    model = str(tmp_path / "sentiment")
    assert calls == [{"task": "text-classification", "model": model, "top_k": 1, "device": torch.device("cpu")}]


def test_a_missing_library_names_the_requirement(
    tmp_path: Path, serve_project: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "head.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(FlowError) as raised:
        serve_project('FLOW = [("xgboost_classifier", "head.json")]')
    assert "stage 1, xgboost_classifier head.json could not be loaded" in str(raised.value)
    assert "add xgboost to the requirements" in str(raised.value)


def test_a_state_dict_with_its_class(tmp_path: Path, serve_project: Serve) -> None:
    linear = nn.Linear(2, 1, bias=False)
    linear.weight.data.copy_(torch.tensor([[2.0, 3.0]]))
    torch.save({f"inner.{key}": value for key, value in linear.state_dict().items()}, tmp_path / "net.pt")
    model = serve_project(
        """
        from torch import nn
        class Net(nn.Module):
            def __init__(self, features):
                super().__init__()
                self.inner = nn.Linear(features, 1, bias=False)
            def forward(self, x):
                return self.inner(x)
        FLOW = [("torch", "net.pt")]
        """,
        model_kwargs={"features": 2},
    )
    assert model([[1, 1]]) == [(200, [[5.0]])]


def test_arities_files_and_the_original_input_at_every_stage(models: Path, serve_project: Serve) -> None:
    model = serve_project("""
        def pre_1(data, files, request):
            request.metadata["seen"] = [len(files)]
            return [row["x"] for row in data]
        def post_1(result, input_data):
            assert input_data == [{"x": [1, 2, 3]}], input_data
            return result
        async def pre_2(data, device, model):
            assert device.type == "cpu" and callable(model)
            return [[float(data[0]), 1.0, 1.0]]
        async def post_2(result, input_data, files, context):
            assert len(files) == 0
            return {"sum": result, "input": input_data, "name": context.model_name}
        FLOW = [
            ("torch", "sum.pt", {"pre": pre_1, "post": post_1}),
            ("torch", "sum.pt", {"pre": pre_2, "post": post_2}),
        ]
        """)
    answer = {"sum": [[8.0]], "input": [{"x": [1, 2, 3]}], "name": "m"}
    assert model([{"x": [1, 2, 3]}]) == [(200, answer)]
    assert model(*[[{"x": [1, 2, 3]}]] * 8) == [(200, answer)] * 8


def test_tensors_and_arrays_are_converted_between_stages(models: Path, serve_project: Serve) -> None:
    model = serve_project("""
        FLOW = [
            ("sklearn_preprocessor", "scaler.joblib"),
            ("torch", "sum.pt", {"pre": lambda x: x[:, [0, 1, 1]]}),
            ("sklearn", "regressor.joblib", {"pre": lambda t: t.repeat(1, 2), "post": lambda r: r.round(5)}),
        ]
        """)
    assert model([[5, 6], [5, 6]]) == [(200, [0.0, 0.0])]


def test_setup_and_a_file_read_at_import(tmp_path: Path, serve_project: Serve) -> None:
    (tmp_path / "labels.json").write_text('["no", "yes"]')
    model = serve_project("""
        import json
        with open("labels.json") as file:
            labels = json.load(file)
        def setup(context):
            global scale
            scale = context.config["scale"]
        FLOW = [("python", lambda data: [labels[data], scale])]
        """, config={"scale": 3}, extra_files=["labels.json"])  # fmt: skip
    assert model(1) == [(200, ["yes", 3])]


@pytest.mark.parametrize(
    ("value", "kind"), [("'text'", "str"), ("None", "NoneType"), ("(1, 2)", "tuple"), ("3", "int")]
)
@pytest.mark.parametrize("prefix", ["", "async "])
def test_the_last_stage_must_end_in_something_to_answer(
    serve_project: Serve, value: str, kind: str, prefix: str
) -> None:
    model = serve_project(f"{prefix}def end(result): return {value}\nFLOW = [('python', lambda d: d, end)]")
    ((status, answer),) = model(1)
    assert status == 500
    assert f"stage 1, python lambda ends in {kind}" in answer["message"]


@pytest.mark.parametrize(
    ("failing", "log", "status"),
    [
        ("pre 1", "failed in preprocess of stage 1, python first", 500),
        ("value pre 1", None, 400),
        ("first", "failed in predict of stage 1, python first", 500),
        ("post 1", "failed in postprocess of stage 1, python first", 500),
        ("value pre 2", "failed in preprocess of stage 2, python second", 500),
        ("second", "failed in predict of stage 2, python second", 500),
    ],
)
def test_errors_name_the_stage_and_harm_nobody_else(
    serve_project: Serve, caplog: pytest.LogCaptureFixture, failing: str, log: str | None, status: int
) -> None:
    model = serve_project("""
        def fails(value, place):
            if value == place: raise KeyError("secret")
            if value == "value " + place: raise ValueError("not like this")
            return value
        def pre_1(data): return fails(data, "pre 1")
        def first(data): return fails(data, "first")
        def post_1(data): return fails(data, "post 1")
        def pre_2(data): return fails(data, "pre 2")
        def second(data): return [fails(data, "second")]
        FLOW = [("python", first, {"pre": pre_1, "post": post_1}), ("python", second, {"pre": pre_2})]
        """)
    answers = model("fine", failing, "fine too")
    assert answers[0] == (200, ["fine"])
    assert answers[2] == (200, ["fine too"])
    assert answers[1][0] == status
    assert "secret" not in json.dumps(answers[1][1])
    if log is None:
        assert answers[1][1]["message"] == "not like this"
    else:
        assert log in caplog.text
        first_stage = failing == "pre 1"  # told as any form's preprocess is
        assert ("preprocess" if first_stage else log.split(" of ")[1].split(",")[0]) in answers[1][1]["message"]


def test_each_stage_holds_the_lock_and_its_functions_do_not(serve_project: Serve, tmp_path: Path) -> None:
    """One device visit a stage and request; while a batch is under way, predictions never overlap."""
    model = serve_project("""
        import time
        def slow(value):
            time.sleep(0.01)
            return [value]
        FLOW = [("python", slow, {"pre": slow, "post": slow}), ("python", slow, {"pre": slow, "post": slow})]
        """)
    assert [status for status, _ in model(*range(6))] == [200] * 6
    model.worker.close()
    spans = read_spans(tmp_path / "spans")
    predictions, others = of_stage(spans, "predict"), of_stage(spans, "preprocess", "postprocess")
    assert (len(predictions), len(others)) == (12, 24)
    assert overlapping(predictions) == []
    assert len(beside(others, predictions)) > 6


def test_a_flow_changed_while_importing_is_told(serve_project: Serve) -> None:
    with pytest.raises(FlowError, match="has 2 stages when the module is imported and 1 in its source"):
        serve_project('FLOW = [("python", lambda d: [d])]\nFLOW.append(FLOW[0])')
