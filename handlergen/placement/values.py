"""What a name may stand for, as far as the source says: the values that the reading of `walker` works with.

The reading is an abstract interpretation: every statement of a function counts, in whatever order, and an expression
stands for the set of all objects it may be. Nothing is ever executed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from handlergen.source_module import Function as FunctionNode

ITEMS = "[]"
"""The field of an object that stands for all its items."""


@dataclass(frozen=True)
class Class:
    """A class of the project."""

    node: ast.ClassDef
    path: Path


@dataclass(frozen=True)
class Thing:
    """An object, told from others by where the source makes it.

    Attributes:
        site: The expression that makes it, or a word for what the runtime makes (`self`, `context`, `model`).
        kind: Its class, when that is one of the project's.
        plain: Made of plain values, as Python or its standard library makes them.
        maker: The library's function that made it, by its dotted name; what came of such an object has the first
            part of that name.
    """

    site: ast.AST | str
    kind: Class | None = None
    plain: bool = False
    maker: str = ""

    @property
    def opaque(self) -> bool:
        """It may hold objects that the source does not show: they are taken for the object itself."""
        return self.kind is None and (not self.plain or bool(self.maker))


@dataclass(frozen=True)
class Function:
    """A function of the project; `scope` is what it closes over, `receiver` what its first parameter is bound to."""

    node: FunctionNode
    path: Path
    scope: Scope | None = None
    receiver: Thing | Class | None = None


@dataclass(frozen=True)
class Super:
    """`super()` in a method of `kind`, called on `receiver`."""

    kind: Class
    receiver: Thing | Class


@dataclass(frozen=True)
class Module:
    """A file of the project, imported as a whole."""

    path: Path


@dataclass(frozen=True)
class Library:
    """Anything reached from an import that is not of this project: `torch.nn.Linear`."""

    name: str


@dataclass(frozen=True)
class Builtin:
    """A name that Python has itself."""

    name: str


@dataclass(frozen=True)
class Accelerator:
    """A device that is not the CPU, or a name of one: `"cuda:0"`, `torch.device("cuda")`."""


SELF = "self"


@dataclass(frozen=True)
class Place:
    """What can be bound anew: a module's global, an attribute of the served instance, or of the context.

    Attributes:
        kind: `global`, `self` or `context`.
        name: The name or the attribute.
        path: The module of a global.
    """

    kind: str
    name: str
    path: Path | None = None

    @property
    def shown(self) -> str:
        return self.name if self.kind == "global" else f"{self.kind}.{self.name}"


@dataclass(frozen=True)
class Site:
    """Where something happens: file for messages, line, and the functions through which the hook comes there."""

    file: str
    line: int
    through: tuple[str, ...] = ()


@dataclass(eq=False)
class Scope:
    """The names of one function in one role, or of a module.

    Attributes:
        path: The file.
        names: What each local name may stand for.
        own: Local names; None: all that are assigned (a module, a class).
        shared: Names that only a comprehension binds: they may be globals elsewhere in the function.
        parent: The function around it.
        place: It is a module, whose names are places.
        globals, nonlocals: What the function declares so.
        kind: The class whose method it is.
        receiver: What the method is called on.
        returned: What the function may return.
        through: The functions between the hook and here, this one included.
        walked: The round in which its body was last read.
        walking, again: It is being read, and has to be read once more: its parameters may stand for more.
    """

    path: Path
    file: str
    names: dict[str, Values] = field(default_factory=dict)
    own: frozenset[str] | None = None
    shared: frozenset[str] = frozenset()
    globals: frozenset[str] = frozenset()
    nonlocals: frozenset[str] = frozenset()
    parent: Scope | None = None
    place: bool = False
    kind: Class | None = None
    receiver: Thing | Class | None = None
    returned: Values = frozenset()
    through: tuple[str, ...] = ()
    walked: int = 0
    walking: bool = False
    again: bool = False


Value: TypeAlias = Class | Thing | Function | Super | Module | Library | Builtin | Accelerator | Scope
"""A scope is one as what a function closes over."""
Values: TypeAlias = frozenset[Value]

NOTHING: Values = frozenset()
CONTEXT = Thing("context")
MODEL = Thing("model")
OF_CONTEXT = {
    "config": Thing("context.config", plain=True, maker="json.loads"),
    "model_dir": Thing("context.model_dir", plain=True, maker="pathlib.Path"),
}
"""What the context holds besides texts, and what all processes share (runtime/context.py)."""


@dataclass
class Events:
    """What one role (a hook and all it calls) does; the first site of each counts.

    Attributes:
        reads: Places it reads.
        rebinds: Places it binds anew.
        mutates: Objects it changes, or may change.
        libraries: Libraries' names it mentions.
        calls: Libraries' functions it calls.
        methods: Methods it calls on objects whose class is not the project's.
        dynamic: What cannot be read from the source, in words.
        device: What touches an accelerator, in words.
        valued: What asks a tensor for its value, in words.
        cached: Functions with a cache that it calls.
        imports: Imports inside functions of what is not the standard library.
    """

    reads: dict[Place, Site] = field(default_factory=dict)
    rebinds: dict[Place, Site] = field(default_factory=dict)
    mutates: dict[Value, Site] = field(default_factory=dict)
    libraries: dict[str, Site] = field(default_factory=dict)
    calls: dict[str, Site] = field(default_factory=dict)
    methods: dict[str, Site] = field(default_factory=dict)
    dynamic: dict[str, Site] = field(default_factory=dict)
    device: dict[str, Site] = field(default_factory=dict)
    valued: dict[str, Site] = field(default_factory=dict)
    cached: dict[Function, Site] = field(default_factory=dict)
    imports: dict[str, Site] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Grows as long as there is something new."""
        return sum(len(found) for found in vars(self).values())


class Heap:
    """What objects hold, by field. It only grows."""

    def __init__(self) -> None:
        self._fields: dict[Value, dict[str, Values]] = {}
        self._callers: set[Value] = set()
        self.size = 0

    def add(self, owner: Value, name: str, values: Values) -> None:
        fields = self._fields.setdefault(owner, {})
        before = fields.get(name, NOTHING)
        fields[name] = before | values
        self.size += len(fields[name]) - len(before)
        if owner not in self._callers and any(map(self.may_call, values)):
            self._callers.add(owner)
            self.size += 1

    def may_call(self, value: Value) -> bool:
        """Does it hold, or is it, something of the project that can be called? Quick, where `reach` is not."""
        return (
            value in self._callers
            or isinstance(value, Function | Class)
            or getattr(value, "kind", None) is not None
        )

    def get(self, owner: Value, name: str) -> Values:
        fields = self._fields.get(owner, {})
        return fields.get(name, NOTHING) | fields.get("*", NOTHING)

    def has(self, owner: Value, name: str) -> bool:
        return name in self._fields.get(owner, {})

    def fields(self, owner: Value) -> list[str]:
        return list(self._fields.get(owner, ()))

    def all(self, owner: Value) -> Values:
        return frozenset().union(*self._fields.get(owner, {}).values())

    def reach(self, values: Iterable[Value]) -> set[Value]:
        """All objects that can be come at from some, themselves included."""
        found: set[Value] = set()
        waiting = list(values)
        while waiting:
            value = waiting.pop()
            if value in found:
                continue
            found.add(value)
            waiting.extend(self.all(value))
            waiting.extend(_beside(value))
        return found


def _beside(value: Value) -> Iterator[Value]:
    if isinstance(value, Thing) and value.kind is not None:
        yield value.kind
    if isinstance(value, Function) and value.receiver is not None:
        yield value.receiver
    if isinstance(value, Function) and value.scope is not None:
        yield value.scope
    if isinstance(value, Scope) and not value.place:
        for values in list(value.names.values()):
            yield from values
        if value.parent is not None and not value.parent.place:
            yield value.parent
