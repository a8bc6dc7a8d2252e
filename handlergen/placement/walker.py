"""Reading the body of a function or module: every statement counts, whatever the order."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from handlergen.placement.bound_names import BoundNames
from handlergen.placement.callbacks import AT_ONCE
from handlergen.placement.definitions import Definitions
from handlergen.placement.unread_calls import Arguments
from handlergen.placement.values import (
    ITEMS,
    NOTHING,
    Class,
    Events,
    Function,
    Scope,
    Site,
    Thing,
    Values,
)
from handlergen.source_module import statements_at_import
from handlergen.source_tree import SourceTree


class Walker(Definitions):
    """Reads hooks, each as a role with events of its own.

    Args:
        tree: To follow imports with.
    """

    def __init__(self, tree: SourceTree) -> None:
        super().__init__(tree)
        self._scopes: dict[tuple[int, object, object, object], Scope] = {}
        self._round = 0

    def role(self, events: Events, *, loading: bool = False) -> None:
        """What is read from now on belongs to another role."""
        self.events = events
        self.loading = loading
        self._round += 1
        self.forget_calls()

    def read_module(self, scope: Scope, tree: ast.Module) -> None:
        before, loading = self.events, self.loading
        self.events, self.loading = self.imported, False
        self.statements(statements_at_import(tree.body), scope)
        self.events, self.loading = before, loading

    def enter(self, function: Function, arguments: Arguments, site: Site) -> Values:
        self.spend(1 + len(arguments.all) // AT_ONCE, site)
        scope = self._scope_of(function, site)
        if function.node in self.cached:
            plain = Function(function.node, function.path)
            self.events.cached.setdefault(plain, site)
        grown = self._bind_parameters(function, arguments, scope)
        if scope.walked == self._round and not grown:
            return scope.returned
        scope.walked = self._round
        scope.again = True
        if not scope.walking:  # else it calls itself, and is read once more when it has been read
            scope.walking = True
            while scope.again:
                scope.again = False
                self._read_body(function, scope)
            scope.walking = False
        return scope.returned

    def _read_body(self, function: Function, scope: Scope) -> None:
        if isinstance(function.node, ast.Lambda):
            scope.returned |= self.value(function.node.body, scope)
        else:
            self.statements(function.node.body, scope)

    def _scope_of(self, function: Function, site: Site) -> Scope:
        key = (id(self.events), function.node, function.scope, function.receiver)
        scope = self._scopes.get(key)
        if scope is None:
            names = BoundNames(function.node)
            kind = None
            if function.receiver is not None:
                receiver = function.receiver
                kind = self._owner(receiver if isinstance(receiver, Class) else receiver.kind, function)
            label = getattr(function.node, "name", "lambda")
            module = self.globals_of(function.path)
            scope = Scope(
                function.path,
                module.file,
                own=frozenset(names.own),
                shared=frozenset(names.comprehended - names.assigned),
                globals=frozenset(names.globals),
                nonlocals=frozenset(names.nonlocals),
                parent=function.scope or module,
                kind=kind,
                receiver=function.receiver,
                through=(*site.through, label),
            )
            self._scopes[key] = scope
        return scope

    def _owner(self, kind: Class | None, function: Function) -> Class | None:
        """The class of an instance's ancestry that defines a method: where `super()` looks on from."""
        for base in self.ancestry(kind) if kind else ():
            if isinstance(base, Class) and function.node in base.node.body:
                return base
        return kind

    def _bind_parameters(self, function: Function, arguments: Arguments, scope: Scope) -> bool:
        """Returns whether a parameter may stand for something new."""
        args = function.node.args
        positional = [argument.arg for argument in (*args.posonlyargs, *args.args)]
        given = list(arguments.positional)
        if function.receiver is not None:
            given.insert(0, frozenset({function.receiver}))
        outside = scope.parent or scope
        before = dict(scope.names)
        for name, values in zip(positional, given, strict=False):
            self.add_name(scope, name, values)
        rest = frozenset().union(*given[len(positional) :]) if len(given) > len(positional) else NOTHING
        for name in [*positional[len(given) :], *(argument.arg for argument in args.kwonlyargs)]:
            self.add_name(scope, name, arguments.named.get(name, NOTHING) | arguments.others)
        names = {*positional, *(argument.arg for argument in args.kwonlyargs)}
        extra = frozenset().union(*(v for k, v in arguments.named.items() if k not in names))
        for star, values in ((args.vararg, rest | arguments.others), (args.kwarg, extra | arguments.others)):
            if star is not None:
                thing = Thing(star, plain=True)
                self.heap.add(thing, ITEMS, values)
                self.add_name(scope, star.arg, frozenset({thing}))
        defaults = [*args.defaults, *(default for default in args.kw_defaults if default is not None)]
        held = positional[len(positional) - len(args.defaults) :]
        held += [
            argument.arg
            for argument, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)
            if default is not None
        ]
        for name, default in zip(held, defaults, strict=True):
            values = self.value(default, outside)
            self.add_name(scope, name, values)
            self.heap.add(Function(function.node, function.path, function.scope), "__defaults__", values)
        return before != scope.names

    # Statements.

    def statements(self, body: Iterable[ast.stmt], scope: Scope) -> None:
        for node in body:
            self.statement(node, scope)

    def statement(self, node: ast.stmt, scope: Scope) -> None:  # noqa: PLR0912 - one kind of node a branch
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            self.define(node, scope)
        elif isinstance(node, ast.ClassDef):
            self.define_class(node, scope)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            self.import_names(node, scope)
        elif isinstance(node, ast.Assign):
            values = self.value(node.value, scope)
            for target in node.targets:
                self.bind(target, values, scope)
        elif isinstance(node, ast.AnnAssign):
            if node.value is not None:
                self.bind(node.target, self.value(node.value, scope), scope)
        elif isinstance(node, ast.AugAssign):
            before = self.value(ast.copy_location(_loaded(node.target), node.target), scope)
            for value in before:
                if not (isinstance(value, Thing) and value.plain and _counts(node)):
                    self.events.mutates.setdefault(value, self.site(node, scope))
            self.operate(before, scope, self.site(node, scope))
            self.bind(node.target, before | self.value(node.value, scope), scope)
        elif isinstance(node, ast.Delete):
            for target in node.targets:
                self.bind(target, NOTHING, scope)
        elif isinstance(node, ast.For | ast.AsyncFor):
            values = self.value(node.iter, scope)
            values |= self.operate(values, scope, self.site(node, scope))  # what __iter__ and __next__ return
            self.bind(node.target, self.items(values), scope)
        elif isinstance(node, ast.With | ast.AsyncWith):
            for item in node.items:
                values = self.value(item.context_expr, scope)
                values |= self.operate(values, scope, self.site(node, scope))  # what __enter__ returns
                if item.optional_vars is not None:
                    self.bind(item.optional_vars, values, scope)
        elif isinstance(node, ast.Return):
            if node.value is not None:
                scope.returned |= self.value(node.value, scope)
        elif isinstance(node, ast.If | ast.While | ast.Assert):
            self.condition(node.test, scope)
            if isinstance(node, ast.Assert):
                self.all_of((node.msg,), scope)
        elif isinstance(node, ast.Match):
            self._match(node, scope)
        else:
            self.all_of((part for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)), scope)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not scope.place:
            for part in ("body", "orelse", "finalbody"):
                self.statements(getattr(node, part, ()), scope)
            for handler in getattr(node, "handlers", ()):
                self.statements(handler.body, scope)
            if isinstance(node, ast.For | ast.AsyncFor | ast.While):  # what the end binds, the start may read
                self.statements(node.body, scope)

    def _match(self, node: ast.Match, scope: Scope) -> None:
        subject = self.value(node.subject, scope)
        self.operate(subject, scope, self.site(node, scope))
        for case in node.cases:
            if any(
                isinstance(part, ast.MatchClass) for part in ast.walk(case.pattern)
            ):  # it reads properties
                self.call_back(subject, NOTHING, scope, self.site(case.pattern, scope))
            self.bind_pattern(case.pattern, subject | self.heap_all(subject), scope)
            if case.guard is not None:
                self.condition(case.guard, scope)
            self.statements(case.body, scope)

    def heap_all(self, values: Values) -> Values:
        return frozenset().union(*(self.heap.all(value) for value in values))


def _counts(node: ast.AugAssign) -> bool:
    """`n += 1`: what Python's own lists, dicts and sets refuse, so what is counted is a number."""
    number = isinstance(node.value, ast.Constant) and isinstance(node.value.value, int | float)
    return number and not isinstance(node.op, ast.Mult)


def _loaded(target: ast.expr) -> ast.expr:
    """The target of `x += 1` as an expression that is read."""
    if isinstance(target, ast.Name):
        return ast.Name(target.id, ast.Load())
    if isinstance(target, ast.Attribute):
        return ast.Attribute(target.value, target.attr, ast.Load())
    assert isinstance(target, ast.Subscript)
    return ast.Subscript(target.value, target.slice, ast.Load())
