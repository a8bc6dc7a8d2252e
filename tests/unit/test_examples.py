"""A project's examples: how they are read, asked, recorded and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from handlergen.archives.build import archive
from handlergen.archives.mar import archived_examples
from handlergen.errors import ContractError, HandlergenError
from handlergen.inspection.project import open_project
from handlergen.local.examples import record_examples
from handlergen.project.examples import read_examples, write_example
from handlergen.runtime.codec.comparison import digest_of
from handlergen.runtime.examples import Example, Part, RightAnswer

Run = Callable[..., tuple[int, str, str]]

SUMS = """
def preprocess(data):
    return [float(value) for value in data]

def predict(inputs):
    return sum(inputs)

def postprocess(outputs):
    return {"sum": outputs}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sums.py").write_text(SUMS)
    (tmp_path / "examples").mkdir()
    return tmp_path


def configured(project: Path, *examples: Any, **settings: Any) -> None:
    text = yaml.safe_dump({"source": "sums.py", "name": "sums", "examples": list(examples), **settings})
    (project / "handlergen.yaml").write_text(text)


def test_examples_of_both_sources(project: Path) -> None:
    place = project / "examples"
    (place / "README.md").write_text("not an example")
    (place / "a.request.json").write_text("[1, 2]")
    (place / "a.answer.json").write_text('{"sum": 3}')
    (place / "b.request.txt").write_text("hello\n")
    (place / "b.answer.sha256").write_text(f"{digest_of(b'x')}\naudio/wav\n")
    (place / "form.request").mkdir()
    (place / "form.request" / "image.png").write_bytes(b"png")
    (place / "form.request" / "note.txt").write_text("hi\n")
    (place / "form.request" / "top.json").write_text("2")
    (project / "other.bin").write_bytes(b"bytes")
    entries = [
        {"name": "a", "tolerance": 0.5},
        {"json": {"x": [1]}, "answer": 3, "pixel_tolerance": 2},
        {"name": "words", "text": "one", "content_type": "text/csv", "answer_text": "two"},
        {"name": "file", "file": "other.bin", "answer_file": "examples/a.answer.json"},
        {"name": "parts", "parts": {"n": {"json": 1}, "note": "hi", "f": {"file": "other.bin"}}, "runs": True},
        {"name": "digest", "text": "x", "answer_sha256": digest_of(b"y")},
    ]
    found = {each.example.name: each for each in read_examples(project, entries)}
    assert list(found) == ["a", "b", "form", "2", "words", "file", "parts", "digest"]
    json_answer = RightAnswer("application/json", b'{"sum": 3}')
    request = Part("application/json", b"[1, 2]")
    assert found["a"].example == Example("a", {"body": request}, answer=json_answer, tolerance=0.5)
    assert found["b"].example.parts["body"] == Part("text/plain; charset=utf-8", b"hello\n")
    assert found["b"].example.answer == RightAnswer("audio/wav", None, digest_of(b"x"))
    form = {"image": Part("image/png", b"png"), "note": Part("", b"hi"), "top": Part("application/json", b"2")}
    assert found["form"].example == Example("form", form, is_form=True)
    assert found["2"].example.answer == RightAnswer("application/json", b"3")
    assert found["2"].example.pixel_tolerance == 2
    assert found["words"].example.parts["body"] == Part("text/csv", b"one")
    assert found["file"].example == Example(
        "file", {"body": Part("application/octet-stream", b"bytes")}, answer=json_answer
    )
    parts = {"n": Part("application/json", b"1"), "note": Part("", b"hi")}
    assert found["parts"].example.parts == parts | {"f": Part("application/octet-stream", b"bytes")}
    assert {name for name, each in found.items() if each.recorded} == {"a", "b", "form"}


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("text", "not a mapping"),
        ({"json": 1, "anwser": 2}, "there is no key 'anwser'"),
        ({"json": 1, "text": "x"}, "it has two requests: json and text"),
        ({"json": 1, "answer": 1, "runs": True}, "it has two answers: answer and runs"),
        ({"name": "none"}, "it has no request"),
        ({"name": "a", "json": 1}, "there is another example a"),
        ({"name": "../x", "json": 1}, "'../x' is no name of an example"),
        ({"file": "missing.png"}, "No such file or directory: "),
        ({"json": 1, "answer": 1, "tolerance": -1}, "tolerance is -1, not a number of at least 0"),
        ({"json": 1, "answer_sha256": "abc"}, "answer_sha256 must have 64 hexadecimal digits"),
        ({"json": 1, "runs": "yes"}, "`runs` is true, or left out"),
        ({"parts": {}}, "parts is no mapping"),
    ],
)
def test_what_an_entry_may_not_be(project: Path, entry: Any, told: str) -> None:
    (project / "examples" / "a.request.json").write_text("[1, 2]")
    configured(project, entry)
    with pytest.raises(ContractError) as refused:
        archive(project, model_store="store")
    assert told in refused.value.message
    assert "handlergen.yaml: `examples`, entry 1" in refused.value.message
    assert not (project / "store").exists()


def test_an_answer_without_a_request_is_a_problem(project: Path) -> None:
    (project / "examples" / "lost.answer.json").write_text("1")
    with pytest.raises(ContractError, match="an answer without a request"):
        read_examples(project, [])


def test_what_is_written_is_read_again(project: Path) -> None:
    image = RightAnswer("image/png", b"png")
    for example in (
        Example.of_body("one", b"[1]", "application/json", answer=RightAnswer("application/json", b"1")),
        Example("two", {"f": Part("audio/wav", b"x"), "t": Part("", b"y")}, is_form=True, answer=image),
        Example.of_body("three", b"x", "text/plain; charset=utf-8"),
    ):
        write_example(project, example)
        found = {each.example.name: each.example for each in read_examples(project, [])}
        assert found[example.name].parts.keys() == example.parts.keys()
        again = found[example.name].answer
        assert (again is None) == (example.answer is None)
        if again is not None and example.answer is not None:  # JSON is indented
            assert again.content_type == example.answer.content_type
            assert (again.body or b"").strip() == example.answer.body
    write_example(project, Example.of_body("one", b"[1]", "application/json", answer=RightAnswer("audio/wav", b"s")))
    assert sorted(path.name for path in (project / "examples").glob("one.*")) == [
        "one.answer.sha256",
        "one.request.json",
    ]


def test_check_archive_inspect_and_predict_ask_them(project: Path, run: Run) -> None:
    configured(project, {"name": "first", "json": [1, 2], "answer": {"sum": 3}}, {"json": [4], "runs": True})
    assert run("check", ".", "--examples")[:2] == (0, run("check", ".")[1] + "example first: right\nexample 2: runs\n")
    assert run("archive", ".")[0] == 0
    assert [example.name for example in archived_examples(project / "model-store" / "sums.mar")] == ["first", "2"]
    assert run("inspect", "model-store/sums.mar", "--examples")[1].endswith("\nexample first: right\nexample 2: runs\n")
    assert run("predict", "model-store/sums.mar", "--example", "first")[:2] == (0, '{"sum":3.0}\n')
    status, _, told = run("predict", ".", "--example", "3")
    assert (status, "has no example 3" in told) == (1, True)

    configured(project, {"name": "first", "json": [1, 2], "answer": {"sum": 3.5}})
    wrong = "example first:\n  answer.sum: 3.5 ≠ 3.0 (tolerance 0.001)"
    for command in (["check", ".", "--examples"], ["archive", ".", "--force"], ["predict", ".", "--example", "1"]):
        status, _, told = run(*command)
        assert (status, wrong in told) == (1, True), command
    report = json.loads(run("check", ".", "--examples", "--json")[1])
    assert report["examples"][0]["differences"][0] == {
        "path": "answer.sum",
        "expected": "3.5",
        "found": "3.0",
        "note": "tolerance 0.001",
    }
    before = (project / "model-store" / "sums.mar").read_bytes()
    assert run("archive", ".", "--force", "--no-examples")[0] == 0
    assert (project / "model-store" / "sums.mar").read_bytes() != before
    assert run("inspect", "model-store/sums.mar", "--examples")[0] == 1


def test_a_model_that_cannot_be_loaded_here_is_said_to_be_that(project: Path, run: Run) -> None:
    configured(project, {"json": [1], "answer": {"sum": 1}})
    (project / "sums.py").write_text(f"raise OSError('no card')\n{SUMS}")
    status, _, told = run("archive", ".")
    assert (status, "no card" in told, "--no-examples" in told) == (4, True, True)
    assert not (project / "model-store").exists()
    (project / "sums.py").write_text(f"import nobody_has_this\n{SUMS}")
    status, _, told = run("archive", ".")
    assert (status, "the examples were not asked: the package nobody_has_this is not installed here" in told) == (
        0,
        True,
    )


def test_recording(project: Path, run: Run) -> None:
    configured(project, {"name": "mine", "json": [1], "answer": {"sum": 1}}, {"name": "listed", "json": [3]})
    (project / "examples" / "one.request.json").write_text("[1, 2]")
    (project / "examples" / "two.request.json").write_text("[2, 2]")
    (project / "examples" / "two.answer.json").write_text('{"sum": 5}')
    status, out, _ = run("archive", ".", "--record-examples")
    assert status == 0
    assert "one.answer.json (new)\n" in out
    assert "two.answer.json (changed)\n  answer.sum: 5 ≠ 4.0 (tolerance 0.001)\n" in out
    assert json.loads((project / "examples" / "two.answer.json").read_text()) == {"sum": 4.0}
    assert json.loads((project / "examples" / "listed.answer.json").read_text()) == {"sum": 3.0}
    assert not (project / "examples" / "mine.answer.json").exists()
    assert run("check", ".", "--examples")[0] == 0


@pytest.mark.parametrize(
    ("returns", "told"),
    [
        ("__import__('random').random()", "is not the same each time"),
        ("__import__('os').environ['api_key']", "has the value of a secret in it"),
        ("str(__import__('pathlib').Path(__file__).parent)", "has a path of this machine in it"),
        ("1 / 0", "examples failed, so that nothing was recorded"),
    ],
)
def test_what_is_not_recorded(project: Path, monkeypatch: pytest.MonkeyPatch, returns: str, told: str) -> None:
    monkeypatch.setenv("api_key", "sesame-4711")
    (project / "sums.py").write_text(f"def predict(inputs):\n    return {returns}\n")
    (project / "examples" / "one.request.json").write_text("[1, 2]")
    configured(project, secrets=["api_key"])
    with pytest.raises(HandlergenError) as refused:
        record_examples(open_project(project), project)
    assert told in refused.value.message
    assert [path.name for path in (project / "examples").iterdir()] == ["one.request.json"]
