"""`class Model` with `predict`: Truss. Recognised; not supported yet."""

from __future__ import annotations

import ast

from handlergen.findings import Source
from handlergen.forms.form import not_supported


def recognise(source: Source) -> str | None:
    """A module-level class `Model` that defines `predict`."""
    for node in source.module.classes():
        if node.name == "Model" and any(
            isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) and item.name == "predict"
            for item in node.body
        ):
            return f"class Model with predict, line {node.lineno}"
    return None


FORM = not_supported("model-class", recognise)
