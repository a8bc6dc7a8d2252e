"""`handlergen init`: the starter project is right before anybody touches it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import handlergen
from handlergen.archives.mar import archived_examples
from handlergen.errors import HandlergenError
from handlergen.inspection.project import open_project
from handlergen.project.starter import create_starter
from handlergen.runtime.forms.table import FORMS

FOREIGN = Path(__file__).resolve().parents[1] / "foreign_packages"


@pytest.mark.parametrize("form", tuple(FORMS))
def test_a_starter_meets_the_contract_without_a_warning(form: str, tmp_path: Path) -> None:
    name, written = create_starter(tmp_path / "digits", form=form)
    project = open_project(tmp_path / "digits", environ={})
    assert name == project.settings.name == "digits"
    assert project.contract.form == form
    assert project.warnings == ()
    files = {"model.py", "doubled.request.json", "doubled.answer.json", "handlergen.yaml"}
    assert {path.name for path in written} == files


@pytest.mark.parametrize("form", tuple(FORMS))
def test_a_starter_answers_its_own_request(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its archive, as a worker loads it."""
    monkeypatch.syspath_prepend(str(FOREIGN))
    create_starter(tmp_path / "digits", form=form)
    mar = handlergen.archive(tmp_path / "digits", model_store=tmp_path / "store").path
    (example,) = archived_examples(mar)
    with handlergen.load(mar) as model:
        answer = model.ask(example)
    assert json.loads(answer.body) == [2.0, 4.0, 6.0]
    assert example.compare(answer.status, answer.content_type, answer.body) == []


def test_init_prints_commands_that_can_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my digits").mkdir()
    (tmp_path / "my digits" / "notes.txt").touch()  # other files may be there
    status, out, _ = run("init", "my digits")
    assert status == 0
    assert out.splitlines()[-4:] == [
        "  handlergen predict 'my digits' --example doubled",
        "  handlergen archive 'my digits'",
        "  handlergen serve",
        "  handlergen invoke my-digits --example doubled",
    ]


PREDICTS = "def predict(inputs):\n    return inputs\n"


def test_a_module_that_is_there_gets_its_settings_and_no_starter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.py").write_text(PREDICTS)
    (tmp_path / "train.py").write_text("print('training')\n")
    assert run("init", ".")[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"digits.py", "train.py", "handlergen.yaml"}
    project = open_project(tmp_path, environ={})
    assert (project.settings.name, project.source.name) == ("digits", "digits.py")
    (tmp_path / "handlergen.yaml").unlink()
    (tmp_path / "other.py").write_text(PREDICTS)
    status, _, told = run("init", ".")
    assert status == 1
    assert "several modules that predict: digits.py, other.py" in told
    assert not (tmp_path / "handlergen.yaml").exists()
    assert run("init", ".", "--source", "train.txt")[0] == 1
    monkeypatch.chdir(tmp_path.parent)
    assert run("init", tmp_path.name, "--source", "other.py", "--form", "functions")[0] == 0
    project = open_project(tmp_path, environ={})
    assert (project.settings.name, project.source.name, project.settings.form) == ("other", "other.py", "functions")


def test_a_package_and_a_truss_get_settings_for_themselves(tmp_path: Path, run: Callable[..., Any]) -> None:
    package, truss = tmp_path / "wise", tmp_path / "truss"
    package.mkdir()
    (package / "__init__.py").write_text(PREDICTS)
    (truss / "model").mkdir(parents=True)
    (truss / "model" / "model.py").write_text("class Model:\n    def predict(self, request):\n        return request\n")
    (truss / "config.yaml").write_text("model_name: wiser\n")
    assert run("init", str(tmp_path))[0] == 0
    assert open_project(tmp_path, environ={}).source == package
    for directory, name in ((package, "wise"), (truss, "wiser")):
        before = open_project(directory, environ={})
        assert run("init", str(directory))[0] == 0
        after = open_project(directory, environ={})
        assert (after.settings, after.source) == (before.settings, before.source)
        assert after.settings.name == name


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("mine", encoding="utf-8")
    with pytest.raises(HandlergenError, match=r"already has model\.py"):
        create_starter(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model.py"}
    assert (tmp_path / "model.py").read_text(encoding="utf-8") == "mine"


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HandlergenError, match="is a file"):
        create_starter(tmp_path / "file")
    with pytest.raises(HandlergenError, match="cannot be written"):
        create_starter(tmp_path / "file" / "below")


def test_a_form_without_a_starter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HandlergenError, match="no form 'other'"):
        create_starter(tmp_path / "x", form="other")
    assert not (tmp_path / "x").exists()
