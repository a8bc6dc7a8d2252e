"""A `torch.nn.Module` that carries its own `preprocess` or `postprocess`. Recognised; not supported yet."""

from __future__ import annotations

import ast

from handlergen.findings import Source
from handlergen.forms.form import not_supported
from handlergen.source_module import base_names

_MODULES = ("torch.nn.Module", "torch.nn.modules.Module", "torch.nn.modules.module.Module", "nn.Module")


def recognise(source: Source) -> str | None:
    """A module-level subclass of nn.Module that defines `preprocess` or `postprocess`."""
    for node in source.module.classes():
        own = [
            item.name
            for item in node.body
            if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)
            and item.name in ("preprocess", "postprocess")
        ]
        if own and not base_names(source.module, node).isdisjoint(_MODULES):
            return f"class {node.name}, an nn.Module with {' and '.join(own)}, line {node.lineno}"
    return None


FORM = not_supported("module", recognise)
