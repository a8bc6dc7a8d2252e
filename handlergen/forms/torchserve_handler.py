"""A module that is a TorchServe handler already: refused, with the command that archives it as it is."""

from __future__ import annotations

import ast
import shlex

from handlergen.errors import Problem
from handlergen.findings import Findings, Source
from handlergen.forms.form import Form
from handlergen.source_module import base_names

_CONTEXT_NAMES = ("context", "ctx", "_context", "_ctx", "_")


def recognise(source: Source) -> str | None:
    """A subclass of a handler of TorchServe's, or a module-level `handle(data, context)`.

    TorchServe looks for a function `handle` first (ts/model_loader.py).
    """
    for node in source.module.classes():
        for base in base_names(source.module, node):
            if base.startswith("ts.torch_handler") or base.rpartition(".")[2] == "BaseHandler":
                return f"class {node.name}, line {node.lineno}, extends {base.rpartition('.')[2]}"
    binding = source.module.bindings.get("handle")
    if binding and isinstance(binding.node, ast.FunctionDef | ast.AsyncFunctionDef):
        names = [arg.arg for arg in (*binding.node.args.posonlyargs, *binding.node.args.args)]
        if len(names) == 2 and (names[1] in _CONTEXT_NAMES or "predict" not in source.module.bindings):
            return f"handle({', '.join(names)}), line {binding.line}"
    return None


def inspect(source: Source) -> Findings:
    """One problem that says how to archive the module without handlergen."""
    evidence = recognise(source)
    settings = source.settings
    command = [
        "torch-model-archiver",
        *("--model-name", settings.name or source.name, "--version", settings.version),
        *("--handler", source.module.file, "--export-path", "model-store"),
    ]
    if settings.weights:
        command += ["--serialized-file", settings.weights]
    if settings.extra_files:
        command += ["--extra-files", ",".join(settings.extra_files)]
    return Findings(
        problems=[
            Problem(
                source.module.file,
                0,
                f"this is a TorchServe handler already ({evidence}); it needs no other around it",
                f"Archive it as it is: {shlex.join(command)}",
            )
        ]
    )


FORM = Form("torchserve-handler", recognise, inspect)
