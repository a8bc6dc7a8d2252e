"""The `model-class` form: Truss's `class Model` with `predict`, alone in a file or in a Truss directory.

How it is called at run time: `handlergen/runtime/forms/model_class.py`. Facts about Truss:
truss/templates/server/model_wrapper.py.
"""

from __future__ import annotations

import ast
import difflib

from handlergen.errors import Problem
from handlergen.inspection.findings import Findings, Source
from handlergen.inspection.forms.foreign import system_of
from handlergen.inspection.forms.form import (
    check_request,
    check_returns,
    check_stream,
    defines_model,
    method_lines,
    misspelt,
    yields,
)
from handlergen.inspection.hook_signatures import SourceParameter, plain_parameters
from handlergen.inspection.source_module import MethodNode, SourceModule, call_kind, dotted, full_name
from handlergen.inspection.source_tree import FoundMethod, UserClass
from handlergen.runtime.contract import Contract, Hook, Parameter

ARGUMENTS = ("config", "data_dir", "secrets", "environment", "lazy_data_resolver")
"""Parameters that a constructor may have."""

_DATA = {"preprocess": "data", "predict": "inputs", "postprocess": "outputs"}
"""What the data parameter of each hook receives."""

_ONCE = ("load", "is_healthy")
_UNSUPPORTED_ENDPOINTS = ("completions", "chat_completions", "websocket")
"""Endpoints of Truss's server that TorchServe does not have."""


def recognise(source: Source) -> str | None:
    """Find a class with the wanted name that has `predict`, its own or inherited.

    An imported one counts only where the source defines nothing to serve.
    """
    kind = source.tree.find_class(source.module, source.class_name)
    if kind is None or not kind.method("predict") or (kind.module is not source.module and defines_model(source)):
        return None
    if system_of(kind):
        return None
    return f"class {kind.name} with predict, {source.place_of(kind)}"


def inspect(source: Source) -> Findings:
    """Return the contract of the class, or every problem of its constructor and its hooks."""
    findings = Findings()
    kind = source.tree.find_class(source.module, source.class_name)
    if kind is None:
        findings.problems.append(_no_class(source))
        return findings
    roles = ("load", *_DATA, "is_healthy")
    methods = {role: found for role in roles if (found := kind.method(role))}
    hooks = {
        role: (_once if role in _ONCE else _hook)(source, found, role, findings) for role, found in methods.items()
    }
    foreign = [name for name in kind.foreign if name.partition(".")[0] not in ("object", "abc", "typing")]
    if "predict" not in hooks:
        findings.problems.append(_no_predict(kind, foreign))
    else:
        if foreign:
            names = ", ".join(foreign)
            message = "which handlergen does not read: hooks that are defined there are not called"
            findings.warn(kind.module.file, kind.node.lineno, f"{kind.name} inherits from {names}, {message}")
        _check_predict(source, hooks, findings)
    _check_constructor(kind, findings)
    if "predict" in methods:
        nodes = {role: found.node for role, found in methods.items()}
        check_stream(methods["predict"].module.file, nodes, source.settings, findings)
    for name in _UNSUPPORTED_ENDPOINTS:
        if "predict" in hooks and (endpoint := kind.method(name)):
            message = f"{name} is not served: TorchServe has no such endpoint"
            findings.warn(endpoint.module.file, endpoint.node.lineno, message)
    findings.warnings += misspelt(kind.module.file, method_lines(kind.node), (*_ONCE, *_DATA), hooks)
    if not findings.problems:
        details = dict(source.details)
        findings.contract = Contract("model-class", source.name, hooks, class_name=kind.name, details=details)
    return findings


def _hook(source: Source, found: FoundMethod, role: str, findings: Findings) -> Hook:
    node, module = found.node, found.module
    check_returns(module.file, role, node, findings, may_yield=True)
    return Hook(role, source.line_of(found), call_kind(node), _parameters(module, node, role, findings))


def _parameters(module: SourceModule, node: MethodNode, role: str, findings: Findings) -> tuple[Parameter, ...]:
    """Read the data parameter, and perhaps a second one annotated `Request`; their names do not matter."""
    given = list(plain_parameters(node))
    args = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    annotated = {arg.arg for arg in args if arg.annotation and _is_request(module, arg.annotation)}
    wrong = _wrong_parameters(node, given, role, annotated)
    if wrong is not None:
        line, message, fix = wrong
        wanted = f"Write def {role}(self, {_DATA[role]}), or def {role}(self, {_DATA[role]}, request: Request)."
        findings.problem(module.file, line, message, f"{fix} {wanted}".strip())
        return ()
    return tuple(
        Parameter(
            each.name, "http_request" if each.name in annotated else _DATA[role], each.keyword_only, each.required
        )
        for each in given
    )


def _wrong_parameters(  # noqa: PLR0911 - one return a way to be wrong
    node: MethodNode, given: list[SourceParameter], role: str, annotated: set[str]
) -> tuple[int, str, str] | None:
    """Return line, message and the first part of the fix; None if the parameters can be passed."""
    variadic = node.args.vararg or node.args.kwarg
    if variadic:
        star = "*" if node.args.vararg else "**"
        return variadic.lineno, f"{role} takes `{star}{variadic.arg}`, which does not say what to pass", ""
    if not given:
        return node.lineno, f"{role} has no parameter for the data besides self", ""
    if len(given) > 2:
        message = f"{role} has more than two parameters: nothing is passed for `{given[2].name}`"
        return given[2].line, message, ""
    first = given[0]
    if len(given) == 1:
        if role == "postprocess" and first.name in annotated:
            return first.line, "postprocess takes only the request: what predict returned would be lost", ""
        return None
    second = given[1]
    if first.name in annotated:
        return first.line, f"the request must come second, after the data, in {role}", ""
    if second.name not in annotated:
        message = f"the second parameter of {role}, `{second.name}`, is not annotated Request"
        return second.line, message, f"If it is the request: `{second.name}: Request`; if not, remove it."
    return None


def _is_request(module: SourceModule, annotation: ast.expr) -> bool:
    """Recognise `Request`, `starlette.requests.Request`, `"Request"`, `Request | None`, `Optional[Request]`."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        try:
            return _is_request(module, ast.parse(annotation.value, mode="eval").body)
        except SyntaxError:
            return False
    if isinstance(annotation, ast.BinOp):
        return _is_request(module, annotation.left) or _is_request(module, annotation.right)
    if isinstance(annotation, ast.Subscript):
        inner = annotation.slice
        return dotted(annotation.value).rpartition(".")[2] in ("Optional", "Annotated", "Union") and any(
            _is_request(module, item) for item in (inner.elts if isinstance(inner, ast.Tuple) else [inner])
        )
    name = dotted(annotation)
    return bool(name) and full_name(module, name).rpartition(".")[2] == "Request"


def _once(source: Source, found: FoundMethod, role: str, findings: Findings) -> Hook:
    """Read `load` or `is_healthy`, which take nothing besides self."""
    node, file = found.node, found.module.file
    for parameter in plain_parameters(node):
        if parameter.required:
            message = f"nothing is passed for the parameter `{parameter.name}` of {role}"
            fix = f"Write def {role}(self); the constructor receives {', '.join(ARGUMENTS)}."
            findings.problem(file, parameter.line, message, fix)
    if yields(node):
        findings.problem(file, node.lineno, f"{role} is a generator", "Remove the yield.")
    return Hook(role, source.line_of(found), call_kind(node), ())


def _check_constructor(kind: UserClass, findings: Findings) -> None:
    """Check that the constructor's parameters are ones that Truss passes, by keyword, to those that name them."""
    method = kind.method("__init__")
    for parameter in plain_parameters(method.node) if method else ():
        file, known = method.module.file if method else "", parameter.name in ARGUMENTS
        if known and parameter.positional_only:
            message = f"`{parameter.name}` of {kind.name} is positional-only, but it is passed by keyword"
            findings.problem(file, parameter.line, message, "Remove the `/`.")
        elif not known and parameter.required:
            near = difflib.get_close_matches(parameter.name, ARGUMENTS, n=1, cutoff=0.6)
            fix = f"Did you mean `{near[0]}`?" if near else "Give it a default, or read it from config."
            message = f"nothing is passed for the parameter `{parameter.name}` of {kind.name}"
            fix = f"It may take {', '.join(ARGUMENTS)}, or **kwargs for all of them. {fix}"
            findings.problem(file, parameter.line, message, fix)


def _check_predict(source: Source, hooks: dict[str, Hook], findings: Findings) -> None:
    """Check the request parameter of predict against preprocess and the setting `batch`."""
    file, predict = source.module.file, hooks["predict"]
    takes = {parameter.source for parameter in predict.parameters}
    if "preprocess" in hooks and takes == {"http_request"}:
        message = "predict takes only the request: what preprocess returned would be lost"
        findings.problem(file, predict.line, message, "Write def predict(self, inputs, request: Request).")
    check_request(file, predict, source.settings, findings, source="http_request", asks="takes a Request")


def _no_class(source: Source) -> Problem:
    file, wanted = source.module.file, source.class_name
    binding = source.module.bindings.get(wanted)
    if binding is not None:
        message = f"`{wanted}` is not defined by a class statement in this project, so that it cannot be read"
        return Problem(file, binding.line, message, f"Write class {wanted} in this file.")
    kinds = [kind for kind in source.tree.classes(source.module) if kind.method("predict")]
    fix = f"Write class {wanted} with def predict(self, inputs)."
    if len(kinds) == 1:
        fix = f"Is {kinds[0].name}, line {kinds[0].node.lineno}, meant to be it? Rename it to {wanted}."
    return Problem(file, 0, f"there is no class {wanted}", fix)


def _no_predict(kind: UserClass, foreign: list[str]) -> Problem:
    websocket = kind.method("websocket")
    if websocket:
        message = "the class has websocket instead of predict, but TorchServe has no WebSocket endpoint"
        return Problem(websocket.module.file, websocket.node.lineno, message, "Write def predict(self, inputs).")
    fix = "Write def predict(self, inputs)."
    if foreign:
        names = ", ".join(foreign)
        fix = f"handlergen does not read {names}: write def predict(self, inputs) here, and call the inherited one."
    return Problem(kind.module.file, kind.node.lineno, f"class {kind.name} has no predict", fix)
