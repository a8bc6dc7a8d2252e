"""Calls of code that is not read: builtins and libraries are known by their names, or not at all."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import NamedTuple

from handlergen.placement.callbacks import Callbacks, is_self
from handlergen.placement.knowledge import (
    ASKS_ONLY,
    ASKS_VALUES,
    CHANGES_ARGUMENTS,
    DYNAMIC,
    FILLS,
    FRESH,
    REACHES_NAMES,
    SETS_DEFAULTS,
    fills_arguments,
    is_gpu_library,
    is_standard,
    is_tensor,
)
from handlergen.placement.values import (
    CONTEXT,
    ITEMS,
    NOTHING,
    SELF,
    Accelerator,
    Class,
    Function,
    Library,
    Module,
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


class UnreadCalls(Callbacks):
    """What code that is not read may do with what it is given; `calls.Calls` reads the project's own."""

    def enter(self, function: Function, arguments: Arguments, site: Site) -> Values:
        """Read a function's body with these arguments; what it may return."""
        raise NotImplementedError

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

    def assign(self, owners: Values, name: str, values: Values, scope: Scope, site: Site) -> None:
        raise NotImplementedError

    def builtin(  # noqa: PLR0911 - one builtin a branch
        self, name: str, call: Call
    ) -> Values:
        """A call of one of Python's own functions; what it may return."""
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
        shown = [value for value in arguments.all if isinstance(value, Module | Class) or is_self(value)]
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
        if name == "open":
            self.note_library("os.getcwd", site)
        if name in ASKS_VALUES:
            self.ask_values(arguments.all | self.items(arguments.all), f"{name}()", site)
        if name in FRESH:
            return self.differing(arguments.all)
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
                self.assign(target, name, values, scope, site)
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

    @staticmethod
    def _super(given: list[Values], scope: Scope) -> Values:
        current: Scope | None = scope
        while current is not None and current.kind is None:
            current = current.parent
        if current is None or current.kind is None or current.receiver is None:
            return NOTHING
        return frozenset({Super(current.kind, current.receiver)})

    def library(self, name: str, call: Call) -> Values:
        """A call of a library's function, known by its dotted name; what it may return."""
        node, arguments, scope, site = call
        self.events.calls.setdefault(name, site)
        owner = name.rpartition(".")[0]
        if name == "torch.device":
            computed = not all(isinstance(argument, ast.Constant) for argument in node.args)
            if computed or self.names_device(arguments.all):
                if self.events is not self.imported:
                    self.events.device.setdefault("torch.device(...)", site)
                return frozenset({Accelerator()})
            return NOTHING
        if owner == "math":
            self.ask_values(arguments.all, f"{name}()", site)
        self._note_changes(name, arguments, site)
        if name == "pathlib.Path":
            self.note_library("os.getcwd", site)
        if name == "importlib.import_module":
            return self.module_named(node.args[0] if node.args else None, scope, site, "import_module")
        if name == "sys.modules.get" and node.args:
            return self.module_named(node.args[0], scope, site, "sys.modules")
        held = [arguments.named[key] for key in _HOLDS_DEVICE if key in arguments.named]
        if (
            any(self.names_device(values) for values in held)
            or (is_gpu_library(name) and name not in ASKS_ONLY)
            or (name.startswith("torch.") and self.names_device(arguments.all))
        ):
            self.events.device.setdefault(f"{name}(...)", site)
        if name in REACHES_NAMES or name.startswith("sys.modules."):
            self.events.dynamic.setdefault(f"`{name}()`", site)
        self.escape(arguments.all, scope, site, name)
        return self.unknown(call, to=name)

    def _note_changes(self, name: str, arguments: Arguments, site: Site) -> None:
        """What a library's function changes: `nltk.data.path.append(x)`, `np.add(a, b, out=c)`."""
        owner, _, function = name.rpartition(".")
        changed = set(arguments.named.get("out", NOTHING))
        if name in CHANGES_ARGUMENTS:
            changed |= arguments.all
        elif fills_arguments(function, loading=self.loading):
            given = NOTHING.union(*arguments.positional)
            changed |= {value for value in given if isinstance(value, Thing) and not value.plain}
        if "." in owner and function in FILLS:
            changed.add(Library(owner))
        if name in SETS_DEFAULTS:
            changed.add(Library(SETS_DEFAULTS[name]))
        for value in changed:
            self.events.mutates.setdefault(value, site)

    def unknown(self, call: Call, to: str) -> Values:
        """Something new, which may hold on to what it was given; a tensor to nothing that can be called."""
        thing = Thing(call.node, plain=is_standard(to), maker=to)
        self.heap.add(thing, ITEMS, self.data(call.arguments.all) if is_tensor(to) else call.arguments.all)
        return frozenset({thing})

    def names_device(self, values: Values) -> bool:
        """Whether an accelerator is among the objects or in what they hold."""
        return any(isinstance(value, Accelerator) for value in self.heap.reach(values))
