"""A Truss directory as SOURCE: what becomes of its config.yaml."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from handlergen.archives.build import archive
from handlergen.archives.mar import read_mar
from handlergen.errors import ContractError, HandlergenError
from handlergen.inspection.project import Project, open_project
from handlergen.local.model import load
from handlergen.project.truss import FUTILE, HONOURED, UNSUPPORTED, WITHOUT_EFFECT, is_truss

MODEL = """
class Model:
    def __init__(self, config, data_dir):
        self.config, self.data_dir = config, data_dir

    def predict(self, inputs):
        return inputs
"""

Make = Callable[..., Path]


@pytest.fixture
def truss(tmp_path: Path) -> Make:
    """`truss(config, **{"path": text})` writes a Truss directory."""

    def make(config: str = "", files: dict[str, str] | None = None, model: str = MODEL) -> Path:
        directory = tmp_path / "my-truss"
        for name, text in {"config.yaml": config, "model/model.py": model, **(files or {})}.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text), encoding="utf-8")
        return directory

    return make


def opened(directory: Path, **overrides: Any) -> Project:
    return open_project(directory, overrides=overrides, environ={})


def test_the_least_truss(truss: Make) -> None:
    project = opened(truss())
    contract = project.contract
    assert (contract.form, contract.module, contract.class_name) == ("model-class", "model.model", "Model")
    assert (project.settings.name, project.settings.devices, project.warnings) == ("my-truss", "auto", ())
    assert project.settings.config["model_metadata"] == {}
    assert opened(truss("model_name: token reader\n") / "config.yaml").settings.name == "model-token-reader"


def test_every_honoured_key(truss: Make) -> None:
    directory = truss(
        """
        model_name: Say It
        model_module_dir: src
        model_class_filename: main.py
        model_class_name: Speaker
        model_metadata: {greeting: hello, nested: {a: [1, 2]}}
        data_dir: assets
        bundled_packages_dir: libs
        external_package_dirs: [../shared]
        requirements: [torch==2.3.0, "git+https://example.com/x.git"]
        secrets: {hf_token: null, other: "placeholder"}
        environment_variables: {STYLE: loud, DEBUG: true, LEVEL: 3}
        resources: {cpu: "3", memory: 14Gi, use_gpu: false, accelerator: null}
        runtime: {predict_concurrency: 1, streaming_read_timeout: 30}
        """,
        {
            "src/main.py": MODEL.replace("Model", "Speaker"),
            "src/helper.py": "",
            "assets/words.txt": "a",
            "libs/one/__init__.py": "",
            "libs/two.py": "",
            "libs/notes.md": "",
            "../shared/three/__init__.py": "",
        },
    )
    project = opened(directory)
    settings = project.settings
    assert (project.contract.module, project.contract.class_name) == ("src.main", "Speaker")
    assert settings.name == "Say-It"
    assert settings.extra_files == ("assets",)
    assert settings.packages == ("libs/one", "libs/two.py", str(directory.parent / "shared" / "three"))
    assert settings.requirements == ("torch==2.3.0", "git+https://example.com/x.git")
    assert settings.secrets == ("hf_token", "other")
    assert settings.devices == "cpu"
    assert settings.predict_timeout_s == 30
    assert settings.config["model_metadata"] == {"greeting": "hello", "nested": {"a": [1, 2]}}
    assert settings.config["secrets"] == {"hf_token": None, "other": None}
    assert project.contract.details == {
        "data_dir": "assets",
        "environment_variables": {"STYLE": "loud", "DEBUG": "true", "LEVEL": "3"},
    }
    of_config = [warning for warning in project.warnings if "config.yaml" in warning]
    assert len(of_config) == 1
    assert "values of `secrets` are ignored" in of_config[0]


def test_settings_of_handlergen_win(truss: Make) -> None:
    directory = truss("model_name: one\nrequirements: [a]\n", {"handlergen.yaml": "name: two\nbatch_size: 4\n"})
    project = opened(directory, workers_per_device=3)
    settings = project.settings
    assert (settings.name, settings.batch_size, settings.workers_per_device) == ("two", 4, 3)
    assert settings.requirements == ("a",)


def test_the_model_may_lie_in_the_directory_itself(truss: Make) -> None:
    directory = truss("model_module_dir: .\nmodel_class_filename: main.py\n", {"main.py": MODEL})
    project = opened(directory)
    assert (project.contract.module, project.is_package) == ("main", False)


def test_a_config_yaml_alone_makes_no_truss(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model_name: x")
    assert not is_truss(tmp_path)
    with pytest.raises(HandlergenError, match=r"neither handlergen\.yaml"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("a: [", "not valid YAML"),
        ("secrets: [a, b]", "`secrets` is"),
        ("requirements_file: nowhere.txt", r"nowhere\.txt does not exist"),
        ("requirements_file: model/model.py", r"does not end in \.txt"),
        ("external_package_dirs: [nowhere]", "nowhere does not exist"),
        ("docker_server: {start_command: x}", "`docker_server` is not supported"),
    ],
)
def test_what_cannot_be_done_is_a_problem(truss: Make, config: str, message: str) -> None:
    directory = truss(config)
    with pytest.raises(ContractError) as refused:
        opened(directory)
    (problem,) = refused.value.problems
    assert problem.line == 1
    assert re.search(message, f"{problem.message} {problem.fix}")


def test_every_key_has_one_fate() -> None:
    keys = [*HONOURED, *WITHOUT_EFFECT, *FUTILE, *UNSUPPORTED]
    assert len(keys) == len(set(keys))


def test_it_is_packed_and_runs_from_source_and_archive(
    truss: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SAY_STYLE", raising=False)
    monkeypatch.setenv("api_key", "1234")
    directory = truss(
        """
        model_metadata: {greeting: hello}
        secrets: {api_key: "never packed"}
        environment_variables: {SAY_STYLE: loud}
        requirements: [numpy]
        resources: {use_gpu: false}
        """,
        {
            "model/helper.py": "def twice(text):\n    return f'{text} {text}'\n",
            "packages/shout/__init__.py": "def shout(text):\n    return text.upper()\n",
            "data/words/word.txt": "dear",
            "data/.hidden": "x",
        },
        model="""
        import os
        from model.helper import twice
        from shout import shout

        STYLE = os.environ["SAY_STYLE"]

        class Model:
            def __init__(self, **kwargs):
                self._given = kwargs

            def load(self):
                self._word = (self._given["data_dir"] / "words" / "word.txt").read_text()

            def predict(self, name):
                greeting = self._given["config"]["model_metadata"]["greeting"]
                return [shout(twice(f"{greeting} {self._word} {name}")), STYLE, self._given["secrets"]["api_key"]]
        """,
    )
    result = archive(directory, model_store=tmp_path / "store")
    names = {file.name for file in read_mar(result.path).files}
    assert {"model/model.py", "model/helper.py", "shout/__init__.py", "data/words/word.txt"} <= names
    assert not {"config.yaml", "data/.hidden", "packages/shout/__init__.py"} & names
    assert b"never packed" not in result.path.read_bytes()
    for source in (directory, result.path):
        with load(source) as model:
            assert model.predict("bob") == ["HELLO DEAR BOB HELLO DEAR BOB", "loud", "1234"]
    monkeypatch.delenv("SAY_STYLE")


BESIDE = """
import helper
import model.helper
from base import Base
from .helper import calls


class Model(Base):
    def predict(self, x):
        from tools.late import late
        helper.calls.append(x)
        return [late(x), helper.calls, model.helper.calls, calls is model.helper.calls, helper is model.helper]
"""


@pytest.mark.parametrize("package", ["model", "src"])
def test_the_directory_of_the_model_is_on_the_path(truss: Make, tmp_path: Path, package: str) -> None:
    files = {"helper.py": "calls = []", "base.py": "class Base:\n    def preprocess(self, x):\n        return x + 1"}
    files |= {"tools/late.py": "def late(x):\n    import helper\n    return -x", "__init__.py": ""}
    text = BESIDE.replace("model.helper", f"{package}.helper")
    directory = truss(f"model_module_dir: {package}", {f"{package}/{name}": each for name, each in files.items()}, text)
    if package != "model":
        (directory / "model" / "model.py").rename(directory / package / "model.py")
    made = archive(directory, model_store=tmp_path / "store")
    before = [*sys.path]
    for source in (directory, made.path):
        with load(source) as model:
            assert model.predict(1) == [-2, [2], [], True, False]
        assert sys.path == before
