"""Which functions, classes and modules are the project's own, and which a library's."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType

_RUNTIME = Path(__file__).resolve().parent.parent
_INSTALLED = frozenset(("site-packages", "dist-packages"))


class OwnFiles:
    """The files below the directory of a model that nobody installed there.

    Args:
        model_dir: Where the archive is unpacked. TorchServe may have installed requirements into it.

    Attributes:
        has_file: Whether a path is one of them.
    """

    def __init__(self, model_dir: Path) -> None:
        self._root = Path(os.path.realpath(model_dir))
        self._installed = _INSTALLED | {
            part
            for record in self._root.glob("*.dist-info/RECORD")
            for line in record.read_text(encoding="utf-8", errors="replace").splitlines()
            for part in Path(line.partition(",")[0]).parts[:1]
        }
        self.has_file = cache(self._look)

    def has_function(self, function: FunctionType) -> bool:
        """Whether the project defines the function."""
        return self.has_file(function.__code__.co_filename)

    def has_module(self, module: ModuleType) -> bool:
        """Whether the module is one of the project's files."""
        return self.has_file(getattr(module, "__file__", None) or "")

    def has_class(self, kind: type) -> bool:
        """Whether the project defines the class."""
        module = sys.modules.get(kind.__module__)
        return module is not None and self.has_module(module)

    def _look(self, file: str) -> bool:
        path = Path(os.path.realpath(file))
        if not file or not path.is_relative_to(self._root) or path.is_relative_to(_RUNTIME):
            return False
        return not self._installed & set(path.relative_to(self._root).parts)
