"""Where what runs may take other arguments than the hook that is read: several definitions, and decorators."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from handlergen.errors import Problem
from handlergen.findings import Source
from handlergen.hook_signatures import plain_parameters
from handlergen.runtime.contract import NAMED_PARAMETERS, Contract, Hook
from handlergen.source_module import Function, call_kind, decorators, definitions, dotted, full_name
from handlergen.source_tree import Found, SourceTree

_Def = ast.FunctionDef | ast.AsyncFunctionDef


def doubts(source: Source, contract: Contract) -> list[str]:
    """A warning for each hook, function or method, that may be called for other arguments than it is read with.

    Args:
        source: As it was read.
        contract: What was found in it.
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
    """Where a hook is written, unless it is a lambda."""
    for node in ast.walk(source.module.tree):
        if isinstance(node, _Def) and (node.name, node.lineno) == (hook.name, hook.line):
            return Found(node, source.module)
    found = source.tree.function(source.module, hook.name)
    if isinstance(found, Found) and isinstance(found.node, _Def) and hook.line in (0, found.node.lineno):
        return found  # imported, or under another name
    return None


def _several(found: Found, *, by_name: bool) -> Iterator[str]:
    """Definitions in the branches of an `if` or a `try` that do not take the same."""
    assert isinstance(found.node, _Def)
    every = definitions(found.module, found.node.name)
    if found.node in every and len({(call_kind(node), *_shape(node, by_name=by_name)) for node in every}) > 1:
        lines = ", ".join(str(line) for line in sorted(node.lineno for node in every))
        yield (
            f"{found.module.file}:{found.node.lineno}: {found.node.name} is defined {len(every)} times (lines "
            f"{lines}), and not with the same parameters. This one is read, whichever runs: give all of them the same."
        )


def _decorated(tree: SourceTree, found: Found, *, by_name: bool) -> Iterator[str]:
    """Decorators of the project that put a function with other parameters in the hook's place."""
    assert isinstance(found.node, _Def)
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
            f"its own, and takes ({ast.unparse(wrapper.args)}) itself. {name} will be called with what its def asks "
            f"for: write a plain {name} that calls the decorated function."
        )


def _decorator(tree: SourceTree, found: Found, decorator: ast.expr) -> tuple[str, Function] | None:
    """The name by which a decorator knows what it decorates, and the function that it puts in its place.

    None when that is not written in the project, or not in the usual way.
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
    """The function inside another one that the other one returns."""
    if isinstance(function, ast.Lambda):
        return function.body if isinstance(function.body, ast.Lambda) else None
    inside = {node.name: node for node in function.body if isinstance(node, _Def)}
    for node in function.body:
        if isinstance(node, ast.Return):
            if isinstance(node.value, ast.Lambda):
                return node.value
            return inside.get(node.value.id) if isinstance(node.value, ast.Name) else None
    return None


def _takes_the_same(hook: Function, wrapper: Function, wrapped: str, *, by_name: bool) -> bool:
    """Can the wrapper be called as the hook is?"""
    if wrapper.args.vararg is None and wrapper.args.kwarg is None:
        return _shape(hook, by_name=by_name) == _shape(wrapper, by_name=by_name)
    own = {parameter.name for parameter in plain_parameters(wrapper)}
    return not any(
        isinstance(node, ast.Call) and dotted(node.func) == wrapped and _adds(node, own)
        for node in ast.walk(wrapper)
    )


def _shape(function: Function, *, by_name: bool) -> list[str]:
    """What matters of the parameters to a caller: a plain one goes by its place, whatever its name."""
    return [
        parameter.name if by_name or parameter.keyword_only or parameter.name in NAMED_PARAMETERS else ""
        for parameter in plain_parameters(function)
    ]


def _adds(call: ast.Call, own: set[str]) -> bool:
    """Does a call pass on what its function was given, and something more?"""
    passes_on = any(isinstance(argument, ast.Starred) for argument in call.args) or any(
        keyword.arg is None for keyword in call.keywords
    )
    values = [argument for argument in call.args if not isinstance(argument, ast.Starred)]
    values += [keyword.value for keyword in call.keywords if keyword.arg is not None]
    return passes_on and any(not (isinstance(value, ast.Name) and value.id in own) for value in values)
