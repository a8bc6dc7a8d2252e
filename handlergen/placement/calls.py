"""What a call does: the project's functions are followed, others are known by their names or not at all."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import NamedTuple

from handlergen.placement.expressions import Expressions
from handlergen.placement.knowledge import (
    ASKS_ONLY,
    CACHES,
    CHANGES_ARGUMENTS,
    DYNAMIC,
    FILLS,
    FRESH,
    MAKES_CUDA,
    changes_nothing,
    is_gpu_library,
    is_standard,
    sounds_like_change,
)
from handlergen.placement.values import (
    CONTEXT,
    ITEMS,
    NOTHING,
    SELF,
    Accelerator,
    Builtin,
    Class,
    Function,
    Library,
    Module,
    Place,
    Scope,
    Site,
    Super,
    Thing,
    Value,
    Values,
)

_HOLDS_DEVICE = ("device", "device_map", "map_location", "providers")


@dataclass
class Arguments:
    """What a call is given.

    Attributes:
        positional: In order, up to the first `*`.
        named: By keyword.
        others: What stands behind `*` and `**`, or is given in a way that is not known.
    """

    positional: list[Values] = field(default_factory=list)
    named: dict[str, Values] = field(default_factory=dict)
    others: Values = NOTHING

    @property
    def all(self) -> Values:
        return self.others.union(*self.positional, *self.named.values())


class Call(NamedTuple):
    """A call that is being read."""

    node: ast.Call
    arguments: Arguments
    scope: Scope
    site: Site


class Calls(Expressions):
    """Evaluates calls; walking a function's body is `walker.Walker`'s matter."""

    loading = False
    """What is read now builds the model: an unknown method of a global is taken to change it."""

    def enter(self, function: Function, arguments: Arguments, site: Site) -> Values:
        """Read a function's body with these arguments; what it may return."""
        raise NotImplementedError

    def call(self, node: ast.Call, scope: Scope) -> Values:
        call = Call(node, self._arguments(node, scope), scope, self.site(node, scope))
        if isinstance(node.func, ast.Attribute):
            dotted = self._library_chain(node.func, scope)
            if dotted is None:
                base = self.value(node.func.value, scope)
                return self._method(base, node.func.attr, call)
            functions = dotted
        else:
            functions = self.value(node.func, scope)
        found: Values = NOTHING
        for function in functions:
            found |= self._one(function, call)
        return found

    def invoke(self, function: Value, arguments: Values, scope: Scope, site: Site) -> Values:
        """A call with arguments of which only the objects are known."""
        if isinstance(function, Function):
            return self.enter(function, Arguments(others=arguments), site)
        if isinstance(function, Thing | Class) and function != CONTEXT:
            kind = function if isinstance(function, Class) else function.kind
            members = self.member(kind, "__call__") if kind and isinstance(function, Thing) else None
            for method in self.bound(members, function) if members and isinstance(function, Thing) else ():
                self.invoke(method, arguments, scope, site)
        return NOTHING

    def escape(self, values: Values, scope: Scope, site: Site, to: str) -> None:
        """Objects are handed to code that is not read: their functions may be called, with one another."""
        for value in values:
            if _is_self(value):
                self.events.dynamic.setdefault(f"`self`, handed to {to}", site)
        given = frozenset(value for value in values if not isinstance(value, Function))
        for value in values:
            if isinstance(value, Function):
                self.invoke(value, given | self.items(given), scope, site)
            elif isinstance(value, Thing) and value.kind is not None and value.site != SELF:
                self._all_methods(value, given, scope, site)
            elif isinstance(value, Thing) and value.plain:
                for inner in self.heap.all(value):
                    if isinstance(inner, Function):
                        self.invoke(inner, given, scope, site)

    def _all_methods(self, thing: Thing, given: Values, scope: Scope, site: Site) -> None:
        """Code that is not read may call any method of an object."""
        assert thing.kind is not None
        for base in self.ancestry(thing.kind):
            for name in self.heap.fields(base) if isinstance(base, Class) else ():
                for method in self.bound(self.heap.get(base, name), thing):
                    if isinstance(method, Function) and name != "__init__":
                        self.invoke(method, given, scope, site)

    def _arguments(self, node: ast.Call, scope: Scope) -> Arguments:
        found = Arguments()
        spread = False
        for argument in node.args:
            values = self.value(argument, scope)
            if isinstance(argument, ast.Starred):
                spread = True
            if spread:
                found.others |= values
            else:
                found.positional.append(values)
        for keyword in node.keywords:
            values = self.value(keyword.value, scope)
            if keyword.arg is None:
                found.others |= self.items(values)
            else:
                found.named[keyword.arg] = values
        return found

    def _one(  # noqa: PLR0911 - one kind of function a branch
        self, function: Value, call: Call
    ) -> Values:
        _, arguments, scope, site = call
        if isinstance(function, Function):
            return self.enter(function, arguments, site)
        if isinstance(function, Class):
            return self._instance(function, call)
        if isinstance(function, Builtin):
            return self._builtin(function.name, call)
        if isinstance(function, Library):
            return self._library(function.name, call)
        if isinstance(function, Thing):
            if function.site == SELF:
                self.events.reads.setdefault(Place("self", "__call__"), site)
            members = self.member(function.kind, "__call__") if function.kind else None
            if members:
                found: Values = NOTHING
                for method in self.bound(members, function):
                    found |= self._one(method, call)
                return found
            for held in self.heap.all(function):  # functools.partial and the like
                if isinstance(held, Function):
                    self.invoke(held, arguments.all | self.heap.all(function), scope, site)
            if function.kind is not None and members is None:  # torch.nn.Module calls forward
                for method in self.bound(self.member(function.kind, "forward") or NOTHING, function):
                    self.invoke(method, arguments.all, scope, site)
            self.escape(arguments.all, scope, site, ast.unparse(call.node.func))
            return self._unknown(call, to="")
        return NOTHING

    def _instance(self, kind: Class, call: Call) -> Values:
        node, arguments, scope, site = call
        thing = Thing(node, kind)
        for name in ("__new__", "__post_init__"):
            for method in self.bound(self.member(kind, name) or NOTHING, thing):
                self.invoke(method, arguments.all, scope, site)
        constructor = self.member(kind, "__init__")
        if constructor is None:  # a dataclass, or a base that is not read
            self.heap.add(thing, "*", arguments.all)
            self.escape(arguments.all, scope, site, ast.unparse(node.func))
        else:
            for method in self.bound(constructor, thing):
                if isinstance(method, Function):
                    self.enter(method, arguments, site)
        return frozenset({thing})

    def _method(self, base: Values, name: str, call: Call) -> Values:
        node, arguments, scope, site = call
        if name in MAKES_CUDA or (name == "to" and self._names_device(arguments.all)):
            self.events.device.setdefault(f".{name}({'' if name in MAKES_CUDA else '...'})", site)
        found: Values = NOTHING
        for value in base:
            members = self.attribute_of(frozenset({value}), name, scope, site)
            known = self.heap.has(value, name) or not isinstance(value, Thing)
            known = known or self._defines(value, name)
            if known:
                for member in members:
                    found |= self._one(member, call)
            if isinstance(value, Builtin) and not changes_nothing(name):  # dict.update(state, ...)
                for changed in call.arguments.positional[:1]:
                    self.events.mutates.update(dict.fromkeys(changed, call.site))
            if isinstance(value, Thing) and not known:
                found |= self._unknown_method(value, name, call)
        if not base:
            self.events.methods.setdefault(name, site)
            self.escape(arguments.all, scope, site, ast.unparse(node.func))
            return self._unknown(call, to="") if arguments.all else NOTHING
        return found

    def _defines(self, value: Value, name: str) -> bool:
        kind = value.kind if isinstance(value, Thing) else None
        return kind is not None and self.member(kind, name) is not None

    def _unknown_method(self, thing: Thing, name: str, call: Call) -> Values:
        """A method of a list, a dict, or an object that some library made."""
        node, arguments, scope, site = call
        self.events.methods.setdefault(name, site)
        if thing == CONTEXT:
            return NOTHING
        held = self.heap.all(thing)
        self.escape(arguments.all, scope, site, ast.unparse(node.func))
        if thing.site == SELF:
            if name.startswith(("register_", "add_module")) and node.args:
                named = node.args[0].value if isinstance(node.args[0], ast.Constant) else "*"
                self.store(frozenset({thing}), str(named), frozenset({Thing(node)}), site)
            return held
        if changes_nothing(name):
            return held | arguments.all
        if thing.plain or self.loading or sounds_like_change(name):
            self.events.mutates.setdefault(thing, site)
            self.heap.add(thing, ITEMS, arguments.all)
        return held | arguments.all | {thing}

    def _builtin(  # noqa: PLR0911 - one builtin a branch
        self, name: str, call: Call
    ) -> Values:
        node, arguments, scope, site = call
        given = arguments.positional
        if name in ("getattr", "hasattr", "setattr", "delattr") and given:
            return self._by_name(name, call)
        if name == "super":
            return self._super(given, scope)
        if name == "type" and len(given) == 1:
            return frozenset(
                value.kind for value in given[0] if isinstance(value, Thing) and value.kind is not None
            )
        shown = [value for value in arguments.all if isinstance(value, Module | Class) or _is_self(value)]
        if name in DYNAMIC or (name in ("vars", "dir") and (shown or (name == "vars" and not given))):
            self.events.dynamic.setdefault(f"`{name}()`", site)
            return self.items(arguments.all)
        if name in ("isinstance", "issubclass", "id", "callable", "hash"):
            return NOTHING
        if name == "next":
            for value in arguments.all:
                self.events.mutates.setdefault(value, site)
        self.escape(arguments.all, scope, site, f"{name}()")
        self.operate(arguments.all, scope, site)
        if name in FRESH:
            return NOTHING
        thing = Thing(node, plain=True)
        self.heap.add(thing, ITEMS, arguments.all | self.items(arguments.all))
        return frozenset({thing})

    def _by_name(self, builtin: str, call: Call) -> Values:
        """`getattr(x, "name")` and its like."""
        node, arguments, scope, site = call
        target = arguments.positional[0]
        written = node.args[1] if len(node.args) > 1 else None
        if isinstance(written, ast.Constant) and isinstance(written.value, str):
            name = written.value
            if builtin in ("setattr", "delattr"):
                values = arguments.positional[2] if len(arguments.positional) > 2 else NOTHING
                self.store(target, name, values, site)
                return NOTHING
            rest = arguments.positional[2] if len(arguments.positional) > 2 else NOTHING
            return self.attribute_of(target, name, scope, site) | rest
        for value in target:
            if isinstance(value, Thing) and value.kind is None and value.site not in (SELF, "context"):
                continue
            if isinstance(value, Library) and builtin == "getattr":
                continue
            self.events.dynamic.setdefault(f"`{builtin}` with a computed name", site)
        return frozenset().union(*(self.heap.all(value) for value in target))

    def store(self, owners: Values, name: str, values: Values, site: Site) -> None:
        """`owner.name = value`, or `owner[...] = value` with the name `[]`."""
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
            elif not isinstance(owner, Builtin | Accelerator):
                changed = (
                    Library(f"{owner.name}.{name}".removesuffix(f".{ITEMS}"))
                    if isinstance(owner, Library)
                    else owner
                )
                self.events.mutates.setdefault(changed, site)
                self.heap.add(owner, name, values)

    @staticmethod
    def _super(given: list[Values], scope: Scope) -> Values:
        current: Scope | None = scope
        while current is not None and current.kind is None:
            current = current.parent
        if current is None or current.kind is None or current.receiver is None:
            return NOTHING
        return frozenset({Super(current.kind, current.receiver)})

    def _library(self, name: str, call: Call) -> Values:
        node, arguments, scope, site = call
        self.events.calls.setdefault(name, site)
        owner, _, method = name.rpartition(".")
        if name == "torch.device":
            computed = not all(isinstance(argument, ast.Constant) for argument in node.args)
            if computed or self._names_device(arguments.all):
                if self.events is not self.imported:
                    self.events.device.setdefault("torch.device(...)", site)
                return frozenset({Accelerator()})
            return NOTHING
        if name in CHANGES_ARGUMENTS:
            for value in arguments.all:
                self.events.mutates.setdefault(value, site)
        if name == "importlib.import_module":
            return self._import_module(node, scope, site)
        if "." in owner and method in FILLS:
            self.events.mutates.setdefault(Library(owner), site)
        held = [arguments.named[key] for key in _HOLDS_DEVICE if key in arguments.named]
        if (
            any(self._names_device(values) for values in held)
            or (is_gpu_library(name) and name not in ASKS_ONLY)
            or (name.startswith("torch.") and self._names_device(arguments.all))
        ):
            self.events.device.setdefault(f"{name}(...)", site)
        if name in ("sys._getframe", "inspect.currentframe", "inspect.stack", "gc.get_objects"):
            self.events.dynamic.setdefault(f"`{name}()`", site)
        self.escape(arguments.all, scope, site, name)
        return self._unknown(call, to=name)

    def _import_module(self, node: ast.Call, scope: Scope, site: Site) -> Values:
        named = node.args[0] if node.args else None
        if (
            isinstance(named, ast.Constant)
            and isinstance(named.value, str)
            and not named.value.startswith(".")
        ):
            inner = self.importable(scope, named.value)
            return frozenset({Module(inner.path) if inner else Library(named.value)})
        self.events.dynamic.setdefault("`import_module` with a computed name", site)
        return NOTHING

    def _unknown(self, call: Call, to: str) -> Values:
        """Something new, which may hold on to what it was given."""
        thing = Thing(call.node, plain=is_standard(to))
        self.heap.add(thing, ITEMS, call.arguments.all)
        return frozenset({thing})

    def _names_device(self, values: Values) -> bool:
        return any(isinstance(value, Accelerator) for value in self.heap.reach(values))


def _is_self(value: Value) -> bool:
    return isinstance(value, Thing) and value.site == SELF


def is_cached(decorator: Value) -> bool:
    return isinstance(decorator, Library) and decorator.name in CACHES
