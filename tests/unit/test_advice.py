"""Advice in messages names only what there is: verbs, options, settings."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest

import handlergen
from handlergen.cli import cli
from handlergen.project.settings import SETTINGS
from handlergen.server.properties import ServerSettings

Run = Callable[..., tuple[int, str, str]]

PACKAGE = Path(handlergen.__file__).parent
OTHER_PROGRAMS = {
    "pip": "--constraint --editable --extra-index-url --find-links --force-reinstall --hash",
    "torch-model-archiver": "--export-path --extra-files --handler --model-name --serialized-file",
    "torchserve": "--models --ncs --start --stop --ts-config",
    "TorchServe's worker": "--port --sock-name",
    "curl": "--cacert --connect-to",
    "docker": "--shm-size",
    "nvidia-smi": "--query-gpu",
}
"""Options that messages and commands name of programs that are not handlergen."""


def texts() -> Iterator[tuple[str, str]]:
    """Every text of the package that is no docstring, with its place; what is filled in stands as `{}`."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_bytes())
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            place = f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
                yield place, "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                yield place, node.value


def commands(group: click.Command = cli) -> dict[str, click.Command]:
    assert isinstance(group, click.Group)
    context = click.Context(group)
    found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def options() -> set[str]:
    return {
        name
        for command in [cli, *commands().values()]
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    } | {"--help", "--version"}


def named(pattern: str) -> dict[str, str]:
    """What messages name by a pattern, each with a place."""
    return {name: place for place, text in texts() for name in re.findall(pattern, text)}


def unknown(found: dict[str, str], known: set[str]) -> dict[str, str]:
    return {name: place for name, place in found.items() if name not in known}


def test_options_that_are_named_exist() -> None:
    own, others = options(), {option for each in OTHER_PROGRAMS.values() for option in each.split()}
    found = named(r"(?<![\w=-])--[a-z][a-z0-9-]*[a-z0-9]")
    assert not unknown(found, own | others)
    assert len(found.keys() & own) > 40
    assert others <= found.keys()


def test_verbs_that_are_named_exist() -> None:
    found = named(r"`handlergen ([a-z]+)")
    assert not unknown(found, set(commands()))
    assert len(found) > 5


def test_settings_that_are_named_exist() -> None:
    found = named(r"`([a-z_]+): [^`]+`")
    known = {*SETTINGS, *(field.name for field in fields(ServerSettings))}
    assert not unknown(found, known | {"request", "runs"})  # a parameter of a Truss's hook, a key of an example
    assert len(found) > 5


FUNCTIONS = "def predict(inputs):\n    return inputs\n"
TWO_FORMS = """
import torch

class Net(torch.nn.Module):
    def preprocess(self, x): return x
    def forward(self, x): return x

class Model:
    def predict(self, x): return x
"""
STREAM = """
def predict(inputs):
    yield inputs

def postprocess(outputs):
    return outputs
"""
SQLITE = """
import sqlite3

DB = sqlite3.connect(":memory:")

def preprocess(data):
    return DB.execute("select ?", (data,)).fetchone()

def predict(inputs):
    return inputs
"""


@pytest.mark.parametrize(
    ("source", "commands", "advice", "followed"),
    [
        (FUNCTIONS, ["archive m.py", "archive m.py"], "--force replaces it", "archive m.py --force"),
        (FUNCTIONS, ["archive m.py", "archive m.py"], "--name gives the model another", "archive m.py --name n"),
        (
            FUNCTIONS,
            ["map m.py rows.jsonl -o o.jsonl"] * 2,
            "--overwrite",
            "map m.py rows.jsonl -o o.jsonl --overwrite",
        ),
        (FUNCTIONS, ["init m.py --form functions"], "Name a directory", "init made --form functions"),
        (FUNCTIONS, ["predict m.py [1,"], "JSON", "predict m.py [1]"),
        (TWO_FORMS, ["check m.py"], "--form model-class", "check m.py --form model-class"),
        (STREAM, ["check m.py"], "Do the work of postprocess inside predict", "without postprocess"),
        (SQLITE, ["check m.py"], "check_same_thread=False", "with check_same_thread=False"),
    ],
)
def test_advice_that_is_followed_leads_to_success(
    source: str,
    commands: list[str],
    advice: str,
    followed: str,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.py").write_text(source)
    Path("rows.jsonl").write_text("1\n")
    for command in commands:
        _, printed, said = run(*command.split())
    assert advice in printed + said
    if followed == "without postprocess":
        Path("m.py").write_text(source[: source.index("def postprocess")])
        followed = "check m.py"
    elif followed == "with check_same_thread=False":
        Path("m.py").write_text(source.replace('":memory:"', '":memory:", check_same_thread=False'))
        followed = "check m.py"
    status, printed, said = run(*followed.split())
    assert status == 0, said
    assert advice not in printed + said
