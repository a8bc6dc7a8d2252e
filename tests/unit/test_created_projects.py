"""Live objects become projects, which answer as the objects do in a process that has only the projects' files."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import textwrap
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import handlergen
from handlergen.creation import create as creation
from handlergen.errors import HandlergenError, ModuleFailed
from handlergen.project.examples import read_examples
from handlergen.runtime.codec.comparison import value_differences
from tests.live_objects import ASKED, GROUPS, Classifier, LiveObject, Tied, network, to_matrix

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

# Loads each project, asks it its example, and writes the answers.
LOADER = """
import json, sys, handlergen
from pathlib import Path
from handlergen.project.examples import read_examples
found = {}
for place in map(Path, sys.argv[1:]):
    (recorded,) = read_examples(place, [])
    with handlergen.load(place) as model:
        answer = model.ask(recorded.example)
        is_text = answer.content_type.startswith("text/")  # of a stream
        found[place.name] = answer.body.decode() if is_text else json.loads(answer.body)
print("ANSWERS", json.dumps(found))
"""


@pytest.mark.parametrize("group", GROUPS)
def test_the_project_answers_as_the_object(group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(creation, "_check", lambda *_: None)  # one clean process for all of a group
    objects: dict[str, LiveObject] = dict(GROUPS[group]())
    for name, live in objects.items():
        place = handlergen.create(live.model, tmp_path / name, example=live.asked, **live.options)
        (recorded,) = read_examples(place, [])
        recorded_answer = recorded.example.answer
        assert recorded_answer is not None
        body = (recorded_answer.body or b"").decode()
        assert_same(body if recorded_answer.content_type.startswith("text/") else json.loads(body), live.right)
        assert {"model.py", "handlergen.yaml", "README.md"} <= {path.name for path in place.iterdir()}
        assert not list(place.rglob("*.pkl"))
    places = [str(tmp_path / name) for name in objects]
    ran = subprocess.run([sys.executable, "-c", LOADER, *places], capture_output=True, text=True, check=False)
    assert "ANSWERS" in ran.stdout, ran.stderr
    answers: Mapping[str, Any] = json.loads(ran.stdout.partition("ANSWERS ")[2])
    for name, live in objects.items():
        assert_same(answers[name], live.right)


def assert_same(found: Any, right: Any) -> None:
    assert list(value_differences(right, found, tolerance=1e-3)) == []


SCRIPT = """
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import handlergen

LABELS = ["small", "large"]
rows = np.random.RandomState(0).rand(60, 4)


def doubled(values):
    return np.log(values + 1)  # of an array, not of the lists in a request


def to_label(outputs):
    return [LABELS[each] for each in outputs]


model = make_pipeline(FunctionTransformer(doubled), LogisticRegression()).fit(rows, (rows.sum(1) > 2).astype(int))
asked = [[0, 0, 0, 0], [1, 1, 1, 1]]
result = handlergen.archive(model, name="scripted", postprocess=to_label, example=asked, model_store="store")
assert doubled.__module__ == "__main__"
LABELS[0] = "tiny"  # after the archive was written
"""


def test_a_script_archives_its_model_with_the_functions_that_it_is_made_of(tmp_path: Path) -> None:
    pytest.importorskip("skops")
    (tmp_path / "train.py").write_text(SCRIPT)
    subprocess.run([sys.executable, "train.py"], cwd=tmp_path, check=True)
    with handlergen.load(tmp_path / "store" / "scripted.mar") as model:
        assert model.predict([[0, 0, 0, 0], [1, 1, 1, 1]]) == ["small", "large"]


def anything(inputs: Any) -> float:
    return random.random()


def test_an_answer_that_differs_in_a_clean_process_is_refused_with_the_difference(tmp_path: Path) -> None:
    with pytest.raises(HandlergenError, match=r"(?s)does not answer the example as.*answer: 0\.\d+ ≠ 0\.\d+"):
        handlergen.create(anything, tmp_path / "random", example=[1])
    assert list(tmp_path.iterdir()) == []


def where(inputs: Any) -> str:
    return f"read from {Path.home()}/model"


def test_no_path_of_this_machine_gets_into_the_example(tmp_path: Path) -> None:
    with pytest.raises(HandlergenError, match=r"the answer of example 1 has a path of this machine in it"):
        handlergen.create(where, tmp_path / "out", example=[1])
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_in_a_clean_process_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "words.txt").write_text("a\nb")
    monkeypatch.chdir(tmp_path / "beside")
    with pytest.raises(ModuleFailed, match=r"words\.txt") as caught:
        handlergen.create(counting, tmp_path / "out", example=[1])
    assert "counting" in caught.value.traceback or "predict" in caught.value.traceback
    assert not (tmp_path / "out").exists()
    handlergen.create(counting, tmp_path / "out", example=[1], extra_files=["words.txt"])
    assert (tmp_path / "out" / "words.txt").read_text() == "a\nb"


def counting(inputs: Any) -> int:
    return len(Path("words.txt").read_text().splitlines())


class Unknown:
    """Of no kind."""


def test_what_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    skops = pytest.importorskip("skops")
    assert skops
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    with_lambda = preprocessing.FunctionTransformer(lambda rows: rows).fit([[1.0]])
    scaler = preprocessing.StandardScaler()
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (Unknown(), {}, "Unknown is no kind of model"),
        (Unknown, {}, "Unknown is a class, no object"),
        (with_lambda, {}, "refers to a lambda"),
        (to_matrix, {"format": "joblib"}, "is for scikit-learn models"),
        (to_matrix, {"batchsize": 3}, "Did you mean `batch_size`"),
        (to_matrix, {"predict": to_matrix}, "the model is a function, and predict= is another"),
        (tmp_path / "missing.onnx", {}, "there is no file"),
        ([], {}, "the list of flow stages is empty"),
        ([("sklern", scaler)], {}, "there is no stage type 'sklern'"),
        ([("torch", network())], {}, "stage 1, torch: a Sequential is no program"),
        ([("python", to_matrix, {"before": to_matrix})], {}, "has functions for 'before'"),
        ([("python", to_matrix)], {"preprocess": to_matrix}, "a flow has no preprocess of its own"),
        (to_matrix, {"example": object()}, "an input of type object cannot be sent"),
    ]
    for model, options, message in cases:
        with pytest.raises(HandlergenError) as caught:
            handlergen.create(model, tmp_path / "out", **options)
        assert message in caught.value.message, caught.value.message
    assert list(tmp_path.iterdir()) == []


def doubling() -> torch.nn.Module:
    model = torch.nn.Linear(4, 2)
    model.register_forward_hook(lambda _model, _inputs, outputs: outputs * 2)
    return model


def test_a_network_that_cannot_be_built_again_is_refused_with_the_reason(tmp_path: Path) -> None:
    classifier = Classifier(8, torch.nn.Tanh)
    cases: list[tuple[torch.nn.Module, dict[str, Any], str]] = [
        (Tied(5), {}, "size of Tied(...) is not known"),
        (Tied(5), {"size": 4}, "embedding.weight: (5, 3) in the object, (4, 3) in a new one"),
        (Tied(5), {"length": 4}, "its constructor has no parameter length"),
        (classifier, {"act": torch.nn.ReLU}, "layers.1 is a Tanh, and a ReLU in a new one"),
        (doubling(), {}, "it has hooks on its forward that its constructor does not register"),
        (
            torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(4, 2, batch_first=True), 1),
            {},
            "encoder_layer of",
        ),
        (torch.nn.Sequential(Tied(5)), {}, "size of Tied(...) is not known"),
    ]
    for model, arguments, message in cases:
        with pytest.raises(HandlergenError) as caught:
            handlergen.create(model, tmp_path / "out", arguments=arguments)
        assert message in caught.value.message, caught.value.message
        assert caught.value.hint
    assert "self.size = size" in str(caught.value.hint)  # `arguments` are the container's
    classifier.lock = threading.Lock()
    with pytest.raises(HandlergenError, match=r"its attribute lock: a _thread\.lock cannot be written down"):
        handlergen.create(classifier, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_is_changed_after_the_example_was_recorded_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(creation, "_check", lambda *_: None)
    classifier = Classifier(8)
    classifier._labels = ["small", "large"]
    place = handlergen.create(classifier, tmp_path / "changed", example=ASKED)
    module = (place / "model.py").read_text()
    assert "model._labels = ['small', 'large']" in module
    (place / "model.py").write_text(module.replace("['small', 'large']", "['tiny', 'huge']"))
    with pytest.raises(HandlergenError, match=r'answer\[0\]: "(small|large)" ≠ "(tiny|huge)"'):
        handlergen.archive(place, model_store=tmp_path / "store")
    (place / "model.py").write_text(module)
    weights = torch.load(place / "weights.pt", weights_only=True)
    swapped = {name: value.flip(0) if name.startswith("layers.2") else value for name, value in weights.items()}
    torch.save(swapped, place / "weights.pt")
    with pytest.raises(HandlergenError, match=r'answer\[0\]: "(small" ≠ "large|large" ≠ "small)"'):
        handlergen.archive(place, model_store=tmp_path / "store")
    assert not list(tmp_path.rglob("*.mar"))


def test_a_directory_that_is_not_empty_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(creation, "_check", lambda *_: None)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "model.py").write_text("mine")
    with pytest.raises(HandlergenError, match="is not empty; nothing was written"):
        handlergen.create(to_matrix, tmp_path)
    assert (tmp_path / "model.py").read_text() == "mine"
    handlergen.create(to_matrix, tmp_path, force=True)
    assert "def predict" in (tmp_path / "model.py").read_text()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_source_is_archived_as_before(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(textwrap.dedent("def predict(inputs):\n    return inputs\n"))
    assert handlergen.archive(tmp_path / "plain.py", model_store=tmp_path).path.name == "plain.mar"
    with pytest.raises(HandlergenError, match="is a source, which has its own hooks and examples: preprocess, example"):
        handlergen.archive(tmp_path / "plain.py", model_store=tmp_path, preprocess=to_matrix, example=1)


def test_forms_and_arrays_are_requests() -> None:
    form = creation.request_of({"image": b"png", "n": 3})
    assert (form.is_form, form.parts["n"].body, form.parts["image"].content_type) == (
        True,
        b"3",
        "application/octet-stream",
    )
    assert creation.request_of({"n": 3}).content_type == "application/json"
    assert creation.request_of(network()[0].weight).content_type == "application/x-npy"
