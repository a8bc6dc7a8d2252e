"""What the tests need of Cog, which need not be installed for them: the names that cog/__init__.py has."""

from __future__ import annotations

import pathlib
from types import SimpleNamespace
from typing import Any


class FieldInfo(SimpleNamespace):
    pass


def Input(default: Any = None, **limits: Any) -> Any:
    return FieldInfo(default=default, **limits)


class BaseRunner:
    pass


class BasePredictor(BaseRunner):
    pass


class Path(pathlib.PosixPath):
    pass
