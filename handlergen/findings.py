"""What reading a source brings to light: a contract, or problems; and warnings either way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from handlergen.errors import Problem
from handlergen.runtime.contract import Contract
from handlergen.settings import Settings
from handlergen.source_module import SourceModule
from handlergen.source_tree import SourceTree


@dataclass(frozen=True)
class Source:
    """A user's source as the forms read it.

    Attributes:
        module: The file, or the package's `__init__.py`, parsed.
        name: Its import name in the archive.
        tree: To follow imports with.
        settings: As given; `weights` is relative to `root`.
        root: What the settings' paths are relative to.
        weights_format: Of the weights, resolved; None without weights, or when the file is missing.
        class_name: The class that the model-class form looks for.
        details: What the contract shall carry besides what the source says (a Truss directory's configuration).
    """

    module: SourceModule
    name: str
    tree: SourceTree
    settings: Settings
    root: Path
    weights_format: str | None
    class_name: str = "Model"
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Findings:
    """The result of reading a source. `contract` is None when there are problems, `source` when it cannot be parsed."""

    contract: Contract | None = None
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    source: Source | None = None
