"""What `def`, `class` and `import` bind."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import TypeAlias

from handlergen.placement.assignments import Assignments
from handlergen.placement.calls import is_cached
from handlergen.placement.knowledge import hands_on
from handlergen.placement.program import note_import
from handlergen.placement.unread_calls import Arguments, Call
from handlergen.placement.values import (
    Class,
    Events,
    Function,
    Library,
    Module,
    Scope,
    Thing,
    Value,
    Values,
)
from handlergen.source_module import statements_at_import
from handlergen.source_tree import SourceTree

Definition: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class Definitions(Assignments):
    """Functions, classes, imports and decorators."""

    def __init__(self, tree: SourceTree) -> None:
        super().__init__(tree)
        self._applications: dict[ast.expr, ast.Call] = {}
        self._runs: dict[tuple[int, Scope], Events] = {}
        self._imported_at_import: set[Scope | None] = set()
        self._bodies: dict[tuple[ast.ClassDef, Scope], Scope] = {}

    def statements(self, body: Iterable[ast.stmt], scope: Scope) -> None:
        raise NotImplementedError

    def reread(self, module: Scope) -> None:
        """Read a module's body in the current role."""
        self.statements(statements_at_import(self.tree_of(module).body), module)

    def define(self, node: ast.FunctionDef | ast.AsyncFunctionDef, scope: Scope) -> None:
        closure = None if scope.place or scope.own is None else scope
        if scope.own is None and not scope.place:
            closure = scope.parent if scope.parent is not None and not scope.parent.place else None
        values: Values = frozenset({Function(node, scope.path, closure)})
        values = self._decorated(node, values, scope)
        self.bind_name(node.name, values, scope, self.site(node, scope))

    def _decorated(self, node: Definition, values: Values, scope: Scope) -> Values:
        """What a definition's name stands for: what is defined, and what its decorators make of it."""
        for decorator in reversed(node.decorator_list):
            inner = decorator.func if isinstance(decorator, ast.Call) else decorator
            made_by = self.value(inner, scope)
            if any(is_cached(value) for value in made_by):
                self.cached.add(node)
            for wrapper in self.value(decorator, scope):
                if self._is_followed(node, wrapper, scope):
                    values |= self.one(wrapper, self._application(decorator, values, scope))
                elif isinstance(node, ast.ClassDef):
                    named = Library(wrapper.maker) if isinstance(wrapper, Thing) else wrapper
                    self.heap.add(Class(node, scope.path), "__decorated__", frozenset({named}))
        return values

    def _is_followed(self, node: Definition, wrapper: Value, scope: Scope) -> bool:
        """Is a decorator called to see what it makes? The project's are; a library's may keep what it gets."""
        if isinstance(wrapper, Function | Class) or (isinstance(wrapper, Thing) and wrapper.kind is not None):
            return True
        in_class = scope.own is None and not scope.place
        if in_class or isinstance(node, ast.ClassDef) or not isinstance(wrapper, Library | Thing):
            return False
        return not hands_on(wrapper.name if isinstance(wrapper, Library) else wrapper.maker)

    def _application(self, decorator: ast.expr, values: Values, scope: Scope) -> Call:
        """The call of a decorator, the same node at every reading."""
        node = self._applications.setdefault(decorator, ast.Call(decorator, [], []))
        return Call(node, Arguments(positional=[values]), scope, self.site(decorator, scope))

    def define_class(self, node: ast.ClassDef, scope: Scope) -> None:
        kind = Class(node, scope.path)
        self.heap.add(kind, "__bases__", self.all_of(node.bases, scope))
        for keyword in node.keywords:
            name = "__metaclass__" if keyword.arg == "metaclass" else "__keywords__"
            self.heap.add(kind, name, self.value(keyword.value, scope))
        # The same scope at every reading: its lambdas are the same functions then.
        body = self._bodies.setdefault(
            (node, scope), Scope(scope.path, scope.file, parent=scope, through=scope.through)
        )
        self.statements(statements_at_import(node.body), body)
        for name, values in body.names.items():
            self.heap.add(kind, name, values)
        values = self._decorated(node, frozenset({kind}), scope)
        self.bind_name(node.name, values, scope, self.site(node, scope))

    def _run_import(self, imported: Scope | None, scope: Scope) -> None:
        """A file that only a hook imports runs then: what it assigns in other files is the hook's doing."""
        if imported is None or scope.place:
            self._imported_at_import.add(imported)
            return
        if imported in self._imported_at_import:
            return
        before = self.events
        self.events = found = self._runs.setdefault((id(before), imported), Events())
        self.reread(imported)
        self.events = before
        for place, site in found.rebinds.items():
            if place.path != imported.path:
                before.rebinds.setdefault(place, site)

    def import_names(self, node: ast.Import | ast.ImportFrom, scope: Scope) -> None:
        site = self.site(node, scope)
        for alias in node.names:
            if isinstance(node, ast.Import):
                local = self.importable(scope, alias.name if alias.asname else alias.name.partition(".")[0])
                if "." in alias.name:
                    self.importable(scope, alias.name)
                self._run_import(local, scope)
                name = alias.name if alias.asname else alias.name.partition(".")[0]
                values: Values = frozenset({Module(local.path) if local else Library(name)})
                self.bind_name(alias.asname or name, values, scope, site)
                if local is None and not scope.place:
                    note_import(self.events, alias.name, site)
                continue
            inner = self.imported_scope(scope, node)
            self._run_import(inner, scope)
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
