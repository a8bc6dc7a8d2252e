"""What assignments bind: names, attributes, items, patterns."""

from __future__ import annotations

import ast

from handlergen.placement.calls import Calls
from handlergen.placement.program import decorators
from handlergen.placement.values import (
    CONTEXT,
    ITEMS,
    NOTHING,
    SELF,
    Accelerator,
    Builtin,
    Function,
    Library,
    Module,
    Place,
    Scope,
    Site,
    Thing,
    Values,
)

_ON_ITEMS = ("__setitem__", "__delitem__")
_ON_ATTRIBUTES = ("__setattr__", "__delattr__")


class Assignments(Calls):
    """Binds values to targets, and notes what that changes."""

    def bind(self, target: ast.expr, values: Values, scope: Scope) -> None:
        site = self.site(target, scope)
        if isinstance(target, ast.Name):
            self.bind_name(target.id, values, scope, site)
        elif isinstance(target, ast.Tuple | ast.List):
            self.operate(values, scope, site)
            for part in target.elts:
                self.bind(part, self.items(values), scope)
        elif isinstance(target, ast.Starred):  # the rest, in a list of its own
            rest = Thing(target, plain=True)
            self.heap.add(rest, ITEMS, values)
            self.bind(target.value, frozenset({rest}), scope)
        elif isinstance(target, ast.Attribute):
            self._store_into(target, target.attr, values, scope)
        elif isinstance(target, ast.Subscript):
            self.value(target.slice, scope)
            self._store_into(target, ITEMS, values, scope)

    def _store_into(
        self, target: ast.Attribute | ast.Subscript, name: str, values: Values, scope: Scope
    ) -> None:
        owners, site = self.value(target.value, scope), self.site(target, scope)
        self.assign(owners, name, values, scope, site)
        if not owners:
            self.changed_unseen(target.value, scope, site)

    def assign(self, owners: Values, name: str, values: Values, scope: Scope, site: Site) -> None:
        """`owner.name = value`, or `owner[...] = value` with the name `[]`, and what the owner's class does then."""
        self.store(owners, name, values, site)
        for owner in owners:
            if not isinstance(owner, Thing) or owner.kind is None:
                continue
            found: Values = NOTHING
            for special in _ON_ITEMS if name == ITEMS else _ON_ATTRIBUTES:
                found |= self.bound(self.member(owner.kind, special) or NOTHING, owner)
            for member in self.member(owner.kind, name) or ():
                if isinstance(member, Function) and decorators(member.node) & {"setter", "deleter"}:
                    found |= self.bound(frozenset({member}), owner)
                elif isinstance(member, Thing) and member.kind is not None:
                    found |= self.bound(self.member(member.kind, "__set__") or NOTHING, member)
            for method in found:
                self.invoke(method, values | {owner}, scope, site)

    def bind_name(self, name: str, values: Values, scope: Scope, site: Site) -> None:
        current: Scope = scope
        while name in current.nonlocals and current.parent is not None:
            current = current.parent
        if name in current.globals:
            current = self.globals_of(current.path)
        if current.place and current is not scope:
            self.events.rebinds.setdefault(Place("global", name, current.path), site)
        elif current is not scope:  # nonlocal: what a closure keeps from call to call
            self.events.mutates.setdefault(current, site)
        self.add_name(current, name, values)

    def bind_pattern(self, pattern: ast.pattern, values: Values, scope: Scope) -> None:
        for node in ast.walk(pattern):
            name = getattr(node, "name", None) or getattr(node, "rest", None)
            if isinstance(name, str):
                self.bind_name(name, values, scope, self.site(pattern, scope))
            if isinstance(node, ast.MatchValue):
                self.value(node.value, scope)

    def store(self, owners: Values, name: str, values: Values, site: Site) -> None:
        """Note what is changed, and what holds the values now."""
        for owner in owners:
            if isinstance(owner, Thing) and owner.site == SELF and name != ITEMS:
                self.events.rebinds.setdefault(Place("self", name), site)
                self.heap.add(owner, name, values)
            elif owner == CONTEXT and name != ITEMS:
                self.events.rebinds.setdefault(Place("context", name), site)
                self.heap.add(owner, name, values)
            elif isinstance(owner, Module):
                self.events.rebinds.setdefault(Place("global", name, owner.path), site)
                names = self.globals_of(owner.path).names
                names[name] = names.get(name, NOTHING) | values
            elif isinstance(owner, Library) and owner.name == "builtins":
                self.events.dynamic.setdefault(f"`builtins.{name}`", site)
            elif not isinstance(owner, Builtin | Accelerator):
                changed = (
                    Library(f"{owner.name}.{name}".removesuffix(f".{ITEMS}"))
                    if isinstance(owner, Library)
                    else owner
                )
                self.events.mutates.setdefault(changed, site)
                self.heap.add(owner, name, values)

    @staticmethod
    def add_name(scope: Scope, name: str, values: Values) -> None:
        scope.names[name] = scope.names.get(name, NOTHING) | values
