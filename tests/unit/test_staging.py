"""What goes into an archive, and what is refused before anything is written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from handlergen import runtime
from handlergen.archives.staging import make_plan
from handlergen.errors import HandlergenError
from handlergen.inspection.project import Project, open_project
from handlergen.project.names import check_model_name, check_version, propose

MODULE = "def load(context):\n    return None\n\n\ndef predict(inputs, model):\n    return inputs\n"


@pytest.fixture
def project(tmp_path: Path) -> Callable[..., Project]:
    """`project(files, **settings)`: a project of these files, with `digits.py` in it."""

    def make(files: dict[str, str] | None = None, /, **settings: Any) -> Project:
        root = tmp_path / "project"
        for name, text in {"digits.py": MODULE, **(files or {})}.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return open_project(root / "digits.py", overrides=settings, environ={})

    return make


def places(project: Project) -> list[str]:
    """Archive paths without handlergen's runtime."""
    places = [file.archive_path for file in make_plan(project).files]
    return [place for place in places if not place.startswith("handlergen_runtime/")]


def refusal(project: Project) -> str:
    with pytest.raises(HandlergenError) as caught:
        make_plan(project)
    return str(caught.value)


def test_a_module_alone(project: Callable[..., Project]) -> None:
    assert places(project()) == ["digits.py", "handlergen.json", "handlergen_handler.py", "model-config.yaml"]


def test_the_whole_runtime_travels_and_nothing_else_of_handlergen(project: Callable[..., Project]) -> None:
    directory = Path(runtime.__file__).parent
    expected = {f"handlergen_runtime/{path.relative_to(directory)}" for path in directory.rglob("*.py")}
    found = {
        file.archive_path: file.origin
        for file in make_plan(project()).files
        if "handlergen_runtime" in file.archive_path
    }
    assert found.keys() == expected
    assert found["handlergen_runtime/worker.py"] == directory / "worker.py"


WEIGHTS = {"weights": "models/rf.joblib", "weights_format": "other"}


@pytest.mark.parametrize(
    ("files", "settings", "packed"),
    [
        ("models/rf.joblib data/a/labels.txt data/b.txt", {**WEIGHTS, "extra_files": ["data"]}, None),
        (
            "libs/shapes/__init__.py libs/shapes/deep/circle.py libs/one.py",
            {"packages": ["libs/shapes", "libs/one.py"]},
            "shapes/__init__.py shapes/deep/circle.py one.py",
        ),
        ("a.json b.json c.txt", {"extra_files": ["*.json"]}, "a.json b.json"),
        ("a[1].json a1.json", {"extra_files": ["a[1].json"]}, "a[1].json"),
        ("data/.vocab", {"extra_files": ["data/.vocab"]}, None),  # a hidden file that is named
        # Without __init__.py a directory never wins over a module of that name that comes later on the path.
        ("email/a.txt", {"extra_files": ["email"]}, None),
    ],
)
def test_where_files_are_packed(
    project: Callable[..., Project], files: str, settings: dict[str, Any], packed: str | None
) -> None:
    made = project(dict.fromkeys(files.split(), ""), **settings)
    own = {"digits.py", "handlergen.json", "handlergen_handler.py", "model-config.yaml"}
    assert set(places(made)) - own == set((packed or files).split())
    assert make_plan(made).warnings == ()
    assert make_plan(made).bundle.settings.weights == settings.get("weights")


def test_a_package_as_source(tmp_path: Path) -> None:
    package = tmp_path / "detector"
    (package / "parts").mkdir(parents=True)
    (package / "__init__.py").write_text(MODULE)
    (package / "parts" / "labels.txt").write_text("x")
    (package / "handlergen.yaml").write_text("name: finder\n")
    made = open_project(package, environ={})
    assert made.settings.name == "finder"
    user = [place for place in places(made) if place.startswith("detector")]
    assert user == ["detector/__init__.py", "detector/parts/labels.txt"]


def test_caches_and_hidden_files_stay_at_home(project: Callable[..., Project]) -> None:
    made = project(
        {
            "data/keep.txt": "",
            "data/.env": "SECRET=1",
            "data/.git/config": "",
            "data/__pycache__/x.cpython-311.pyc": "",
            "data/old.pyc": "",
        },
        extra_files=["data"],
    )
    assert [place for place in places(made) if place.startswith("data")] == ["data/keep.txt"]
    (warning,) = make_plan(made).warnings
    assert ".env" in warning


def test_a_file_from_outside_lands_in_the_root_with_a_warning(project: Callable[..., Project], tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "labels.json").write_text("[]")
    made = project(extra_files=["../shared/labels.json"])
    assert "labels.json" in places(made)
    (warning,) = make_plan(made).warnings
    assert "outside the project" in warning
    assert warning.endswith("labels.json")


def test_weights_from_outside_are_found_by_the_runtime(project: Callable[..., Project], tmp_path: Path) -> None:
    weights = tmp_path / "elsewhere.bin"
    weights.write_bytes(b"w")
    made = make_plan(project(weights=str(weights), weights_format="other"))
    assert made.bundle.settings.weights == "elsewhere.bin"
    assert "elsewhere.bin" in [file.archive_path for file in made.files]


@pytest.mark.parametrize(("name", "target"), [("data/x.txt", "secret"), ("data/x", "."), ("x.txt", "secret")])
def test_links_out_of_the_project_are_refused(
    project: Callable[..., Project], tmp_path: Path, name: str, target: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("s")
    made = project({"data/keep.txt": ""}, extra_files=[name.partition("/")[0]])
    (made.root / name).symlink_to(outside / target)
    assert "link out of the project" in refusal(made)


def test_a_link_inside_the_project_is_followed(project: Callable[..., Project]) -> None:
    made = project({"real/x.txt": "x"}, extra_files=["linked"])
    (made.root / "linked").symlink_to("real")
    assert "linked/x.txt" in places(made)


def test_links_that_lead_nowhere_or_in_circles_are_refused(project: Callable[..., Project]) -> None:
    made = project({"data/keep.txt": ""}, extra_files=["data"])
    (made.root / "data" / "nowhere").symlink_to("absent")
    (made.root / "data" / "circle").symlink_to(".")
    message = refusal(made)
    assert "is a broken link" in message
    assert "directory that contains it" in message


def test_a_pipe_is_no_file(project: Callable[..., Project]) -> None:
    made = project({"data/keep.txt": ""}, extra_files=["data"])
    os.mkfifo(made.root / "data" / "pipe")
    assert "neither a file nor a directory" in refusal(made)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("handlergen_handler.py", "handlergen_handler.py"),
        ("handlergen_runtime/worker.py", "handlergen_runtime"),
        ("MAR-INF/MANIFEST.json", "manifest"),
        # What the worker imports must not be shadowed.
        ("torch/__init__.py", "would replace"),
        ("ts/__init__.py", "would replace"),
        ("numpy.py", "would replace"),
        ("logging/__init__.py", "would replace"),
        ("digits/__init__.py", "only the package"),  # beside the module digits.py
    ],
)
def test_names_that_are_taken(project: Callable[..., Project], file: str, message: str) -> None:
    assert message in refusal(project({file: ""}, extra_files=[file]))


def test_two_files_of_one_name(project: Callable[..., Project], tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text("outside")
    made = project({"labels.json": "inside"}, extra_files=["labels.json", "../labels.json"])
    assert "both be labels.json" in refusal(made)


def test_the_same_file_named_twice_is_one_file(project: Callable[..., Project]) -> None:
    made = project(
        {"data/w.bin": "w"}, extra_files=["data", "data/w.bin"], weights="data/w.bin", weights_format="other"
    )
    assert places(made).count("data/w.bin") == 1


@pytest.mark.parametrize(
    "name", ["", "-m", "a b", "a/b", "../a", ".x", "name\n", "ümlaut", "all", "None", "digits.mar", "x" * 201]
)
def test_bad_model_names(name: str) -> None:
    with pytest.raises(HandlergenError) as caught:
        check_model_name(name)
    assert caught.value.hint is not None
    check_model_name(propose(name))


@pytest.mark.parametrize("version", ["1/2", "", "all", "1.0\n"])
def test_bad_versions(version: str) -> None:
    with pytest.raises(HandlergenError, match="version"):
        check_version(version)


def requirements_of(project: Project) -> str | None:
    found = [file.origin for file in make_plan(project).files if file.archive_path == "requirements.txt"]
    return found[0].decode() if found and isinstance(found[0], bytes) else None


def test_requirements(project: Callable[..., Project]) -> None:
    assert requirements_of(project()) is None
    assert requirements_of(project(requirements=["pillow>=10", "torch>=2,<3"])) == "pillow>=10\ntorch>=2,<3\n"
    files = {"requirements.txt": "# comment\nnumpy", "more.txt": "scipy\n"}
    assert requirements_of(project(files, requirements=["requirements.txt"])) == "# comment\nnumpy\n"
    both = project(files, requirements=["requirements.txt", "more.txt", "six"], extra_files=["requirements.txt"])
    assert requirements_of(both) == "# comment\nnumpy\nscipy\nsix\n"


@pytest.mark.parametrize("line", ["-r other.txt", "./wheels/a.whl", "--constraint=c.txt", "-c c.txt"])
def test_requirements_that_name_files_are_refused(project: Callable[..., Project], line: str) -> None:
    made = project({"requirements.txt": f"six\n{line}\n"}, requirements=["requirements.txt"])
    assert "names another file" in refusal(made)


def test_names_that_java_may_not_unpack_are_warned_about(project: Callable[..., Project]) -> None:
    made = make_plan(project({"data/größe.txt": "", "data/ä.txt": ""}, extra_files=["data"]))
    (warning,) = made.warnings
    assert "größe.txt" in warning
    assert "C.UTF-8" in warning


NAMES_FILES = '''
"""weights.bin is read by load."""
HIDDEN = "secrets/key.pem"

def load(context):
    return open(context.model_dir / "weights.bin"), open("labels.txt"), "helper.py", "no/such.file"

def predict(x): ...
'''


def test_a_named_file_that_is_not_packed_is_warned_about(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    for name in ("weights.bin", "labels.txt", "helper.py", "secrets/key.pem"):
        (tmp_path / name).write_text("x")
    module = tmp_path / "model.py"
    module.write_text(NAMES_FILES)
    warnings = open_project(module, overrides={"extra_files": ["labels.txt"]}, environ={}).missing
    assert [warning.partition("model.py:")[2].split(" is named")[0] for warning in warnings] == [
        "3: 'secrets/key.pem'",
        "6: 'weights.bin'",
    ]
    assert "--extra-file secrets/key.pem" in warnings[0]


def test_files_elsewhere_and_broken_modules_are_no_concern(tmp_path: Path) -> None:
    module = tmp_path / "model.py"
    module.write_text("path = '../outside.txt'\nother = '/etc/hosts.conf'\ndef predict(x): ...\n")
    (tmp_path.parent / "outside.txt").write_text("x")
    (tmp_path / "broken.py").write_text("def (")
    assert open_project(module, overrides={"extra_files": ["broken.py"]}, environ={}).missing == ()
