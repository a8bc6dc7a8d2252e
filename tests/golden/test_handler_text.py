"""The generated handler, as text: golden, lint-free, typed, and what TorchServe's loader asks of it."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from handlergen import runtime
from handlergen.archives.render import class_name, render_handler
from handlergen.project.settings import Settings
from handlergen.runtime.contract import Contract, Hook, Parameter

HANDLERS = Path(__file__).parent / "handlers"
VERSION = "0.0.0"


def hook(name: str, *parameters: str, kind: str = "sync") -> Hook:
    """`*name` marks a keyword-only parameter, `name=` an optional one."""
    made = tuple(
        Parameter(text.strip("*="), text.strip("*="), keyword_only=text[0] == "*", required=text[-1] != "=")
        for text in parameters
    )
    return Hook(name, line=1, kind=kind, parameters=made)


DIGITS = Contract(
    "functions",
    "digits",
    {
        "setup": hook("setup", "context"),
        "load": hook("load", "context"),
        "preprocess": hook("preprocess", "data", "files="),
        "predict": hook("predict", "inputs", "model"),
        "postprocess": hook("postprocess", "outputs", "*request"),
    },
)

CASES: dict[str, tuple[Contract, Settings]] = {
    "digits": (DIGITS, Settings(name="digits", batch="each")),
    "weights_only": (
        Contract("functions", "labels", {"postprocess": hook("postprocess", "outputs")}),
        Settings(name="resnet-50.v2", batch="collate", weights="resnet.pt", lock="model"),
    ),
    "async_package_lists": (
        Contract(
            "functions",
            "detector.hooks",
            {
                "preprocess": hook("fetch", "data", kind="async"),
                "predict": hook("run", *(f"keyword_number_{index}" for index in range(9))),
                "postprocess": hook("stream", "outputs", kind="async_generator"),
            },
        ),
        Settings(name="detector", batch="list", lock="none"),
    ),
    "model_class": (
        Contract("model-class", "model", {"predict": hook("predict", "a", "b")}, class_name="Model", call="keywords"),
        Settings(name="truss", batch="each"),
    ),
}


def rendered(case: str) -> str:
    contract, settings = CASES[case]
    return render_handler(contract, settings, version=VERSION)


@pytest.mark.parametrize("case", CASES)
def test_text(case: str, golden: Callable[[Path, str], None]) -> None:
    golden(HANDLERS / f"{case}.py", rendered(case))


def test_no_golden_handler_is_left_over() -> None:
    assert {path.stem for path in HANDLERS.glob("*.py")} == set(CASES)


def test_torchserve_finds_one_class_and_no_function_and_imports_no_module_of_the_users() -> None:
    # ts/model_loader.py: a function named handle would win, more than one class is an error, and an ImportError of the
    # handler's own imports is swallowed: the environment is checked first, and initialize imports the user's module.
    expected = ["initialize", "preprocess", "inference", "postprocess", "handle"]
    for case in CASES:
        body = ast.parse(rendered(case)).body
        *before, made = body[1:]
        assert isinstance(body[0], ast.Expr), case
        assert [ast.unparse(node) for node in before] == [
            "from typing import Any",
            "from handlergen_runtime.environment import require_environment",
            "require_environment()",
            "from handlergen_runtime.worker import Worker",
            "from ts.torch_handler.base_handler import BaseHandler",
        ], case
        assert isinstance(made, ast.ClassDef), case
        assert [node.name for node in made.body if isinstance(node, ast.FunctionDef)] == expected, case


def test_golden_handlers_pass_ruff() -> None:
    for arguments in (["check", "--select", "E,F,W,I,B,UP,RET,D1"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *arguments, "--isolated", "--line-length", "110", "--no-cache"]
        done = subprocess.run([*command, str(HANDLERS)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_golden_handlers_pass_mypy_strict(tmp_path: Path) -> None:
    # ts has no types, hence the two exceptions; the runtime is the real one, under the name it travels by.
    shutil.copytree(
        Path(runtime.__file__).parent, tmp_path / "handlergen_runtime", ignore=shutil.ignore_patterns("__pycache__")
    )
    for case in CASES:
        shutil.copyfile(HANDLERS / f"{case}.py", tmp_path / f"{case}.py")
    configuration = tmp_path / "mypy.ini"
    configuration.write_text(
        "[mypy]\nstrict = True\ndisallow_subclassing_any = False\nignore_missing_imports = True\n"
        "[mypy-handlergen_runtime.*]\nfollow_imports = silent\n"
        "[mypy-torch.*]\nfollow_imports = skip\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", configuration, *(f"{case}.py" for case in CASES)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("digits", "DigitsHandler"),
        ("resnet-50.v2", "Resnet50V2Handler"),
        ("3d_pose", "Model3dPoseHandler"),
        ("myModel", "MyModelHandler"),
        ("a", "AHandler"),
    ],
)
def test_class_name(name: str, expected: str) -> None:
    assert class_name(name) == expected
    assert expected.isidentifier()
