"""What a call does: the project's own functions and classes are followed, all others are `unread_calls`."""

from __future__ import annotations

import ast

from handlergen.placement.knowledge import (
    CACHES,
    IMMUTABLE,
    MAKES_CUDA,
    MAKES_TEXT,
    PASSES_WHAT_IT_HOLDS,
    TENSOR,
    changes_nothing,
    hands_out,
    is_tensor,
    is_view,
    maker_of_result,
    sounds_like_change,
)
from handlergen.placement.lookups import kind_of
from handlergen.placement.unread_calls import Arguments, Call, UnreadCalls
from handlergen.placement.values import (
    CONTEXT,
    ITEMS,
    MODEL,
    NOTHING,
    SELF,
    Builtin,
    Class,
    Function,
    Library,
    Place,
    Scope,
    Super,
    Thing,
    Value,
    Values,
)


class Calls(UnreadCalls):
    """Evaluates calls; walking a function's body is `walker.Walker`'s matter."""

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
            found |= self.one(function, call)
        return found

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
                self.operate(values, scope, self.site(keyword.value, scope))
                found.others |= self.items(values)
            else:
                found.named[keyword.arg] = values
        return found

    def one(  # noqa: PLR0911 - one kind of function a branch
        self, function: Value, call: Call
    ) -> Values:
        _, arguments, scope, site = call
        if isinstance(function, Function):
            return self.enter(function, arguments, site)
        if isinstance(function, Class):
            return self._instance(function, call)
        if isinstance(function, Builtin):
            return self.builtin(function.name, call)
        if isinstance(function, Library):
            return self.library(function.name, call)
        if isinstance(function, Thing):
            if function.site == SELF:
                self.events.reads.setdefault(Place("self", "__call__"), site)
            members = self.member(function.kind, "__call__") if function.kind else None
            if members:
                found: Values = NOTHING
                for method in self.bound(members, function):
                    found |= self.one(method, call)
                return found
            if self.is_network(function.kind):  # it calls forward
                forward = self.attribute_of(frozenset({function}), "forward", scope, site)
                return self.unknown(call, to="").union(*(self.one(method, call) for method in forward))
            if function.kind is not None:
                self.run_inherited(function, arguments.all, scope, site)
            elif function != MODEL:  # functools.partial, transforms.Compose and the like
                callbacks = frozenset(value for value in arguments.all if isinstance(value, Function | Class))
                self.heap.add(function, ITEMS, callbacks)
                passed = self.heap.all(function) if function.maker in PASSES_WHAT_IT_HOLDS else NOTHING
                self.call_back((function,), arguments.all | passed, scope, site)
            self.escape(arguments.all, scope, site, ast.unparse(call.node.func))
            layer = function.maker.startswith("torch.nn.") and not self.heap.may_call(function)
            return self.unknown(call, to=TENSOR if layer else "")
        return NOTHING

    def _instance(self, kind: Class, call: Call) -> Values:
        _, arguments, scope, site = call
        made = self._made_by_new(kind, call)
        for value in made:
            if isinstance(value, Thing) and value.kind is not None and kind in self.ancestry(value.kind):
                self._construct(value, kind, call)
        if self.is_single(kind):  # whoever calls it later may get the same object
            self.heap.add(kind, "__instance__", made)
            for method in self.metaclass_methods(kind, "__call__"):
                self.invoke(method, arguments.all, scope, site)
        return made

    def _made_by_new(self, kind: Class, call: Call) -> Values:
        """What `__new__` returns; something new where it is not the project's, or cannot be followed."""
        _, arguments, _, site = call
        found: Values = NOTHING
        for method in self.member(kind, "__new__") or ():
            if isinstance(method, Function):
                receiver = Function(method.node, method.path, method.scope, kind)
                found |= self.enter(receiver, arguments, site)
        return found or frozenset({Thing(kind.node if self.is_single(kind) else call.node, kind)})

    def _construct(self, thing: Thing, kind: Class, call: Call) -> None:
        node, arguments, scope, site = call
        for method in self.bound(self.member(kind, "__post_init__") or NOTHING, thing):
            self.invoke(method, arguments.all, scope, site)
        constructor = self.member(kind, "__init__")
        if constructor is None:  # a dataclass, or a base that is not read
            self.heap.add(thing, "*", arguments.all)
            self.escape(arguments.all, scope, site, ast.unparse(node.func))
            factories = (value for value in self.heap.all(kind) if isinstance(value, Thing) and value.opaque)
            self.call_back(factories, arguments.all, scope, site)
            if self.foreign_base(kind):
                self.run_inherited(thing, arguments.all, scope, site)
            return
        for method in self.bound(constructor, thing):
            if isinstance(method, Function):
                self.enter(method, arguments, site)

    def _method(self, base: Values, name: str, call: Call) -> Values:
        node, arguments, scope, site = call
        if name in MAKES_CUDA or (name == "to" and self.names_device(arguments.all)):
            self.events.device.setdefault(f".{name}({'' if name in MAKES_CUDA else '...'})", site)
        found: Values = NOTHING
        for value in base:
            members = self.attribute_of(frozenset({value}), name, scope, site)
            known = self.heap.has(value, name) or not isinstance(value, Thing)
            known = known or self._defines(value, name)
            if known:
                for member in members:
                    found |= self.one(member, call)
            if isinstance(value, Builtin):
                found |= self._method_of_type(name, call)
            if isinstance(value, Super) and name == "__new__" and not members:
                kind = kind_of(value.receiver)
                found |= {Thing(kind.node if self.is_single(kind) else node, kind)}
            if isinstance(value, Thing) and not known:
                found |= self._unknown_method(value, name, call)
        if not base:
            self.events.methods.setdefault(name, site)
            self.escape(arguments.all, scope, site, ast.unparse(node.func))
            if name in MAKES_TEXT:
                return NOTHING
            if sounds_like_change(name) and isinstance(node.func, ast.Attribute):
                self.changed_unseen(node.func.value, scope, site)
            return self.made_of(node, arguments.all, arguments.all) or frozenset({Thing(node, plain=True)})
        return found

    def _method_of_type(self, name: str, call: Call) -> Values:
        """`dict.update(state, ...)`, `dict.fromkeys(...)`."""
        arguments = call.arguments
        if name == "__new__":  # object.__new__(cls)
            return frozenset(Thing(call.node, kind) for kind in arguments.all if isinstance(kind, Class))
        if not changes_nothing(name):
            for changed in arguments.positional[:1]:
                self.events.mutates.update(dict.fromkeys(changed, call.site))
        thing = Thing(call.node, plain=True)
        self.heap.add(thing, ITEMS, arguments.all | self.items(arguments.all))
        return NOTHING if name in MAKES_TEXT else frozenset({thing})

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
        if thing.kind is not None and thing.site != SELF:
            self.run_inherited(thing, arguments.all, scope, site)
        elif thing.opaque:
            self.call_back((thing,), arguments.all, scope, site)
        if thing.site == SELF:
            if name.startswith(("register_", "add_module")) and node.args:
                named = node.args[0].value if isinstance(node.args[0], ast.Constant) else "*"
                self.assign(frozenset({thing}), str(named), frozenset({Thing(node)}), scope, site)
            return held
        kept = self.data(arguments.all) if is_tensor(thing.maker) else arguments.all
        if self._changes(thing, name):
            self.events.mutates.setdefault(thing, site)
            self.heap.add(thing, ITEMS, kept)
        elif changes_nothing(name, loading=self.loading):
            made = Thing(node, plain=thing.plain, maker=maker_of_result(thing.maker, name))
            self.heap.add(made, ITEMS, kept | (held if thing.plain else NOTHING))
            if not thing.opaque:
                return kept | held | {made} if hands_out(name) else frozenset({made})
            if hands_out(name):
                return kept | held | {made, thing}
            return frozenset({made, thing}) if is_view(name) else frozenset({made})
        # Of an object that is not known, itself stands for its parts: `network.eval()` is the network.
        return kept | {thing} | (held if thing.plain or hands_out(name) else NOTHING)

    def _changes(self, thing: Thing, method: str) -> bool:
        if thing.maker in IMMUTABLE:
            return False
        if is_tensor(thing.maker):
            return method.endswith("_") or method == "backward"
        if changes_nothing(method, loading=self.loading):
            return False
        return thing.plain or self.loading or sounds_like_change(method)


def is_cached(decorator: Value) -> bool:
    return isinstance(decorator, Library) and decorator.name in CACHES
