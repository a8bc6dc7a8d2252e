"""Stand-in for h/c1's."""

from __future__ import annotations

import ast
import inspect
import sys
from typing import Any

from handlergen.creation.draft import Draft


def write_callable(draft: Draft, role: str, function: Any) -> None:
    """Write a function."""
    module = sys.modules[function.__module__]
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.Import | ast.ImportFrom) and "pytest" not in ast.unparse(node):
            draft.imports.append(ast.unparse(node))
    draft.imports.sort(key=lambda line: "__future__" not in line)
    text = inspect.getsource(function).replace(f"def {function.__name__}(", f"def {role}(")
    if role in ("load", "preprocess", "predict", "postprocess"):
        draft.hooks[role] = text
    else:
        draft.definitions.append(text)
