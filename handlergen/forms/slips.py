"""Names that are nearly a hook's: the function is there, and nothing would ever call it."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable, Mapping

from handlergen.source_module import SourceModule

_NO_OTHERS: Mapping[str, str] = {}


def near_names(
    names: Iterable[str],
    hooks: Iterable[str],
    bound: Iterable[str],
    *,
    others: Mapping[str, str] = _NO_OTHERS,
) -> list[tuple[str, str]]:
    """(name, absent hook) pairs that look like slips.

    Args:
        names: Of the functions that are there.
        hooks: Every name that would be called.
        bound: Those of them that are there.
        others: What people call a hook elsewhere, to the hook.
    """
    hooks, there = tuple(hooks), set(bound)
    absent = {hook.replace("_", ""): hook for hook in hooks if hook not in there}
    pairs = []
    for name in names:
        if name.startswith("_") or name in hooks:
            continue
        other = others.get(name)
        plain = name.lower().replace("_", "")
        near = difflib.get_close_matches(plain, absent, n=1, cutoff=0.85)
        near = near or [hook for hook in absent if sorted(hook) == sorted(plain)]  # laod
        if other and other not in there:
            pairs.append((name, other))
        elif near:
            pairs.append((name, absent[near[0]]))
    return pairs


def rename(names: Iterable[str], hook: str) -> str:
    """Advice where a hook is missing and a function looks like it; "" when none does."""
    near = [name for name, _ in near_names(names, (hook,), ())]
    return f"Is `{near[0]}` meant to be it? Rename it to {hook}." if near else ""


def not_called(file: str, line: int, name: str, hook: str) -> str:
    """The warning for a slip."""
    return f"{file}:{line}: `{name}` is not called by handlergen. If it is meant to be {hook}, rename it."


def method_slips(
    module: SourceModule, node: ast.ClassDef, hooks: Iterable[str], bound: Iterable[str]
) -> list[str]:
    """Warnings for the slips among a class's own methods."""
    lines = method_lines(node)
    pairs = near_names(lines, hooks, bound)
    return [not_called(module.file, lines[name], name, hook) for name, hook in pairs]


def method_lines(node: ast.ClassDef) -> dict[str, int]:
    """Name to line of the methods that a class defines itself."""
    functions = (item for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef))
    return {function.name: function.lineno for function in functions}


def function_slips(module: SourceModule, hooks: Iterable[str], bound: Iterable[str]) -> list[str]:
    """Warnings for the slips among a module's functions."""
    lines = {binding.name: binding.line for binding in module.functions()}
    return [
        not_called(module.file, lines[name], name, hook) for name, hook in near_names(lines, hooks, bound)
    ]
