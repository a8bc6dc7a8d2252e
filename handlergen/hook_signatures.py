"""A hook's parameters: which argument the runtime passes to each, and warnings about hooks that are replaced.

A decorator, or a definition in another branch of an `if`, may put a function with other parameters in a hook's place.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from handlergen.errors import Problem
from handlergen.findings import Source
from handlergen.runtime.contract import NAMED_PARAMETERS, Contract, Hook, Parameter
from handlergen.source_module import (
    Function,
    MethodNode,
    call_kind,
    decorators,
    definitions,
    dotted,
    full_name,
)
from handlergen.source_tree import Found, SourceTree

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
        withheld: Named parameters it cannot ask for, each with the reason.
        instead: What to write instead of more positional parameters.
    """

    name: str
    order: tuple[str, ...]
    named: tuple[str, ...] = NAMED_PARAMETERS
    takes: str = ""
    withheld: Mapping[str, str] = field(default_factory=dict)
    instead: str = "Remove it."

    @property
    def allowed(self) -> str:
        """Return `data, files and, by name, context, model, device, request`, for messages."""
        by_name = [name for name in self.named if name not in self.order]
        return ", ".join(self.order) + (f" and, by name, {', '.join(by_name)}" if by_name else "")


@dataclass
class Signature:
    """The arguments of a hook's parameters, with the problems and warnings about them."""

    parameters: tuple[Parameter, ...] = ()
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


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


def read_signature(node: Function, role: Role, *, file: str) -> Signature:
    """Assign an argument to every parameter of a hook.

    Args:
        node: The function.
        role: What it may take.
        file: Name of the function's file, for messages.
    """
    found = Signature(problems=_variadic(node, role, file))
    parameters = []
    waiting = list(role.order)
    plain = 0
    for parameter in plain_parameters(node):
        source: str | None
        if parameter.name in role.withheld:
            message = f"{role.name} cannot ask for `{parameter.name}`: {role.withheld[parameter.name]}"
            found.problems.append(Problem(file, parameter.line, message, f"It may take {role.allowed}."))
            continue
        if parameter.name in role.named:
            source = parameter.name
            if source in waiting:  # setup(context): the name means what the position would
                waiting.remove(source)
        else:
            plain += 1
            source = _plain_source(parameter, waiting)
            if source is None:
                found.problems.append(_surplus(parameter, role, plain, file))
                continue
            problem = _own_default(parameter, role, source, file)
            if problem:
                found.problems.append(problem)
                continue
            found.warnings += _misleading(parameter, role, source, file)
        parameters.append(Parameter(parameter.name, source, parameter.keyword_only, parameter.required))
    found.parameters = tuple(parameters)
    if role.takes and not found.problems and role.order[0] in waiting:
        found.problems += _missing(node, role, found, file)
    return found


def read_keywords(node: Function, role: Role, *, file: str) -> Signature:
    """Read the parameters of a `predict` that takes the keys of a JSON object as arguments (`call: keywords`)."""
    found = Signature(problems=_variadic(node, role, file, keywords=True))
    parameters = []
    for parameter in plain_parameters(node):
        if parameter.positional_only:
            message = (
                f"arguments are passed to {role.name} by keyword, but `{parameter.name}` is positional-only"
            )
            found.problems.append(Problem(file, parameter.line, message, "Remove the `/`."))
        source = parameter.name if parameter.name in role.named else "key"
        parameters.append(Parameter(parameter.name, source, parameter.keyword_only, parameter.required))
    if not found.problems and not any(parameter.source == "key" for parameter in parameters):
        found.problems.append(
            Problem(
                file,
                node.lineno,
                f"{role.name} takes no key of the JSON object",
                "Write one parameter for each key.",
            )
        )
    found.parameters = tuple(parameters)
    return found


def _plain_source(parameter: SourceParameter, waiting: list[str]) -> str | None:
    """Remove and return the next of `waiting`; for a keyword-only parameter, the one with its name."""
    if not waiting:
        return None
    if not parameter.keyword_only:
        return waiting.pop(0)
    if parameter.name in waiting:
        waiting.remove(parameter.name)
        return parameter.name
    return None


def _surplus(parameter: SourceParameter, role: Role, plain: int, file: str) -> Problem:
    near = difflib.get_close_matches(parameter.name, role.named, n=1, cutoff=0.6)
    if near:
        fix = f"Did you mean `{near[0]}`?"
    elif parameter.default is not None:
        fix = "Make it a constant of the module, or read it from context.config."
    elif parameter.keyword_only:
        fix = f"Remove the `*`, or take one of these by name: {', '.join(role.named)}."
    else:
        fix = role.instead
    if parameter.keyword_only:
        reason = "it is keyword-only, and no argument has that name"
    else:
        reason = f"it is positional parameter {plain}, but {role.name} receives only {len(role.order)}"
        if len(role.order) == 1:
            reason = f"it is positional parameter {plain}, but {role.name} receives only one"
    return Problem(
        file,
        parameter.line,
        f"nothing is passed for the parameter `{parameter.name}` of {role.name}: {reason}",
        f"It may take {role.allowed}. {fix}",
    )


def _own_default(parameter: SourceParameter, role: Role, source: str, file: str) -> Problem | None:
    """A default such as 224 shows that the author means a value of their own, not the request's files."""
    default = parameter.default
    if default is None or parameter.name == source:
        return None
    if isinstance(default, ast.Constant) and default.value is None:
        return None
    return Problem(
        file,
        parameter.line,
        f"`{parameter.name}` of {role.name} receives {_article(source)}, never its default "
        f"{ast.unparse(default)}",
        "If it is a value of your own, make it a constant of the module or read it from context.config; "
        f"if not, name it `{source}`.",
    )


def _misleading(parameter: SourceParameter, role: Role, source: str, file: str) -> list[str]:
    """Warn of a name that suggests another value than the one passed at its position."""
    others = [name for name in ("data", "files", "inputs", "outputs", "input_data") if name != source]
    place = f"{file}:{parameter.line}"
    # `data`, `inputs` and `input_data` are common names for any input; `files` and `outputs` are not.
    telling = ("files", "outputs") if source != "files" else tuple(role.order)
    if parameter.name in others and parameter.name in telling:
        return [
            f"{place}: `{parameter.name}` of {role.name} receives {_article(source)}: "
            f"arguments are passed by position ({', '.join(role.order)})"
        ]
    short = _SHORT_FOR.get(parameter.name.strip("_"))
    near = [short] if short else difflib.get_close_matches(parameter.name, role.named, n=1, cutoff=0.85)
    if near and near[0] != source:
        return [
            f"{place}: `{parameter.name}` of {role.name} receives {_article(source)}. "
            f"Did you mean `{near[0]}`?"
        ]
    if source == "context" and parameter.name in _OF_CONTEXT:
        return [
            f"{place}: `{parameter.name}` of {role.name} receives {_article(source)}. "
            f"Did you mean context.{_OF_CONTEXT[parameter.name]}?"
        ]
    return []


def _missing(node: Function, role: Role, found: Signature, file: str) -> list[Problem]:
    if any(parameter.source == "request" for parameter in found.parameters) and role.name == "preprocess":
        found.warnings.append(
            f"{file}:{node.lineno}: preprocess takes `request` (headers, path, id) but not the data of the "
            f"request. If it needs the data, write def preprocess(data, request)."
        )
        return []
    return [
        Problem(
            file,
            node.lineno,
            f"{role.name} takes no {role.takes}",
            f"Write {_definition(role, found)}; it may take {role.allowed}.",
        )
    ]


def _definition(role: Role, found: Signature) -> str:
    names = [role.order[0], *(parameter.name for parameter in found.parameters)]
    return f"def {role.name}({', '.join(names)})"


def _variadic(node: Function, role: Role, file: str, *, keywords: bool = False) -> list[Problem]:
    problems = []
    for star, arg in (("*", node.args.vararg), ("**", node.args.kwarg)):
        if arg is not None:
            allowed = "one parameter for each key of the JSON object" if keywords else role.allowed
            problems.append(
                Problem(
                    file,
                    arg.lineno,
                    f"{role.name} takes `{star}{arg.arg}`, which does not say what to pass",
                    f"Write the parameters out: {allowed}.",
                )
            )
    return problems


def _article(source: str) -> str:
    return {
        "data": "the request's data",
        "files": "the request's files",
        "inputs": "what preprocess returned",
        "outputs": "what predict returned",
        "input_data": "the request's data",
        "context": "the context",
    }[source]


def replaced_hooks(source: Source, contract: Contract) -> list[str]:
    """Return a warning for each hook whose place may be taken, at run time, by a function with other parameters.

    Args:
        source: As it was read.
        contract: The contract that was found in it.
    """
    warnings: list[str] = []
    for hook in contract.hooks.values():
        found = _found(source, hook)
        if found is not None:
            by_name = contract.call == "keywords" and hook.name == "predict"
            warnings += _several(found, by_name=by_name)
            warnings += _decorated(source.tree, found, by_name=by_name)
    return warnings


def _found(source: Source, hook: Hook) -> Found | None:
    """Return the definition of a hook; None for a lambda."""
    for node in ast.walk(source.module.tree):
        if isinstance(node, MethodNode) and (node.name, node.lineno) == (hook.name, hook.line):
            return Found(node, source.module)
    found = source.tree.function(source.module, hook.name)
    if (
        isinstance(found, Found)
        and isinstance(found.node, MethodNode)
        and hook.line in (0, found.node.lineno)
    ):
        return found  # imported, or under another name
    return None


def _several(found: Found, *, by_name: bool) -> Iterator[str]:
    """Warn of definitions in the branches of an `if` or a `try` whose parameters differ."""
    assert isinstance(found.node, MethodNode)
    every = definitions(found.module, found.node.name)
    if found.node in every and len({(call_kind(node), *_shape(node, by_name=by_name)) for node in every}) > 1:
        lines = ", ".join(str(line) for line in sorted(node.lineno for node in every))
        yield (
            f"{found.module.file}:{found.node.lineno}: {found.node.name} is defined {len(every)} times (lines "
            f"{lines}), with different parameters. This one is read, whichever runs: give all the same parameters."
        )


def _decorated(tree: SourceTree, found: Found, *, by_name: bool) -> Iterator[str]:
    """Warn of the project's decorators that put a function with other parameters in the hook's place."""
    assert isinstance(found.node, MethodNode)
    for decorator in decorators(found.node):
        made = _decorator(tree, found, decorator)
        if made is None:
            continue
        wrapped, wrapper = made
        if _takes_the_same(found.node, wrapper, wrapped, by_name=by_name):
            continue
        name, taken = found.node.name, ast.unparse(found.node.args)
        yield (
            f"{found.module.file}:{found.node.lineno}: @{dotted(decorator)} calls {name}({taken}) with arguments of "
            f"its own, and takes ({ast.unparse(wrapper.args)}) itself. The runtime passes the arguments of the def: "
            f"write an undecorated {name} that calls the decorated function."
        )


def _decorator(tree: SourceTree, found: Found, decorator: ast.expr) -> tuple[str, Function] | None:
    """Return a decorator's name for what it decorates, and the function that replaces it.

    None if the decorator is not defined in the project, or not in the usual way.
    """
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


def _takes_the_same(hook: Function, wrapper: Function, wrapped: str, *, by_name: bool) -> bool:
    """Return whether the wrapper can be called as the hook is."""
    if wrapper.args.vararg is None and wrapper.args.kwarg is None:
        return _shape(hook, by_name=by_name) == _shape(wrapper, by_name=by_name)
    own = {parameter.name for parameter in plain_parameters(wrapper)}
    return not any(
        isinstance(node, ast.Call) and dotted(node.func) == wrapped and _adds(node, own)
        for node in ast.walk(wrapper)
    )


def _shape(function: Function, *, by_name: bool) -> list[str]:
    """Return what a caller must know of the parameters: the name of each; "" for one that is passed by position."""
    return [
        parameter.name if by_name or parameter.keyword_only or parameter.name in NAMED_PARAMETERS else ""
        for parameter in plain_parameters(function)
    ]


def _adds(call: ast.Call, own: set[str]) -> bool:
    """Return whether a call passes on all arguments of its function, and others besides."""
    passes_on = any(isinstance(argument, ast.Starred) for argument in call.args) or any(
        keyword.arg is None for keyword in call.keywords
    )
    values = [argument for argument in call.args if not isinstance(argument, ast.Starred)]
    values += [keyword.value for keyword in call.keywords if keyword.arg is not None]
    return passes_on and any(not (isinstance(value, ast.Name) and value.id in own) for value in values)
