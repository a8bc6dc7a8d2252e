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
from handlergen.inspection.source_module import MethodNode, call_kind, dotted, find_method
from handlergen.runtime.contract import Contract, Hook, Parameter


def recognise(source: Source) -> str | None:
    """Find a module-level subclass of BasePredictor or BaseRunner."""
    return evidence(source, COG)


def inspect(source: Source) -> Findings:
    """Return the contract of the class, or every problem of its hooks."""
    findings = Findings()
    node = only_class(source, COG, findings)
    if node is None:
        return findings
    file, module = source.module.file, source.module
    hooks = {}
    setup = find_method(module, node, "setup")
    if setup is not None:
        check_returns(file, "setup", setup, findings)
        for parameter in plain_parameters(setup):
            if parameter.required:
                message = f"nothing is passed for the parameter `{parameter.name}` of setup"
                findings.problem(file, parameter.line, message, "Give it a default: None.")
        hooks["load"] = Hook("setup", setup.lineno, call_kind(setup))
    predict = find_method(module, node, "predict") or find_method(module, node, "run")
    if predict is None:
        message = f"class {node.name} has neither predict nor run"
        findings.problem(file, node.lineno, message, "Write def predict(self, x: float), with an input for each key.")
    else:
        hooks["predict"] = Hook(predict.name, predict.lineno, call_kind(predict), _inputs(file, predict, findings))
        check_returns(file, predict.name, predict, findings, may_yield=True)
        check_stream(file, {"predict": predict}, source.settings, findings)
        if source.settings.batch in ("list", "collate"):
            message = f"batch: {source.settings.batch} passes one value for several requests, not the inputs of one"
            findings.problem(file, predict.lineno, message, "Remove it, or write batch: each.")
    check_constructor(source, node, findings)
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
