"""A project while it is made of a live object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HOOK_NAMES = ("setup", "load", "preprocess", "predict", "postprocess", "explain", "is_healthy")


@dataclass
class Draft:
    """What is known of the project so far.

    Attributes:
        write: Writes a function or class, and what it uses, under a name (`source_code.write`).
        imports: Lines of the module, in any order, with repetitions.
        definitions: Constants, functions and classes as source text, in the order in which they need each other.
        hooks: Role -> source text of the top-level function of that name.
        files: Path in the project -> writes it, given its path.
        sources: Files and packages of the user's own that the module imports, to be copied beside it.
        settings: For handlergen.yaml: what differs from the defaults.
        title: The first line of the module's docstring.
        inlined: Modules whose functions and classes stand in this one.
        named: Names of the module -> the live object that each stands for.
    """

    write: Callable[[Draft, str, Any], None]
    imports: list[str] = field(default_factory=list)
    definitions: list[str] = field(default_factory=list)
    hooks: dict[str, str] = field(default_factory=dict)
    files: dict[str, Callable[[Path], Any]] = field(default_factory=dict)
    sources: list[Path] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    title: str = ""
    inlined: set[str] = field(default_factory=lambda: {"__main__", "__mp_main__"})
    named: dict[str, Any] = field(default_factory=dict)

    def module_text(self) -> str:
        """Return the module as a person would lay it out: docstring, imports, definitions, hooks."""
        imports = sorted(set(self.imports), key=lambda line: ("__future__" not in line, line.startswith("from"), line))
        lines = "\n".join(imports).replace("annotations\n", "annotations\n\n", 1)
        text = "\n\n".join(filter(None, [f'"""{self.title}"""' if self.title else "", lines]))
        previous = "imports"
        hooks = [self.hooks[role] for role in sorted(self.hooks, key=HOOK_NAMES.index)]
        for block in (*self.definitions, *hooks):
            kind = "function" if block.lstrip().startswith(("def ", "async ", "class ", "@")) else "constant"
            between = "\n\n\n" if "function" in (kind, previous) else "\n" if kind == previous else "\n\n"
            text = (text + between if text else "") + block.strip("\n")
            previous = kind
        return text.lstrip("\n") + "\n"
