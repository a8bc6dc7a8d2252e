"""What inspection warns about: slips in names, definitions and decorators that mislead."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.inspecting import PREDICT, read, warnings, write


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("if FAST:\n    def predict(x, device): ...\nelse:\n    def predict(x): ...", "2, 4"),
        ("def predict(x): ...\nif FAST:\n    async def predict(x): ...", "1, 3"),
    ],
)
def test_definitions_that_do_not_take_the_same_are_told(tmp_path: Path, text: str, lines: str) -> None:
    (warning,) = warnings(tmp_path, text)
    assert f"predict is defined 2 times (lines {lines}), with different parameters" in warning


@pytest.mark.parametrize(
    "text",
    [
        # A name like a hook's misleads only where the hook is missing.
        "def pre_process(d): ...\ndef preprocess(data): ...\n" + PREDICT,
        "def process(d): ...\ndef upload(): ...\ndef _preprocess(): ...\n" + PREDICT,
        "if FAST:\n    def predict(x): ...\nelse:\n    def predict(x): ...",
        "def predict(x, context): ...\n\ndef predict(x): ...",
        "if FAST:\n    def predict(x, context): ...\n\ndef predict(x): ...",
        "if FAST:\n    def predict(x: int): ...\nelse:\n    def predict(y): ...",
        "if typing.TYPE_CHECKING:\n    def predict(x, y): ...\nelse:\n    def predict(x): ...",
    ],
)
def test_definitions_that_mislead_nobody_are_not(tmp_path: Path, text: str) -> None:
    assert warnings(tmp_path, text) == []


def test_a_hook_that_is_deleted_is_none(tmp_path: Path) -> None:
    text = "def preprocess(data): ...\ndef predict(x): ...\ndef postprocess(x): ...\ndel preprocess, postprocess\n"
    assert list(read(tmp_path, text).hooks) == ["predict"]
    kept = "def preprocess(data): ...\ndef predict(x): ...\nif RAW:\n    del preprocess\n"
    assert list(read(tmp_path, kept).hooks) == ["preprocess", "predict"]


WRAPPERS = """
def fewer(function):
    def wrapper(inputs):
        return function(inputs, 3)
    return wrapper

def adds(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, extra=3, **kwargs)
    return wrapper

def made(extra):
    def decorate(function):
        return lambda inputs: function(inputs, extra)
    return decorate

def same(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        print(args)
        return function(*args, **kwargs)
    return wrapper

def renames(function):
    def wrapper(x, *rest):
        return function(x, *rest)
    return wrapper

def registers(function):
    HOOKS.append(function)
    return function
"""


@pytest.mark.parametrize("decorator", ["fewer", "adds", "made(3)"])
@pytest.mark.parametrize("imported", [True, False])
def test_a_decorator_that_passes_arguments_of_its_own_is_told(tmp_path: Path, decorator: str, imported: bool) -> None:
    write(tmp_path, WRAPPERS, "wrappers.py")
    start, at = ("import wrappers\n", f"@wrappers.{decorator}") if imported else (WRAPPERS, f"@{decorator}")
    found = warnings(tmp_path, f"{start}\n{at}\ndef predict(inputs, extra): ...\n", extra_files=("wrappers.py",))
    (warning,) = found
    assert f"{at.partition('(')[0]} calls predict(inputs, extra) with arguments of its own" in warning


@pytest.mark.parametrize(
    "hook",
    [
        "@same\ndef predict(inputs, extra): ...",
        "@renames\ndef predict(inputs): ...",
        "@registers\ndef predict(inputs, extra): ...",
        "@fewer\ndef predict(x): ...",
        "@functools.cache\ndef predict(x, y): ...",
        "@absent(1)\ndef predict(x, y): ...",
    ],
)
def test_a_decorator_that_takes_the_same_is_not(tmp_path: Path, hook: str) -> None:
    assert warnings(tmp_path, f"import functools\n{WRAPPERS}\n{hook}\n") == []


def test_a_decorated_method_is_told_too(tmp_path: Path) -> None:
    text = WRAPPERS.replace("(inputs)", "(self, inputs)").replace("(inputs, ", "(self, inputs, ")
    model = "class Model:\n    @fewer\n    def predict(self, inputs, request: Request): ...\n"
    model += "    @same\n    def load(self): ..."
    (warning,) = warnings(tmp_path, f"import functools\n{text}\n{model}\n")
    assert "@fewer calls predict(self, inputs, request: Request) with arguments of its own" in warning
