"""What SOURCE may be, which settings belong to it, and what a project resolves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from handlergen.errors import ContractError, HandlergenError
from handlergen.inspection.project import Project, open_project

PREDICT = "def predict(x):\n    return x\n"


def lay(root: Path, **files: str) -> Path:
    """Files by name, `__` for `/` and a last `_` for the dot: `sub__model_py`."""
    for name, text in files.items():
        stem, _, suffix = name.replace("__", "/").rpartition("_")
        path = root / f"{stem}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def opened(source: Path, **overrides: Any) -> Project:
    return open_project(source, overrides=overrides, environ={})


def test_a_single_file(tmp_path: Path) -> None:
    lay(tmp_path, digits_py=PREDICT)
    project = opened(tmp_path / "digits.py")
    assert (project.root, project.source, project.is_package) == (tmp_path, tmp_path / "digits.py", False)
    settings = project.settings
    assert (settings.name, settings.form, settings.batch, settings.source) == (
        "digits",
        "functions",
        "each",
        "digits.py",
    )
    assert project.contract.module == "digits"
    assert project.warnings == ()


def test_a_package(tmp_path: Path) -> None:
    package = lay(tmp_path / "reader", hooks_py=PREDICT)
    (package / "__init__.py").write_text("from .hooks import predict\n", encoding="utf-8")
    project = opened(package)
    assert (project.root, project.source, project.is_package) == (tmp_path, package, True)
    assert (project.settings.name, project.contract.module) == ("reader", "reader")


def test_a_package_with_settings_in_it(tmp_path: Path) -> None:
    package = lay(tmp_path / "reader", weights_pt="x", handlergen_yaml="weights: weights.pt\nextra_files: [../a.txt]\n")
    (package / "__init__.py").write_text(PREDICT + "def load(): ...\n", encoding="utf-8")
    project = opened(package)
    assert (project.root, project.source) == (tmp_path, package)
    assert project.settings.weights == "reader/weights.pt"
    assert project.settings.extra_files == ("a.txt",)


def test_a_directory_with_settings(tmp_path: Path) -> None:
    root = lay(tmp_path / "numbers", digits_py=PREDICT, handlergen_yaml="batch_size: 4\n")
    project = opened(root)
    assert (project.root, project.source) == (root, root / "digits.py")
    assert (project.settings.name, project.settings.batch_size) == ("numbers", 4)
    assert opened(root / "handlergen.yaml") == project


def test_the_only_module_or_model_py(tmp_path: Path) -> None:
    lay(tmp_path, a_py="", model_py=PREDICT, handlergen_yaml="name: x\n")
    assert opened(tmp_path).source.name == "model.py"
    lay(tmp_path / "tested", digits_py=PREDICT, test_digits_py="", conftest_py="", handlergen_yaml="")
    assert opened(tmp_path / "tested").source.name == "digits.py"


def test_source_names_a_file_or_a_package(tmp_path: Path) -> None:
    settings = "name: x\nsource: src/digits.py\nextra_files: [labels.txt]\n"
    lay(tmp_path, handlergen_yaml=settings, src__digits_py=PREDICT)
    project = opened(tmp_path)
    assert (project.root, project.source) == (tmp_path, tmp_path / "src" / "digits.py")
    assert project.settings.extra_files == ("labels.txt",)
    lay(tmp_path, handlergen_yaml="name: x\nsource: reader\n")
    (tmp_path / "reader").mkdir()
    (tmp_path / "reader" / "__init__.py").write_text(PREDICT, encoding="utf-8")
    assert opened(tmp_path).is_package


def test_a_file_takes_the_settings_beside_it_only_when_they_are_its_own(tmp_path: Path) -> None:
    lay(tmp_path, digits_py=PREDICT, other_py=PREDICT, handlergen_yaml="name: numbers\nsource: digits.py\n")
    assert opened(tmp_path / "digits.py").settings.name == "numbers"
    other = opened(tmp_path / "other.py")
    assert other.settings.name == "other"
    assert "is not used for" in other.warnings[0]


@pytest.mark.parametrize(
    ("files", "source", "words"),
    [
        ({"digits_txt": ""}, "digits.txt", "not a .py file"),
        ({"digits_mar": ""}, "digits.mar", "already an archive"),
        ({"handlergen_yaml": ""}, ".", "no .py file"),
        ({"handlergen_yaml": "source: lost.py"}, ".", "source: lost.py does not exist"),
        ({"handlergen_yaml": "source: a.txt", "a_txt": ""}, ".", "not a .py file"),
        ({"handlergen_yaml": "source: sub", "sub__a_py": ""}, ".", "not a package"),
    ],
)
def test_sources_that_are_none(files: dict[str, str], source: str, words: str, tmp_path: Path) -> None:
    lay(tmp_path, **files)
    with pytest.raises(HandlergenError, match=words) as refused:
        opened(tmp_path / source)
    assert refused.value.hint


def test_settings_and_source_problems_come_together(tmp_path: Path) -> None:
    lay(tmp_path, model_py="def predict(*x): ...\n", handlergen_yaml="bach: each\nweights: lost.pt\n")
    with pytest.raises(ContractError) as refused:
        opened(tmp_path, queue_size=0)
    messages = " ".join(problem.message for problem in refused.value.problems)
    for words in ("`bach`", "lost.pt", "`*x`", "`queue_size`"):
        assert words in messages


def test_overrides_and_the_environment(tmp_path: Path) -> None:
    lay(tmp_path, digits_py=PREDICT)
    environ = {"HANDLERGEN_NAME": "from-environment", "HANDLERGEN_BATCH_SIZE": "3"}
    project = open_project(str(tmp_path / "digits.py"), overrides={"name": "flag", "lock": None}, environ=environ)
    settings = project.settings
    assert (settings.name, settings.batch_size, settings.lock) == ("flag", 3, "device")


def test_a_source_given_for_a_directory_without_settings(tmp_path: Path) -> None:
    lay(tmp_path, a_py=PREDICT, b_py="")
    assert open_project(tmp_path, overrides={"source": "a.py"}, environ={}).source == tmp_path / "a.py"


def test_a_path_given_by_flag_is_looked_for_in_the_project_and_then_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(tmp_path / "project", digits_py=PREDICT + "def load(): ...\n", inside_pt="")
    lay(tmp_path / "here", outside_pt="")
    monkeypatch.chdir(tmp_path / "here")
    source = Path("../project/digits.py")
    assert opened(source, weights="inside.pt").settings.weights == "inside.pt"
    assert opened(source, weights="../project/inside.pt").settings.weights == "inside.pt"
    assert opened(source, weights="outside.pt").settings.weights == str(tmp_path / "here" / "outside.pt")


def test_weights_say_what_they_hold(tmp_path: Path) -> None:
    lay(tmp_path, digits_py="", net_onnx="")
    project = opened(tmp_path / "digits.py", weights="net.onnx")
    assert project.settings.weights_format == "onnx"
    assert project.contract.hooks == {}


def test_a_name_that_cannot_be_derived_is_asked_for(tmp_path: Path) -> None:
    root = lay(tmp_path / "my model (1)", model_py=PREDICT, handlergen_yaml="")
    with pytest.raises(ContractError, match="name:"):
        opened(root)
    assert opened(root, name="fine").settings.name == "fine"


def test_a_module_that_would_hide_another_is_refused(tmp_path: Path) -> None:
    for name in ("json", "torch", "ts", "handlergen_runtime", "handlergen_handler"):
        (tmp_path / f"{name}.py").write_text(PREDICT)
        with pytest.raises(ContractError, match="cannot be named"):
            opened(tmp_path / f"{name}.py")


def test_links_keep_the_name_they_are_called_by(tmp_path: Path) -> None:
    lay(tmp_path, real_py=PREDICT)
    (tmp_path / "digits.py").symlink_to("real.py")
    assert opened(tmp_path / "digits.py").contract.module == "digits"
