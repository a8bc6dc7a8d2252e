"""What `def`, `class` and `import` bind."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from handlergen.placement.assignments import Assignments
from handlergen.placement.calls import is_cached
from handlergen.placement.program import note_import
from handlergen.placement.unread_calls import Arguments
from handlergen.placement.values import (
    Class,
    Function,
    Library,
    Module,
    Scope,
    Values,
)
from handlergen.source_module import statements_at_import
from handlergen.source_tree import SourceTree


class Definitions(Assignments):
    """Functions, classes, imports and decorators."""

    def __init__(self, tree: SourceTree) -> None:
        super().__init__(tree)
        self._bodies: dict[tuple[ast.ClassDef, Scope], Scope] = {}

    def statements(self, body: Iterable[ast.stmt], scope: Scope) -> None:
        raise NotImplementedError

    def define(self, node: ast.FunctionDef | ast.AsyncFunctionDef, scope: Scope) -> None:
        closure = None if scope.place or scope.own is None else scope
        if scope.own is None and not scope.place:
            closure = scope.parent if scope.parent is not None and not scope.parent.place else None
        values: Values = frozenset({Function(node, scope.path, closure)})
        for decorator in reversed(node.decorator_list):
            for wrapper in self.value(decorator, scope):
                named = wrapper
                if isinstance(decorator, ast.Call):  # the library's own decorator with arguments
                    for inner in self.value(decorator.func, scope):
                        if is_cached(inner):
                            self.cached.add(node)
                if is_cached(named):
                    self.cached.add(node)
                if isinstance(wrapper, Function):
                    values |= self.enter(wrapper, Arguments(positional=[values]), self.site(node, scope))
        self.bind_name(node.name, values, scope, self.site(node, scope))

    def define_class(self, node: ast.ClassDef, scope: Scope) -> None:
        kind = Class(node, scope.path)
        self.heap.add(kind, "__bases__", self.all_of(node.bases, scope))
        # The same scope at every reading: its lambdas are the same functions then.
        body = self._bodies.setdefault(
            (node, scope), Scope(scope.path, scope.file, parent=scope, through=scope.through)
        )
        self.statements(statements_at_import(node.body), body)
        for name, values in body.names.items():
            self.heap.add(kind, name, values)
        self.bind_name(node.name, frozenset({kind}), scope, self.site(node, scope))

    def import_names(self, node: ast.Import | ast.ImportFrom, scope: Scope) -> None:
        site = self.site(node, scope)
        for alias in node.names:
            if isinstance(node, ast.Import):
                local = self.importable(scope, alias.name if alias.asname else alias.name.partition(".")[0])
                if "." in alias.name:
                    self.importable(scope, alias.name)
                name = alias.name if alias.asname else alias.name.partition(".")[0]
                values: Values = frozenset({Module(local.path) if local else Library(name)})
                self.bind_name(alias.asname or name, values, scope, site)
                if local is None and not scope.place:
                    note_import(self.events, alias.name, site)
                continue
            inner = self.imported_scope(scope, node)
            if alias.name == "*":
                continue
            if inner is not None and (
                alias.name in inner.names or self.submodule(scope, node, alias.name) is None
            ):
                values = self.read_global(inner.path, alias.name, site)
            elif submodule := self.submodule(scope, node, alias.name):
                values = frozenset({Module(submodule.path)})
            else:
                values = frozenset({Library(f"{node.module or ''}.{alias.name}".lstrip("."))})
                if not scope.place:
                    note_import(self.events, node.module or "", site)
            self.bind_name(alias.asname or alias.name, values, scope, site)
