"""What an expression may stand for."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from handlergen.placement.knowledge import differs, is_accelerator, is_tensor
from handlergen.placement.lookups import Lookups
from handlergen.placement.values import (
    ITEMS,
    NOTHING,
    Accelerator,
    Class,
    Function,
    Library,
    Scope,
    Site,
    Thing,
    Value,
    Values,
)

_ASKS = (ast.In, ast.NotIn, ast.Is, ast.IsNot)


class Expressions(Lookups):
    """Evaluates expressions; calls are `calls.Calls`'s matter."""

    def call(self, node: ast.Call, scope: Scope) -> Values:
        raise NotImplementedError

    def operate(self, values: Values, scope: Scope, site: Site) -> Values:
        """Operators, loops and builtins call special methods: those of the project's classes are read, all of them."""
        found: Values = NOTHING
        for value in values:
            if isinstance(value, Thing) and value.kind is not None:
                for name in self.special_methods(value.kind):
                    for method in self.bound(self.member(value.kind, name) or NOTHING, value):
                        found |= self.invoke(method, values, scope, site)
        return found

    def bind(self, target: ast.expr, values: Values, scope: Scope) -> None:
        raise NotImplementedError

    def all_of(self, nodes: Iterable[ast.expr | None], scope: Scope) -> Values:
        found: Values = NOTHING
        for node in nodes:
            if node is not None:
                found |= self.value(node, scope)
        return found

    def value(self, node: ast.expr, scope: Scope) -> Values:  # noqa: PLR0911, PLR0912 - one kind of node a branch
        """What an expression may stand for; plain values stand for nothing."""
        if isinstance(node, ast.Name):
            values = self.name(node.id, scope, self.site(node, scope))
            for value in values:
                if isinstance(value, Library):
                    self.note_library(value.name, self.site(node, scope))
            return values
        if isinstance(node, ast.Constant):
            text = node.value
            return frozenset({Accelerator()}) if isinstance(text, str) and is_accelerator(text) else NOTHING
        if isinstance(node, ast.Attribute):
            return self.attribute(node, scope)
        if isinstance(node, ast.Call):
            return self.call(node, scope)
        if isinstance(node, ast.Subscript):
            self.value(node.slice, scope)
            values = self.value(node.value, scope)
            if Library("sys.modules") in values:
                return self.module_named(node.slice, scope, self.site(node, scope), "sys.modules")
            found = self.items(values) | self.operate(values, scope, self.site(node, scope))
            return self._slice(node, values, found) if isinstance(node.slice, ast.Slice) else found
        if isinstance(node, ast.Lambda):
            return frozenset({Function(node, scope.path, scope)})
        if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            return self._comprehension(node, scope)
        if isinstance(node, ast.List | ast.Tuple | ast.Set | ast.Dict):
            return self._container(node, scope)
        if isinstance(node, ast.NamedExpr):
            values = self.value(node.value, scope)
            self.bind(node.target, values, scope)
            return values
        if isinstance(node, ast.IfExp):
            self.condition(node.test, scope)
            return self.all_of((node.body, node.orelse), scope)
        if isinstance(node, ast.BoolOp):
            return NOTHING.union(*(self.condition(part, scope) for part in node.values))
        if isinstance(node, ast.BinOp):
            return self._operation(node, (node.left, node.right), scope)
        if isinstance(node, ast.Compare):
            made = self._operation(node, (node.left, *node.comparators), scope)
            return NOTHING if all(isinstance(operator, _ASKS) for operator in node.ops) else made
        if isinstance(node, ast.UnaryOp):
            if isinstance(node.op, ast.Not):
                self.condition(node.operand, scope)
                return NOTHING
            return self._operation(node, (node.operand,), scope)
        if isinstance(node, ast.Yield | ast.YieldFrom | ast.Await):
            values = self.value(node.value, scope) if node.value is not None else NOTHING
            if not isinstance(node, ast.Yield):  # __await__, __iter__
                values |= self.operate(values, scope, self.site(node, scope))
            if not isinstance(node, ast.Await):
                generator = Thing(node, plain=True)  # whoever iterates gets the values, not their items
                self.heap.add(generator, ITEMS, values)
                scope.returned |= values | {generator}
            return values
        if isinstance(node, ast.Starred):
            values = self.value(node.value, scope)
            return self.items(values) | self.operate(values, scope, self.site(node, scope))
        if isinstance(node, ast.JoinedStr | ast.FormattedValue | ast.Slice):
            children = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
            values = self.all_of(children, scope)
            self.operate(values, scope, self.site(node, scope))
            if isinstance(node, ast.FormattedValue):
                self.ask_values(values, "an f-string", self.site(node, scope))
            return self.differing(values)
        self.events.dynamic.setdefault(f"`{ast.unparse(node)[:40]}`", self.site(node, scope))
        return NOTHING

    def condition(self, node: ast.expr, scope: Scope) -> Values:
        """What an expression stands for of which is asked whether it is true."""
        values, site = self.value(node, scope), self.site(node, scope)
        self.operate(values, scope, site)
        self.ask_values(values, "a condition", site)
        return values

    def ask_values(self, values: Values, what: str, site: Site) -> None:
        """A tensor has to tell its values, which it has not on the device `meta`."""
        if any(isinstance(value, Thing) and is_tensor(value.maker) for value in values):
            self.events.valued.setdefault(what, site)

    @staticmethod
    def differing(values: Values) -> Values:
        """What is another in each process is another as a number and as a text, too."""
        return frozenset(value for value in values if isinstance(value, Thing) and differs(value.maker))

    def items(self, values: Values) -> Values:
        """What the items of some objects may be. An object that is not known may hand on itself."""
        found: set[Value] = set()
        for value in values:
            if isinstance(value, Thing):
                found |= self.heap.all(value)
                if not value.plain or value.opaque:
                    found.add(value)
            elif isinstance(value, Accelerator | Library | Class):
                found.add(value)
        return frozenset(found)

    def _container(self, node: ast.List | ast.Tuple | ast.Set | ast.Dict, scope: Scope) -> Values:
        thing = Thing(node, plain=True)
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                values = self.value(value, scope)
                self.heap.add(thing, ITEMS, values if key else self.items(values))
        parts = node.keys if isinstance(node, ast.Dict) else node.elts
        self.heap.add(thing, ITEMS, self.all_of(parts, scope))
        return frozenset({thing})

    def _comprehension(
        self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp, scope: Scope
    ) -> Values:
        for generator in node.generators:
            values = self.value(generator.iter, scope)
            self.operate(values, scope, self.site(node, scope))
            self.bind(generator.target, self.items(values), scope)
            for test in generator.ifs:
                self.condition(test, scope)
        parts = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        thing = Thing(node, plain=True)
        self.heap.add(thing, ITEMS, self.all_of(parts, scope))
        return frozenset({thing})

    def _operation(self, node: ast.expr, operands: Iterable[ast.expr], scope: Scope) -> Values:
        values = self.all_of(operands, scope)
        values |= self.operate(values, scope, self.site(node, scope))
        return self.made_of(node, values, self.items(values))

    def _slice(self, node: ast.Subscript, values: Values, items: Values) -> Values:
        """A part of a list is a list of its own; a part of an array may be a view of it."""
        views = frozenset(value for value in values if not isinstance(value, Thing) or not value.plain)
        return self.made_of(node, values, items) | views

    def made_of(self, node: ast.AST, values: Values, held: Values) -> Values:
        """A new object, made of others by an operator or a method; of what nobody can change, another such."""
        if not values:
            return NOTHING
        things = [value for value in values if isinstance(value, Thing)]
        makers = sorted(
            {thing.maker for thing in things}, key=lambda maker: (not is_tensor(maker), not maker, maker)
        )
        plain = len(things) == len(values) and all(thing.plain for thing in things)
        thing = Thing(node, plain=plain, maker=makers[0] if makers else "")
        if not is_tensor(thing.maker):
            self.heap.add(thing, ITEMS, held)
        return frozenset({thing})
