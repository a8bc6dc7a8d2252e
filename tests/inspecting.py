"""Modules out of text, and what inspection reads in them."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

from handlergen.errors import ContractError
from handlergen.inspection.reading import read_source
from handlergen.project.settings import Settings
from handlergen.runtime.contract import Contract

PREDICT = "\ndef predict(x): ...\n"


def write(directory: Path, text: str, name: str = "digits.py") -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def inspect_source(path: Path, **settings: Any) -> Contract:
    """Inspect a `.py` file or a package; raise ContractError with all its problems."""
    findings = read_source(path, settings=Settings(**settings), root=path.parent)
    if findings.contract is None:
        raise ContractError(sorted(findings.problems))
    return findings.contract


def read(directory: Path, text: str, **settings: Any) -> Contract:
    return inspect_source(write(directory, text), **settings)


def problems(directory: Path, text: str, **settings: Any) -> list[str]:
    """The messages of the problems for which inspection refuses a module."""
    with pytest.raises(ContractError) as refused:
        read(directory, text, **settings)
    assert list(refused.value.problems) == sorted(refused.value.problems)
    return [problem.message for problem in refused.value.problems]


def warnings(directory: Path, text: str, **settings: Any) -> list[str]:
    path = write(directory, text)
    return read_source(path, settings=Settings(**settings), root=directory).warnings


def passed(contract: Contract, hook: str) -> list[tuple[str, str]]:
    """What a hook's parameters receive: name and source of each."""
    return [(p.name, p.source) for p in contract.hooks[hook].parameters]
