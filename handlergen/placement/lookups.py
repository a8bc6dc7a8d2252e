"""What names and attributes stand for."""

from __future__ import annotations

import ast

from handlergen.placement.knowledge import DESCRIBES_TENSORS, is_gpu_library, is_tensor
from handlergen.placement.program import Program, decorators
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
    Place,
    Scope,
    Site,
    Super,
    Thing,
    Value,
    Values,
)

_HIDDEN = (
    "__dict__",
    "__globals__",
    "__builtins__",
    "__subclasses__",
    "__getattribute__",
    "__code__",
    "__closure__",
)


class Lookups(Program):
    """Looks up names and attributes; other expressions are `expressions.Expressions`'s matter."""

    def value(self, node: ast.expr, scope: Scope) -> Values:
        raise NotImplementedError

    def invoke(self, function: Value, arguments: Values, scope: Scope, site: Site) -> Values:
        raise NotImplementedError

    def site(self, node: ast.AST, scope: Scope) -> Site:
        return Site(scope.file, getattr(node, "lineno", 0), scope.through)

    def name(self, name: str, scope: Scope, site: Site) -> Values:
        """What a name may stand for, looked for from the inside out."""
        found: Values = NOTHING
        current: Scope | None = scope
        while current is not None and not current.place and name not in current.globals:
            if current.own is None:  # the body of a class
                if name in current.names:
                    return current.names[name]
            elif name in current.own:
                found |= current.names.get(name, NOTHING)
                if name not in current.shared:
                    return found
            current = current.parent
        return found | self.read_global(scope.path, name, site)

    def is_global(self, name: str, scope: Scope) -> bool:
        """Does a name stand for a global, and for nothing of the functions around it?"""
        current: Scope | None = scope
        while current is not None and not current.place and name not in current.globals:
            if name in (current.names if current.own is None else current.own):
                return False
            current = current.parent
        return True

    def changed_unseen(self, node: ast.expr, scope: Scope, site: Site) -> None:
        """What an expression stands for is not known, but it is changed: then what the expression begins with is."""
        step = node
        while not isinstance(node, ast.Name):
            step = node
            if isinstance(node, ast.Attribute | ast.Subscript):
                node = node.value
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                node = node.func.value
            else:
                return
        if not self.is_global(node.id, scope):
            return
        values = self.name(node.id, scope, site)
        if not values:
            self.events.rebinds.setdefault(Place("global", node.id, scope.path), site)
        for value in values:
            if isinstance(value, Module) and isinstance(step, ast.Attribute):
                self.events.rebinds.setdefault(Place("global", step.attr, value.path), site)
            elif isinstance(value, Thing | Class):
                self.events.mutates.setdefault(value, site)

    def module_named(self, name: ast.expr | None, scope: Scope, site: Site, by: str) -> Values:
        """The module that is asked for by its name: `sys.modules[__name__]`."""
        if isinstance(name, ast.Name) and name.id == "__name__":
            return frozenset({Module(scope.path)})
        if isinstance(name, ast.Constant) and isinstance(name.value, str) and not name.value.startswith("."):
            inner = self.importable(scope, name.value)
            return frozenset({Module(inner.path) if inner else Library(name.value)})
        self.events.dynamic.setdefault(f"`{by}` with a computed name", site)
        return NOTHING

    def attribute(self, node: ast.Attribute, scope: Scope) -> Values:
        dotted = self._library_chain(node, scope)
        if dotted is not None:
            return dotted
        base = self.value(node.value, scope)
        return self.attribute_of(base, node.attr, scope, self.site(node, scope))

    def _library_chain(self, node: ast.Attribute, scope: Scope) -> Values | None:
        """`torch.cuda.is_available`, noted by its whole name; None when it is no chain that begins with a library."""
        names = [node.attr]
        base = node.value
        while isinstance(base, ast.Attribute):
            names.append(base.attr)
            base = base.value
        if not isinstance(base, ast.Name):
            return None
        first = self.name(base.id, scope, self.site(base, scope))
        if len(first) != 1:
            return None
        (only,) = first
        if not isinstance(only, Library):
            return None
        name = ".".join((only.name, *reversed(names)))
        inner = self.inside_namespace(scope, name)
        if inner is not None:
            values: Values = frozenset({Module(inner[0].path)})
            for attribute in inner[1]:
                values = self.attribute_of(values, attribute, scope, self.site(node, scope))
            return values
        self.note_library(name, self.site(node, scope))
        return frozenset({Library(name)})

    def note_library(self, name: str, site: Site) -> None:
        super().note_library(name, site)
        if is_gpu_library(name) and self.events is not self.imported:
            self.events.device.setdefault(name, site)

    def attribute_of(self, values: Values, name: str, scope: Scope, site: Site) -> Values:
        found: set[Value] = set()
        for value in values:
            found |= self._one_attribute(value, name, scope, site)
        return frozenset(found)

    def _one_attribute(self, value: Value, name: str, scope: Scope, site: Site) -> Values:  # noqa: PLR0911
        if isinstance(value, Thing) and value == CONTEXT:
            self.events.reads.setdefault(Place("context", name), site)
            if name == "device" and self.events is not self.imported:
                self.events.device.setdefault("context.device", site)
            return self.heap.get(CONTEXT, name)
        if name in _HIDDEN and not isinstance(value, Library | Accelerator):
            self.events.dynamic.setdefault(f"`{name}`", site)
            return self.heap.all(value)
        if name == "__class__" and isinstance(value, Thing) and value.kind:
            return frozenset({value.kind})
        if isinstance(value, Thing):
            return self._of_thing(value, name, scope, site)
        if isinstance(value, Class):
            return self.bound_to_class(value, name)
        if isinstance(value, Super):
            members = self.member(kind_of(value.receiver), name, after=value.kind)
            if members is None and isinstance(value.receiver, Thing) and value.receiver.site == SELF:
                self.events.reads.setdefault(Place("self", name), site)  # of a base that is not read
            return self.bound(members, value.receiver) if members else NOTHING
        if isinstance(value, Module):
            inner = self.globals_of(value.path)
            if name not in inner.names:
                package = value.path.parent if value.path.name == "__init__.py" else None
                submodule = self.beneath(package, name) if package else None
                if submodule:
                    return frozenset({Module(submodule.path)})
                hook = inner.names.get("__getattr__", NOTHING)
                return self.read_global(value.path, name, site).union(
                    *(self.invoke(function, NOTHING, scope, site) for function in hook)
                )
            return self.read_global(value.path, name, site)
        if isinstance(value, Library):
            self.note_library(f"{value.name}.{name}", site)
            return frozenset({Library(f"{value.name}.{name}")})
        return self.heap.get(value, name) if isinstance(value, Function) else NOTHING

    def _of_thing(self, thing: Thing, name: str, scope: Scope, site: Site) -> Values:
        if thing.site == SELF:
            self.events.reads.setdefault(Place("self", name), site)
        own = self.heap.get(thing, name)
        members = self.member(thing.kind, name) if thing.kind else None
        if members is None:
            if thing.kind is None:
                if is_tensor(thing.maker) and name in DESCRIBES_TENSORS:
                    return NOTHING
                inside = self.heap.get(thing, ITEMS)  # what another attribute holds is not in this one
                return own | inside | ({thing} if thing.opaque else NOTHING)
            hook = self.member(thing.kind, "__getattr__")
            for function in self.bound(hook, thing) if hook else ():
                own |= self.invoke(function, NOTHING, scope, site)
            return own
        found = set(own)
        for value in self.bound(members, thing):
            if isinstance(value, Function) and decorators(value.node) & {"property", "cached_property"}:
                found |= self.invoke(value, NOTHING, scope, site)
            elif isinstance(value, Thing) and value.kind is not None and self.member(value.kind, "__get__"):
                for method in self.bound(self.member(value.kind, "__get__") or NOTHING, value):
                    found |= self.invoke(method, frozenset({thing}), scope, site)
            else:
                found.add(value)
        return frozenset(found)

    def bound_to_class(self, kind: Class, name: str) -> Values:
        members = self.member(kind, name) or NOTHING
        foreign = self.foreign_base(kind) or ""
        if not members and foreign:  # its base's, which may make an instance of it
            return frozenset({kind})
        if foreign.startswith("enum."):  # its constants are instances
            members |= {Thing(kind.node, kind)}
        return frozenset(
            Function(value.node, value.path, value.scope, kind)
            if isinstance(value, Function) and "classmethod" in decorators(value.node)
            else value
            for value in members
        )


def kind_of(receiver: Thing | Class) -> Class:
    kind = receiver if isinstance(receiver, Class) else receiver.kind
    assert kind is not None  # super() is only made where there is one
    return kind
