"""What code that is not read calls back: the functions it was given, and the methods of the project's objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from handlergen.placement.expressions import Expressions
from handlergen.placement.knowledge import MODULE_CALLS
from handlergen.placement.program import decorators
from handlergen.placement.values import (
    CONTEXT,
    MODEL,
    NOTHING,
    SELF,
    Class,
    Function,
    Module,
    Scope,
    Site,
    Thing,
    Value,
    Values,
)
from handlergen.source_tree import SourceTree

AT_ONCE = 8
"""So many objects are as much effort as one call."""


class Callbacks(Expressions):
    """Reads in a hook's role what libraries call of the project while that hook uses them."""

    def __init__(self, tree: SourceTree) -> None:
        super().__init__(tree)
        self._asked: set[tuple[int, Values, Values]] = set()
        self._given: dict[tuple[int, Value], Values] = {}

    def forget_calls(self) -> None:
        """What was called back in one reading of a role is to be called again in the next."""
        self._asked.clear()
        self._given.clear()

    def operate(self, values: Values, scope: Scope, site: Site) -> Values:
        self.call_back(
            (value for value in values if isinstance(value, Thing) and value.opaque), values, scope, site
        )
        return super().operate(values, scope, site)

    def escape(self, values: Values, scope: Scope, site: Site, to: str) -> None:
        """Objects are handed to code that is not read: their functions may be called, with one another."""
        for value in values:
            if is_self(value):
                self.events.dynamic.setdefault(f"`self`, handed to {to}", site)
            elif isinstance(value, Module):
                self.events.dynamic.setdefault(f"`{value.path.stem}`, handed to {to}", site)
        given = frozenset(value for value in values if not isinstance(value, Function))
        for value in values - given:
            self.invoke(value, given | self.items(given), scope, site)
        self.call_back(given, given, scope, site)

    def data(self, values: Values) -> Values:
        """Without what could be called, which no tensor holds on to."""
        return frozenset(value for value in values if not self.heap.may_call(value))

    def call_back(self, values: Iterable[Value], given: Values, scope: Scope, site: Site) -> None:
        """Code that is not read has these objects, and may call what they hold.

        Args:
            given: What it may pass.
        """
        callers, role = frozenset(filter(self.heap.may_call, values)), id(self.events)
        if not callers or (role, callers, given) in self._asked:
            return
        self._asked.add((role, callers, given))
        found = list(self._held_within(callers))
        self.spend(len(found) // AT_ONCE, site)
        for value in found:
            before = self._given.get((role, value))
            if before is not None and given <= before:
                continue
            self._given[role, value] = given | (before or NOTHING)
            if isinstance(value, Function):
                self.invoke(value, given, scope, site)
            elif isinstance(value, Class):
                self.run_methods(Thing(value.node, value), given, scope, site, made=True)
            elif isinstance(value, Thing) and value.kind is not None:
                if self.is_network(value.kind):
                    self.run_inherited(value, given, scope, site)
                else:
                    self.run_methods(value, given, scope, site)

    def _held_within(self, values: Iterable[Value]) -> Iterator[Value]:
        seen: set[Value] = {CONTEXT, MODEL}
        waiting = list(values)
        while waiting:
            value = waiting.pop()
            if value in seen or is_self(value) or not self.heap.may_call(value):
                continue
            seen.add(value)
            yield value
            if isinstance(value, Thing) and value.kind is None:
                waiting.extend(self.heap.all(value))

    def run_methods(
        self, thing: Thing, given: Values, scope: Scope, site: Site, *, made: bool = False
    ) -> None:
        """Code that is not read may call any method of an object.

        Args:
            made: It may make the object, too.
        """
        assert thing.kind is not None
        for base in self.ancestry(thing.kind):
            for name in self.heap.fields(base) if isinstance(base, Class) else ():
                for method in self.bound(self.heap.get(base, name), thing):
                    if isinstance(method, Function) and (made or name != "__init__"):
                        self.invoke(method, given, scope, site)

    def run_inherited(self, thing: Thing, given: Values, scope: Scope, site: Site) -> None:
        """A base that is not read is at work: it calls the methods that it knows of, any if it is not known."""
        assert thing.kind is not None
        base = self.foreign_base(thing.kind) or ""
        if not base.startswith(("torch.nn.", "pydantic.")):
            self.run_methods(thing, given, scope, site)
            return
        for kind in self.ancestry(thing.kind):
            for name in self.heap.fields(kind) if isinstance(kind, Class) else ():
                for method in self.bound(self.heap.get(kind, name), thing):
                    if isinstance(method, Function) and (name in MODULE_CALLS or _is_validator(method, base)):
                        self.invoke(method, given, scope, site)


def _is_validator(method: Function, base: str) -> bool:
    """pydantic calls what a decorator of its own has registered."""
    found = decorators(method.node) - {"property", "cached_property", "staticmethod", "classmethod"}
    return base.startswith("pydantic.") and bool(found)


def is_self(value: Value) -> bool:
    return isinstance(value, Thing) and value.site == SELF
