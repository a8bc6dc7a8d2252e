"""Context managers for running user code in this process: its working directory, and its directories on the path."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType


@contextlib.contextmanager
def working_directory(path: Path) -> Iterator[None]:
    """Change the working directory, as it is for hooks in a worker; change it back afterwards."""
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def importable(roots: Sequence[Path], module: str) -> Iterator[None]:
    """Put directories first on the path; afterwards remove them, and all modules imported from them."""
    top = module.partition(".")[0]
    stale = [name for name in sys.modules if name == top or name.startswith(f"{top}.")]
    for name in stale:
        del sys.modules[name]
    sys.path[:0] = [str(root) for root in roots]
    importlib.invalidate_caches()
    before = set(sys.modules)
    try:
        yield
    finally:
        if sys.modules is not None and sys.path is not None:  # both are gone when the interpreter exits
            _forget(roots, before)


def _forget(roots: Sequence[Path], before: set[str]) -> None:
    for root in roots:
        if str(root) in sys.path:
            sys.path.remove(str(root))
    for name in set(sys.modules) - before:
        file = _place_of(sys.modules[name])
        if file and any(file.is_relative_to(root) for root in roots) and "site-packages" not in str(file):
            del sys.modules[name]


def _place_of(module: ModuleType) -> Path | None:
    """Return a module's file, or the directory of a package without `__init__.py`."""
    file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    return Path(file) if file else None
