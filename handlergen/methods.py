"""Methods of a user's class as their syntax trees have them: found through local bases, read without `self`."""

from __future__ import annotations

import ast
import copy
from dataclasses import dataclass
from typing import TypeAlias

from handlergen.source_module import SourceModule, dotted

MethodNode: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Method:
    """A method, found.

    Attributes:
        node: Its `def` without the parameter that an instance fills (`self`, `cls`).
        owner: Name of the class that defines it.
    """

    node: MethodNode
    owner: str


def find_method(module: SourceModule, node: ast.ClassDef, name: str) -> Method | None:
    """A method of a class or of its bases in the same file, in the order in which Python looks."""
    return _find(module, node, name, seen=set())


def _find(module: SourceModule, node: ast.ClassDef, name: str, *, seen: set[str]) -> Method | None:
    if node.name in seen:
        return None
    seen.add(node.name)
    found = [
        item
        for item in node.body
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) and item.name == name
    ]
    if found:
        return Method(_unbound(found[-1]), node.name)
    for base in node.bases:
        binding = module.bindings.get(dotted(base))
        if binding and isinstance(binding.node, ast.ClassDef):
            inherited = _find(module, binding.node, name, seen=seen)
            if inherited:
                return inherited
    return None


def _unbound(node: MethodNode) -> MethodNode:
    """The same `def` as a call on an instance sees it."""
    if any(dotted(decorator) == "staticmethod" for decorator in node.decorator_list):
        return node
    args = copy.copy(node.args)
    if args.posonlyargs:
        args.posonlyargs = args.posonlyargs[1:]
    else:
        args.args = args.args[1:]
    # Defaults belong to the last parameters: only `self` itself could have had one of its own.
    args.defaults = args.defaults[-(len(args.posonlyargs) + len(args.args)) :] if args.defaults else []
    if not args.posonlyargs and not args.args:
        args.defaults = []
    changed = copy.copy(node)
    changed.args = args
    return changed
