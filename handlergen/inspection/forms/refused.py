"""Sources that are refused: TorchServe handlers, and sources of no form with a guess at what was meant."""

from __future__ import annotations

import ast
import shlex
from collections.abc import Iterator

from handlergen.errors import Problem
from handlergen.inspection.findings import Source
from handlergen.inspection.forms import sagemaker
from handlergen.inspection.forms.form import method_lines, near_names, rename
from handlergen.inspection.forms.module import OWN_HOOKS, is_module

_CONTEXT_NAMES = ("context", "ctx", "_context", "_ctx", "_")


def torchserve_handler(source: Source) -> Problem | None:
    """Return the problem of a source that is a TorchServe handler; it gives the command that archives it as it is."""
    evidence = _handler(source)
    if evidence is None:
        return None
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
    message = f"this is already a TorchServe handler ({evidence}), which needs no generated one"
    return Problem(source.module.file, 0, message, f"Archive it as it is: {shlex.join(command)}")


def _handler(source: Source) -> str | None:
    """Return the evidence: a subclass of a TorchServe handler, or a module-level `handle(data, context)`.

    TorchServe looks for a function `handle` first (ts/model_loader.py).
    """
    for kind in source.tree.classes(source.module):
        for base in kind.foreign:
            if base.startswith("ts.torch_handler") or base.rpartition(".")[2] == "BaseHandler":
                return f"class {kind.name}, line {kind.node.lineno}, extends {base.rpartition('.')[2]}"
    binding = source.module.bindings.get("handle")
    if binding and isinstance(binding.node, ast.FunctionDef | ast.AsyncFunctionDef):
        names = [arg.arg for arg in (*binding.node.args.posonlyargs, *binding.node.args.args)]
        if len(names) == 2 and (names[1] in _CONTEXT_NAMES or "predict" not in source.module.bindings):
            return f"handle({', '.join(names)}), line {binding.line}"
    return None


def nearest_form(source: Source) -> Problem | None:
    """Return what keeps a source of no form from being the form it resembles; None if it resembles none."""
    line, what, fix = next(_resembles(source), (0, "", ""))
    return Problem(source.module.file, line, what, fix) if what else None


def _resembles(source: Source) -> Iterator[tuple[int, str, str]]:
    """Yield line, message and fix for each form that the source resembles, the most telling first."""
    absent, wanted = "there is no module-level predict, and", source.class_name
    for name, binding in source.module.bindings.items():
        if name != "FLOW" and name.upper() == "FLOW":
            yield binding.line, f"{absent} `{name}` is not FLOW", f"If it is a flow, rename {name} to FLOW."
    lines = source.module.function_lines()
    for name, function in near_names(lines, sagemaker.FUNCTIONS, ()):
        what = f"{absent} `{name}` is not one of SageMaker's functions"
        yield lines[name], what, f"If it is meant to be {function}, rename it."
    kinds = source.tree.classes(source.module)
    for kind in kinds:
        line = kind.node.lineno
        if kind.method("predict"):
            what = f"{absent} a class that has one must be called {wanted}"
            yield line, what, f"Rename {kind.name} to {wanted}."
        elif kind.name == wanted and not is_module(kind):
            fix = rename(method_lines(kind.node), "predict") or "Write def predict(self, inputs)."
            yield line, f"class {wanted} has no predict", fix
    for kind in kinds:
        line, name, bases = kind.node.lineno, kind.name, [base for base in kind.foreign if base != "abc.ABC"]
        if is_module(kind):
            fix = f"Write def postprocess(self, output) in {name}, or def predict(inputs, model) beside it and "
            fix += f"def load(context) that returns a {name}."
            yield line, f"{absent} {name} has no preprocess or postprocess of its own", fix
        elif bases and any(map(kind.method, OWN_HOOKS)):
            what = f"the source does not show whether {name} is an nn.Module: it inherits from {' and '.join(bases)}, "
            fix = f"If it is one, write class {name}({', '.join(map(ast.unparse, kind.node.bases))}, nn.Module)."
            yield line, f"{what}not defined in this project", fix
