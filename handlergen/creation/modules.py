"""Imports of a created module: of what is installed, and of the caller's own files, which are copied beside it."""

from __future__ import annotations

import ast
import functools
import importlib
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from handlergen.creation.draft import Draft
from handlergen.errors import HandlergenError

_SCRIPT = ("__main__", "__mp_main__")
_OWN = Path(__file__).resolve().parents[1]


def add_import(draft: Draft, name: str, value: Any) -> bool:
    """Import a function, class or other named object; return False where the module itself must define it.

    Args:
        name: Its name in the module; empty: its own.
    """
    module, own = getattr(value, "__module__", None), getattr(value, "__qualname__", None) or name
    if "." in own and getattr(sys.modules.get(str(module)), own.rpartition(".")[2], None) is value:
        own = own.rpartition(".")[2]  # torch.relu: a method of a nameless class by its qualified name
    if not isinstance(module, str) or module in draft.inlined or "." in own or own == "<lambda>":
        return False
    module = _public(module, own, value)
    if getattr(sys.modules.get(module), own, None) is not value or not _is_importable(module):
        return False
    add_source(draft, module)
    draft.imports.append(f"from {module} import {own}" + (f" as {name}" if name not in ("", own) else ""))
    return True


def add_module(draft: Draft, name: str, module: ModuleType) -> None:
    """Add `import module as name`. Raises HandlergenError if a clean process could not."""
    whole = module.__name__
    if not _is_importable(whole):
        raise HandlergenError(f"the module {whole} has no file", hint="Put it into a file beside the script.")
    add_source(draft, whole)
    parent, _, last = whole.rpartition(".")
    if name == whole:
        draft.imports.append(f"import {whole}")
    elif parent and name == last:
        draft.imports.append(f"from {parent} import {last}")
    else:
        draft.imports.append(f"import {whole} as {name}")


def add_source(draft: Draft, module: str) -> None:
    """Have a module copied beside, with those that it imports, if it is the caller's own."""
    path = _file_of(module.partition(".")[0])
    if path is None or _is_installed(path):
        return
    place = path.parent if path.name == "__init__.py" else path
    if place not in draft.sources:
        draft.sources.append(place)
        for used in _imports_of(place):
            add_source(draft, used)


def is_own(module: str) -> bool:
    """Return whether a module is the caller's: the script or notebook itself, or a file that is not installed."""
    path = _file_of(module.partition(".")[0])
    return module in _SCRIPT or (path is not None and not _is_installed(path))


def _public(module: str, name: str, value: Any) -> str:
    """Return the shortest parent of a module that has the value, too: `torch.nn` for `torch.nn.modules.linear`."""
    parts = module.split(".")
    parents = (".".join(parts[:length]) for length in range(1, len(parts)))
    return next((each for each in parents if getattr(sys.modules.get(each), name, None) is value), module)


def _imports_of(place: Path) -> Iterator[str]:
    for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module


def _is_importable(module: str) -> bool:
    """Return whether a clean process can import a module, with the caller's own files beside it."""
    top = module.partition(".")[0]
    return top not in _SCRIPT and (top in sys.stdlib_module_names or _file_of(top) is not None)


@functools.cache
def _file_of(top: str) -> Path | None:
    if top in sys.stdlib_module_names or top in _SCRIPT:
        return None
    try:
        found = sys.modules.get(top) or importlib.import_module(top)
    except ImportError:
        return None
    file = getattr(found, "__file__", None)
    if file is None:  # a namespace package
        file = next((str(Path(each) / "__init__.py") for each in getattr(found, "__path__", ())), None)
    return Path(file) if file else None


def _is_installed(path: Path) -> bool:
    places = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return "site-packages" in path.parts or _OWN in path.parents or any(str(path).startswith(each) for each in places)
