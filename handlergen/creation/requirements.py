"""What pip must install for a created project."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from functools import cache
from importlib import metadata

_OF_THE_SERVER = ("torch", "torchvision", "numpy", "PIL", "yaml", "handlergen")
"""What TorchServe's images have; a model with other requirements gets a virtual environment, which takes seconds."""


@cache
def _distributions() -> dict[str, list[str]]:
    return {module: list(names) for module, names in metadata.packages_distributions().items()}


def requirement_of(module: str, *, exact: bool = True) -> str:
    """Return the requirement of an installed module, in its version here: `xgboost-cpu==3.2.0`."""
    names = _distributions().get(module)
    if not names:
        return module
    return f"{names[0]}{'==' if exact else '>='}{metadata.version(names[0])}"


def requirements_of(source: str, *, own: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return the requirements of what a module imports, besides those that are known.

    Modules of the server's own packages are left out, and so are those of no distribution, which the check in a clean
    process finds.

    Args:
        own: Names of the project's modules.
        known: Requirements, whose distributions are not repeated.
    """
    have = {entry.partition("==")[0].partition(">=")[0].strip().lower() for entry in known}
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [
        name.partition(".")[0]
        for node in nodes
        for name in ([each.name for each in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    ]
    skipped = {*sys.stdlib_module_names, *_OF_THE_SERVER, *own, ""}
    found = []
    for name in dict.fromkeys(names):
        distribution = (_distributions().get(name) or [""])[0]
        if name not in skipped and distribution and distribution.lower() not in have:
            found.append(requirement_of(name, exact=False))
            have.add(distribution.lower())
    return found
