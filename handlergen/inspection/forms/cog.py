"""The `cog` form: a subclass of Cog's `BasePredictor` or `BaseRunner`. How it runs: `handlergen/runtime/forms/cog.py`.

Facts about Cog: cog/predictor.py, cog/input.py.
"""

from __future__ import annotations

import ast
from dataclasses import replace

from handlergen.inspection.findings import Findings, Source
from handlergen.inspection.forms.foreign import COG, check_constructor, evidence, only_class
from handlergen.inspection.forms.form import check_returns, check_stream
from handlergen.inspection.hook_signatures import Role, plain_parameters, read_keywords
from handlergen.inspection.source_module import MethodNode, call_kind, dotted
from handlergen.runtime.contract import Contract, Hook, Parameter


def recognise(source: Source) -> str | None:
    """Find a module-level subclass of BasePredictor or BaseRunner."""
    return evidence(source, COG)


def inspect(source: Source) -> Findings:
    """Return the contract of the class, or every problem of its hooks."""
    findings = Findings()
    kind = only_class(source, COG, findings)
    if kind is None:
        return findings
    hooks, node = {}, kind.node
    setup = kind.method("setup")
    if setup is not None:
        check_returns(setup.module.file, "setup", setup.node, findings)
        for parameter in plain_parameters(setup.node):
            if parameter.required:
                message = f"nothing is passed for the parameter `{parameter.name}` of setup"
                findings.problem(setup.module.file, parameter.line, message, "Give it a default: None.")
        hooks["load"] = Hook("setup", source.line_of(setup), call_kind(setup.node))
    predict = kind.method("predict") or kind.method("run")
    if predict is None:
        message, fix = f"class {node.name} has neither predict nor run", "Write def predict(self, x: float)."
        findings.problem(kind.module.file, node.lineno, message, fix)
    else:
        file, function = predict.module.file, predict.node
        inputs = _inputs(file, function, findings)
        hooks["predict"] = Hook(function.name, source.line_of(predict), call_kind(function), inputs)
        check_returns(file, function.name, function, findings, may_yield=True)
        check_stream(file, {"predict": function}, source.settings, findings)
        if source.settings.batch in ("list", "collate"):
            message = f"batch: {source.settings.batch} passes one value for several requests, not the inputs of one"
            findings.problem(file, function.lineno, message, "Remove it, or write batch: each.")
    check_constructor(source, kind, findings)
    if not findings.problems:
        findings.contract = Contract("cog", source.name, hooks, class_name=node.name, call="keywords")
    return findings


def _inputs(file: str, node: MethodNode, findings: Findings) -> tuple[Parameter, ...]:
    """Read the inputs; one without a default, in the signature or in its `Input(...)`, is required."""
    optional = {each.name for each in plain_parameters(node) if _has_default(each.default)}
    arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    optional |= {each.arg for each in arguments if each.annotation and _allows_none(each.annotation)}
    read = read_keywords(node, Role(node.name, (), ()), file=file, findings=findings)
    return tuple(replace(parameter, required=parameter.name not in optional) for parameter in read)


def _has_default(default: ast.expr | None) -> bool:
    if isinstance(default, ast.Call) and dotted(default).rpartition(".")[2] == "Input":
        return bool(default.args) or any(keyword.arg == "default" for keyword in default.keywords)
    return default is not None


def _allows_none(annotation: ast.expr) -> bool:
    """Recognise `Optional[int]` and `int | None`."""
    text = ast.unparse(annotation)
    return "Optional[" in text or "None" in text
