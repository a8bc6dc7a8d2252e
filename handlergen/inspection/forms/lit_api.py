"""The `lit-api` form: a subclass of LitServe's `LitAPI`. How it runs: `handlergen/runtime/forms/lit_api.py`.

Facts about LitServe: litserve/api.py, litserve/loops/simple_loops.py.
"""

from __future__ import annotations

import ast

from handlergen.inspection.findings import Findings, Source
from handlergen.inspection.forms.foreign import LITSERVE, check_constructor, evidence, only_class
from handlergen.inspection.forms.form import check_returns, check_stream, method_lines, misspelt, yields
from handlergen.inspection.hook_signatures import plain_parameters
from handlergen.inspection.source_module import (
    call_kind,
    dotted,
    full_name,
    statements_at_import,
)
from handlergen.inspection.source_tree import FoundMethod
from handlergen.runtime.contract import Contract, Hook, Parameter

HOOKS = {
    "setup": ("load", "device"),
    "decode_request": ("preprocess", "data"),
    "batch": ("collate", "inputs"),
    "predict": ("predict", "inputs"),
    "unbatch": ("unbatch", "outputs"),
    "encode_response": ("postprocess", "outputs"),
}
"""LitAPI's methods, each with its role here and what its first parameter receives."""


def recognise(source: Source) -> str | None:
    """Find a module-level subclass of LitAPI."""
    return evidence(source, LITSERVE)


def inspect(source: Source) -> Findings:
    """Return the contract of the class, or every problem of its constructor and its hooks."""
    findings = Findings()
    kind = only_class(source, LITSERVE, findings)
    if kind is None:
        return findings
    node, file = kind.node, kind.module.file
    found = {name: method for name in HOOKS if (method := kind.method(name))}
    methods = {name: method.node for name, method in found.items()}
    hooks = {HOOKS[name][0]: _hook(source, name, method, findings) for name, method in found.items()}
    batched = _check_server(source, node, findings) or "batch" in methods or "unbatch" in methods
    predict = methods.get("predict")
    if predict is None:
        findings.problem(file, node.lineno, f"class {node.name} has no predict", "Write def predict(self, x).")
    elif batched and call_kind(predict) != "sync":
        message = "predict takes a batch, and is async or a generator"
        fix = "Return the list of its answers, or remove batch, unbatch and max_batch_size."
        findings.problem(file, predict.lineno, message, fix)
    elif batched and source.settings.batch == "auto":
        message = "predict takes a batch, which has one request. Write batch: list to have several."
        findings.warn(file, predict.lineno, message)
    check_constructor(source, kind, findings)
    check_stream(file, {"predict": predict} if predict else {}, source.settings, findings)
    findings.warnings += misspelt(file, method_lines(node), HOOKS, methods)
    streams = [name for name in ("predict", "encode_response") if name in methods and yields(methods[name])]
    if streams and "postprocess" in hooks:  # it takes the generator that predict returned
        hooks["encode"] = hooks.pop("postprocess")
    if not findings.problems:
        details = {"batched": batched}
        findings.contract = Contract("lit-api", source.name, hooks, class_name=node.name, details=details)
    return findings


def _hook(source: Source, name: str, found: FoundMethod, findings: Findings) -> Hook:
    node, file = found.node, found.module.file
    check_returns(file, name, node, findings, may_yield=name in ("predict", "encode_response"))
    passed: list[Parameter] = []
    for each in plain_parameters(node):
        if each.name == "context" and name != "setup":  # LitServe passes it by that name
            passed.append(Parameter(each.name, "metadata", keyword_only=True))
        elif not passed and not each.keyword_only:
            passed.append(Parameter(each.name, HOOKS[name][1]))
        elif each.required:
            message = f"nothing is passed for the parameter `{each.name}` of {name}"
            findings.problem(file, each.line, message, "Give it a default, or remove it.")
    if not any(each.source == HOOKS[name][1] for each in passed) and node.args.vararg is None:
        fix = f"Write def {name}(self, {HOOKS[name][1]})."
        findings.problem(file, node.lineno, f"{name} takes no {HOOKS[name][1]}", fix)
    return Hook(name, source.line_of(found), call_kind(node), tuple(passed))


def _check_server(source: Source, node: ast.ClassDef, findings: Findings) -> bool:
    """Check what the module tells LitServe's server; return whether predict takes batches (`max_batch_size`)."""
    file, batched = source.module.file, False
    for statement in statements_at_import(source.module.tree.body):
        run = statement.value if isinstance(statement, ast.Expr) else None
        if not isinstance(run, ast.Call) or not isinstance(run.func, ast.Attribute) or run.func.attr != "run":
            continue
        server = dotted(run.func.value)
        made = source.module.bindings.get(server)
        maker = full_name(source.module, dotted(made.node) if made else server)
        if maker.startswith("litserve.") and maker.endswith(".LitServer"):
            fix = 'Write it below if __name__ == "__main__":, which the worker does not run.'
            findings.problem(file, run.lineno, "the module starts LitServe's server when it is imported", fix)
    for call in ast.walk(source.module.tree):
        name = dotted(call.func).rpartition(".")[2] if isinstance(call, ast.Call) else ""
        if not isinstance(call, ast.Call) or (name not in (node.name, "LitServer") and "super" not in dotted(call)):
            continue
        for keyword in call.keywords:
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else ...
            batched |= keyword.arg == "max_batch_size" and value != 1
            if keyword.arg in ("spec", "mcp") and value is not None:
                message = f"{keyword.arg}= has no effect: requests have the model's own format"
                findings.warn(file, call.lineno, message)
    return batched
