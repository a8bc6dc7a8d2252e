"""What inspection reads (a source) and what it returns (a contract or problems, and warnings)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from handlergen.errors import Problem
from handlergen.inspection.source_module import SourceModule
from handlergen.inspection.source_tree import Found, SourceTree, UserClass
from handlergen.project.settings import Settings
from handlergen.runtime.contract import Contract


@dataclass(frozen=True)
class Source:
    """A user's source, as the forms read it.

    Attributes:
        module: The file, or the package's `__init__.py`, parsed.
        name: Import name of the module in the archive.
        tree: The project's files, to follow imports.
        settings: As given; `weights` is relative to `root`.
        root: The directory that the settings' paths are relative to.
        weights_format: Format of the weights file, resolved; None without weights, or if the file is missing.
        class_name: The class that the model-class form looks for.
        details: What the contract carries besides what the source says (a Truss directory's configuration).
    """

    module: SourceModule
    name: str
    tree: SourceTree
    settings: Settings
    root: Path
    weights_format: str | None
    class_name: str = "Model"
    details: Mapping[str, Any] = field(default_factory=dict)

    def line_of(self, function: Found) -> int:
        """Return the line of a function's definition; 0 if it is in another file than the source."""
        return function.node.lineno if function.module is self.module else 0

    def place_of(self, kind: UserClass) -> str:
        """Return where a class is defined, for messages: `line 3`, with the file where it is another one."""
        line = f"line {kind.node.lineno}"
        return line if kind.module is self.module else f"{kind.module.file}, {line}"


@dataclass
class Findings:
    """The result of inspecting a source. `contract` is None if there are problems, `source` if it cannot be parsed.

    Attributes:
        uses: The project's files and directories that the source imports from, to be packed in their place.
        missing: Warnings of files that the source names and that are not packed.
    """

    contract: Contract | None = None
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    source: Source | None = None
    uses: tuple[Path, ...] = ()
    missing: tuple[str, ...] = ()

    def problem(self, file: str, line: int, message: str, fix: str = "") -> None:
        """Add a problem; see `Problem` for the arguments."""
        self.problems.append(Problem(file, line, message, fix))

    def warn(self, file: str, line: int, message: str) -> None:
        """Add a warning about a line (0: about the whole file)."""
        self.warnings.append(f"{file}:{line}: {message}" if line else f"{file}: {message}")
