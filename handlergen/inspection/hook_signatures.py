"""A hook's parameters: which argument the runtime passes to each, and warnings about hooks that are replaced.

A decorator, or a definition in another branch of an `if`, may put a function with other parameters in a hook's place.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from handlergen.errors import Problem
from handlergen.inspection.findings import Findings, Source
from handlergen.inspection.source_module import (
    Function,
    MethodNode,
    call_kind,
    decorators,
    definitions,
    dotted,
    full_name,
)
from handlergen.inspection.source_tree import Found, SourceTree
from handlergen.runtime.contract import NAMED_PARAMETERS, Contract, Hook, Parameter

_SHORT_FOR = {"ctx": "context", "cntx": "context", "req": "request", "dev": "device", "mdl": "model"}
"""Abbreviations of the named parameters, too far from them to be found by spelling."""

_OF_CONTEXT = {
    **dict.fromkeys(("model_dir", "model_path", "dir", "path", "directory", "weights"), "model_dir"),
    **dict.fromkeys(("config", "cfg", "settings"), "config"),
    "secrets": "secrets",
    "logger": "logger",
}
"""Names that other systems give the only parameter of load, each with the attribute of the context that it means."""


@dataclass(frozen=True)
class Role:
    """The parameters that a hook may have.

    Attributes:
        name: The hook's name.
        order: What its positional parameters receive, in this order, whatever their names.
        named: What it may ask for by parameter name.
        takes: The first of `order` for messages; empty if the hook does not have to take it.
        unavailable: Named parameters it cannot ask for, each with the reason.
        instead: What to write instead of more positional parameters.
    """

    name: str
    order: tuple[str, ...]
    named: tuple[str, ...] = NAMED_PARAMETERS
    takes: str = ""
    unavailable: Mapping[str, str] = field(default_factory=dict)
    instead: str = "Remove it."

    @property
    def allowed(self) -> str:
        """Return `data, files and, by name, context, model, device, request`, for messages."""
        by_name = [name for name in self.named if name not in self.order]
        return ", ".join(self.order) + (f" and, by name, {', '.join(by_name)}" if by_name else "")


@dataclass(frozen=True)
class SourceParameter:
    """One parameter of a function, as written in the source."""

    name: str
    line: int
    keyword_only: bool
    positional_only: bool
    default: ast.expr | None

    @property
    def required(self) -> bool:
        return self.default is None


def plain_parameters(node: Function) -> Iterator[SourceParameter]:
    """Yield the parameters in the order of the source, without `*args` and `**kwargs`."""
    args = node.args
    positional = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(positional) - len(args.defaults)) + list(args.defaults)
    for index, (arg, default) in enumerate(zip(positional, defaults, strict=True)):
        yield SourceParameter(arg.arg, arg.lineno, False, index < len(args.posonlyargs), default)
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        yield SourceParameter(arg.arg, arg.lineno, True, False, default)


def read_signature(node: Function, role: Role, *, file: str, findings: Findings) -> tuple[Parameter, ...]:
    """Assign an argument to every parameter of a hook; `file` is the name of its file, for messages."""
    before = len(findings.problems)
    _check_variadic(node, role, file, findings, wanted=role.allowed)
    parameters = []
    waiting = list(role.order)
    positional = 0
    for parameter in plain_parameters(node):
        name, source = parameter.name, parameter.name
        if name in role.unavailable:
            message = f"{role.name} cannot ask for `{name}`: {role.unavailable[name]}"
            findings.problem(file, parameter.line, message, f"It may take {role.allowed}.")
            continue
        if name in role.named:
            if name in waiting:  # setup(context): the name means what the position would
                waiting.remove(name)
        else:
            positional += 1
            if not parameter.keyword_only and waiting:
                source = waiting.pop(0)
            elif parameter.keyword_only and name in waiting:
                waiting.remove(name)
            else:
                _report_surplus(parameter, role, positional, file, findings)
                continue
            _check_name(parameter, role, source, file, findings)
        parameters.append(Parameter(name, source, parameter.keyword_only, parameter.required))
    if role.takes and len(findings.problems) == before and role.order[0] in waiting:
        if role.name == "preprocess" and any(parameter.source == "request" for parameter in parameters):
            message = "preprocess takes `request` (headers, path, id) but not the data of the request"
            advice = "If it needs the data, write def preprocess(data, request)."
            findings.warn(file, node.lineno, f"{message}. {advice}")
        else:
            names = ", ".join([role.order[0], *(parameter.name for parameter in parameters)])
            fix = f"Write def {role.name}({names}); it may take {role.allowed}."
            findings.problem(file, node.lineno, f"{role.name} takes no {role.takes}", fix)
    return tuple(parameters)


def read_keywords(node: Function, role: Role, *, file: str, findings: Findings) -> tuple[Parameter, ...]:
    """Read the parameters of a `predict` that takes the keys of a JSON object as arguments (`call: keywords`)."""
    before = len(findings.problems)
    _check_variadic(node, role, file, findings, wanted="one parameter for each key of the JSON object")
    parameters = []
    for parameter in plain_parameters(node):
        name = parameter.name
        if parameter.positional_only:
            message = f"arguments are passed to {role.name} by keyword, but `{name}` is positional-only"
            findings.problem(file, parameter.line, message, "Remove the `/`.")
        source = name if name in role.named else "key"
        parameters.append(Parameter(name, source, parameter.keyword_only, parameter.required))
    if len(findings.problems) == before and not any(parameter.source == "key" for parameter in parameters):
        message = f"{role.name} takes no key of the JSON object"
        findings.problem(file, node.lineno, message, "Write one parameter for each key.")
    return tuple(parameters)


def _check_variadic(node: Function, role: Role, file: str, findings: Findings, *, wanted: str) -> None:
    for star, arg in (("*", node.args.vararg), ("**", node.args.kwarg)):
        if arg is not None:
            message = f"{role.name} takes `{star}{arg.arg}`, which does not say what to pass"
            findings.problem(file, arg.lineno, message, f"Write the parameters out: {wanted}.")


def _report_surplus(parameter: SourceParameter, role: Role, positional: int, file: str, findings: Findings) -> None:
    near = difflib.get_close_matches(parameter.name, role.named, n=1, cutoff=0.6)
    if near:
        fix = f"Did you mean `{near[0]}`?"
    elif parameter.default is not None:
        fix = "Make it a constant of the module, or read it from context.config."
    elif parameter.keyword_only:
        fix = f"Remove the `*`, or take one of these by name: {', '.join(role.named)}."
    else:
        fix = role.instead
    count = len(role.order) if len(role.order) > 1 else "one"
    reason = f"it is positional parameter {positional}, but {role.name} receives only {count}"
    if parameter.keyword_only:
        reason = "it is keyword-only, and no argument has that name"
    message = f"nothing is passed for the parameter `{parameter.name}` of {role.name}: {reason}"
    findings.problem(file, parameter.line, message, f"It may take {role.allowed}. {fix}")


def _check_name(parameter: SourceParameter, role: Role, source: str, file: str, findings: Findings) -> None:
    """Check a positional parameter for a name or a default that shows that the author expects another value."""
    name, default = parameter.name, parameter.default
    receives = f"`{name}` of {role.name} receives {_DESCRIPTIONS[source]}"
    own = default is not None and not (isinstance(default, ast.Constant) and default.value is None)
    if default is not None and own and name != source:  # 224, say: a value of the author's own, not the request's files
        message = f"{receives}, never its default {ast.unparse(default)}"
        fix = "If it is a value of your own, make it a constant of the module or read it from context.config; "
        findings.problem(file, parameter.line, message, f"{fix}if not, name it `{source}`.")
        return
    # `data`, `inputs` and `input_data` are common names for any input; `files` and `outputs` are not.
    telling = ("files", "outputs") if source != "files" else role.order
    short = _SHORT_FOR.get(name.strip("_"))
    near = [short] if short else difflib.get_close_matches(name, role.named, n=1, cutoff=0.85)
    if name in _DESCRIPTIONS and name in telling and name != source:
        order = ", ".join(role.order)
        findings.warn(file, parameter.line, f"{receives}: arguments are passed by position ({order})")
    elif near and near[0] != source:
        findings.warn(file, parameter.line, f"{receives}. Did you mean `{near[0]}`?")
    elif source == "context" and name in _OF_CONTEXT:
        findings.warn(file, parameter.line, f"{receives}. Did you mean context.{_OF_CONTEXT[name]}?")


_DESCRIPTIONS = {
    "data": "the request's data",
    "files": "the request's files",
    "inputs": "what preprocess returned",
    "outputs": "what predict returned",
    "input_data": "the request's data",
    "samples": "a list of what preprocess returned",
    "context": "the context",
}
"""What positional parameters receive, for messages."""


def replaced_hooks(source: Source, contract: Contract) -> list[str]:
    """Return a warning for each hook of a contract that a function with other parameters may replace at run time."""
    warnings: list[str] = []
    for hook in contract.hooks.values():
        found = _found(source, hook)
        if found is not None:
            by_name = contract.call == "keywords" and hook.name == "predict"
            warnings += _defined_several_times(found, by_name=by_name)
            warnings += _decorated(source.tree, found, by_name=by_name)
    return warnings


def _found(source: Source, hook: Hook) -> Found | None:
    """Return the definition of a hook; None for a lambda."""
    for node in ast.walk(source.module.tree):
        if isinstance(node, MethodNode) and (node.name, node.lineno) == (hook.name, hook.line):
            return Found(node, source.module)
    found = source.tree.function(source.module, hook.name)
    if isinstance(found, Found) and isinstance(found.node, MethodNode) and hook.line in (0, found.node.lineno):
        return found  # imported, or under another name
    return None


def _defined_several_times(found: Found, *, by_name: bool) -> Iterator[str]:
    """Warn of definitions in the branches of an `if` or a `try` whose parameters differ."""
    assert isinstance(found.node, MethodNode)
    every = definitions(found.module, found.node.name)
    if found.node in every and len({(call_kind(node), *_shape(node, by_name=by_name)) for node in every}) > 1:
        lines = ", ".join(str(line) for line in sorted(node.lineno for node in every))
        place, often = f"{found.module.file}:{found.node.lineno}", f"{len(every)} times (lines {lines})"
        advice = "This one is read, whichever runs: give all the same parameters."
        yield f"{place}: {found.node.name} is defined {often}, with different parameters. {advice}"


def _decorated(tree: SourceTree, found: Found, *, by_name: bool) -> Iterator[str]:
    """Warn of the project's decorators that put a function with other parameters in the hook's place."""
    assert isinstance(found.node, MethodNode)
    for decorator in decorators(found.node):
        wrapped, wrapper = _decorator(tree, found, decorator) or ("", None)
        if wrapper is None or _can_replace(found.node, wrapper, wrapped, by_name=by_name):
            continue
        name, parameters = found.node.name, ast.unparse(found.node.args)
        place, own = f"{found.module.file}:{found.node.lineno}", ast.unparse(wrapper.args)
        does = f"calls {name}({parameters}) with arguments of its own, and takes ({own}) itself"
        advice = "The runtime passes the arguments of the def: "
        advice += f"write an undecorated {name} that calls the decorated function."
        yield f"{place}: @{dotted(decorator)} {does}. {advice}"


def _decorator(tree: SourceTree, found: Found, decorator: ast.expr) -> tuple[str, Function] | None:
    """Return a decorator's name for what it decorates, and the function that replaces it; None if that is not clear."""
    maker = _resolved(tree, found, dotted(decorator))
    if isinstance(decorator, ast.Call) and maker is not None:
        maker = _returned(maker)
    if maker is None:
        return None
    wrapper = _returned(maker)
    parameters = list(plain_parameters(maker))
    return (parameters[0].name, wrapper) if wrapper is not None and parameters else None


def _resolved(tree: SourceTree, found: Found, name: str) -> Function | None:
    before, _, last = name.rpartition(".")
    module = found.module
    if before:
        path = tree.importable(tuple(full_name(module, before).split(".")), beside=module.path.parent)
        opened = tree.open(path) if path is not None else None
        if opened is None or isinstance(opened, Problem):
            return None
        module = opened
    function = tree.function(module, last)
    return function.node if isinstance(function, Found) else None


def _returned(function: Function) -> Function | None:
    """Return the inner function that a function returns."""
    if isinstance(function, ast.Lambda):
        return function.body if isinstance(function.body, ast.Lambda) else None
    inside = {node.name: node for node in function.body if isinstance(node, MethodNode)}
    for node in function.body:
        if isinstance(node, ast.Return):
            if isinstance(node.value, ast.Lambda):
                return node.value
            return inside.get(node.value.id) if isinstance(node.value, ast.Name) else None
    return None


def _can_replace(hook: Function, wrapper: Function, wrapped: str, *, by_name: bool) -> bool:
    """Return whether the wrapper can be called as the hook is."""
    if wrapper.args.vararg is None and wrapper.args.kwarg is None:
        return _shape(hook, by_name=by_name) == _shape(wrapper, by_name=by_name)
    own = {parameter.name for parameter in plain_parameters(wrapper)}
    calls = (node for node in ast.walk(wrapper) if isinstance(node, ast.Call) and dotted(node.func) == wrapped)
    return not any(_adds(call, own) for call in calls)


def _shape(function: Function, *, by_name: bool) -> list[str]:
    """Return what a caller must know of the parameters: the name of each; "" for one that is passed by position."""
    return [
        parameter.name if by_name or parameter.keyword_only or parameter.name in NAMED_PARAMETERS else ""
        for parameter in plain_parameters(function)
    ]


def _adds(call: ast.Call, own: set[str]) -> bool:
    """Return whether a call passes on all arguments of its function, and others besides."""
    stars: list[ast.AST] = [argument for argument in call.args if isinstance(argument, ast.Starred)]
    stars += [keyword for keyword in call.keywords if keyword.arg is None]
    values = [argument for argument in call.args if not isinstance(argument, ast.Starred)]
    values += [keyword.value for keyword in call.keywords if keyword.arg is not None]
    return bool(stars) and any(not (isinstance(value, ast.Name) and value.id in own) for value in values)
