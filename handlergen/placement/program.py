"""The project's modules as the reading sees them: what their globals stand for, classes and their bases."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path

from handlergen.placement.knowledge import hands_on, is_standard
from handlergen.placement.values import (
    CONTEXT,
    NOTHING,
    OF_CONTEXT,
    Accelerator,
    Builtin,
    Class,
    Events,
    Function,
    Heap,
    Library,
    Place,
    Scope,
    Site,
    Thing,
    Value,
    Values,
)
from handlergen.source_module import SourceModule
from handlergen.source_tree import SourceTree

_CALLED_OTHERWISE = (
    "__init__",
    "__new__",
    "__post_init__",
    "__call__",
    "__getattr__",
    "__bases__",
    "__metaclass__",
    "__keywords__",
    "__decorated__",
    "__instance__",
    "__doc__",
)
"""Fields of a class that no operator calls; some are this reading's own."""
_OTHER_GLOBALS = ("__file__", "__name__", "__doc__", "__package__", "__spec__")

_MOST_EFFORT = 20_000
"""Calls followed altogether; more is a sign of something that this reading does not end on."""


class TooMuchToFollow(Exception):
    """The source calls more than is followed; `site` is where the reading was."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.site = site


class Program:
    """Everything that is found while a project's hooks are read, whichever of them is being read.

    Attributes:
        heap: What objects hold.
        events: What the current role does.
        loading: What is read now builds the model: a method of a library's object is taken to change it, unless its
            name surely says otherwise.
        imported: What the imports of the modules do.
        cached: Functions that keep their results.
    """

    loading = False
    _effort = 0

    def __init__(self, tree: SourceTree) -> None:
        self.heap = Heap()
        for name, thing in OF_CONTEXT.items():
            self.heap.add(CONTEXT, name, frozenset({thing}))
        self.events = Events()
        self.imported = Events()
        self.cached: set[ast.AST] = set()
        self._tree = tree
        self._modules: dict[Path, Scope] = {}
        self._sources: dict[Path, SourceModule] = {}
        self._foreign: set[str] = set()
        self._searching: set[tuple[Path, str]] = set()

    def spend(self, effort: int, site: Site) -> None:
        """Count the calls that are followed and the objects that are handed on.

        Raises:
            TooMuchToFollow: There was no end of them.
        """
        self._effort += effort
        if self._effort > _MOST_EFFORT:
            raise TooMuchToFollow(site)

    def module(self, source: SourceModule) -> Scope:
        """A module's globals; its body is read when it is first asked for, as an import would run it."""
        scope = self._modules.get(source.path)
        if scope is None:
            scope = Scope(source.path, source.file, place=True)
            self._modules[source.path] = scope
            self._sources[source.path] = source
            self.read_module(scope, source.tree)
        return scope

    def read_module(self, scope: Scope, tree: ast.Module) -> None:
        raise NotImplementedError

    def reread_modules(self) -> None:
        """Once more, now that more is known of what is in the objects."""
        for path, scope in list(self._modules.items()):
            self.read_module(scope, self._sources[path].tree)

    @property
    def names(self) -> int:
        """How much the globals stand for, all together; grows as long as there is something new."""
        return sum(len(values) for scope in self._modules.values() for values in scope.names.values())

    def tree_of(self, module: Scope) -> ast.Module:
        return self._sources[module.path].tree

    def globals_of(self, path: Path) -> Scope:
        return self._modules[path]

    def opened(self, path: Path | None) -> Scope | None:
        """The globals of a file of the project; None when there is none or it cannot be parsed."""
        source = self._tree.open(path) if path else None
        return self.module(source) if isinstance(source, SourceModule) else None

    def imported_scope(self, scope: Scope, node: ast.ImportFrom) -> Scope | None:
        return self.opened(self._tree.local_file(self._sources[scope.path], node))

    def submodule(self, scope: Scope, node: ast.ImportFrom, name: str) -> Scope | None:
        """The file `a/b.py` for `from a import b`."""
        inner = ast.ImportFrom(f"{node.module}.{name}" if node.module else name, node.names, node.level)
        return self.opened(self._tree.local_file(self._sources[scope.path], inner))

    def beneath(self, package: Path, name: str) -> Scope | None:
        """The file or package `name` in a package's directory."""
        for path in (package / name / "__init__.py", package / f"{name}.py"):
            if path.is_file():
                return self.opened(path)
        return None

    def inside_namespace(self, scope: Scope, name: str) -> tuple[Scope, list[str]] | None:
        """The file that a dotted name begins with, and the rest of it, for a directory without `__init__.py`."""
        parts = name.split(".")
        bases = (self._tree.root, scope.path.parent)
        if parts[0] in self._foreign or not any((base / parts[0]).is_dir() for base in bases):
            self._foreign.add(parts[0])
            return None
        for length in range(len(parts) - 1, 1, -1):
            inner = self.importable(scope, ".".join(parts[:length]))
            if inner is not None:
                return inner, parts[length:]
        return None

    def hidden(self, name: str) -> bool:
        """Is there a file of the project that a changed `sys.path` may make a library of that name?"""
        return any(
            next(self._tree.root.rglob(found), None) for found in (f"{name}.py", f"{name}/__init__.py")
        )

    def special_methods(self, kind: Class) -> set[str]:
        """Names such as `__getitem__` that a class or its bases in the project define."""
        return {
            name
            for base in self.ancestry(kind)
            if isinstance(base, Class)
            for name in self.heap.fields(base)
            if name.startswith("__") and name not in _CALLED_OTHERWISE
        }

    def importable(self, scope: Scope, name: str) -> Scope | None:
        source = self._sources[scope.path]
        beside = None if source.is_package else scope.path.parent
        return self.opened(self._tree.importable(tuple(name.split(".")), beside=beside))

    def read_global(self, path: Path, name: str, site: Site) -> Values:
        """What a module's global stands for, with what it was imported from; noted as read."""
        scope = self._modules[path]
        place = Place("global", name, path)
        found = scope.names.get(name)
        if found is None:
            return self._through_star_imports(path, name, site)
        self.events.reads.setdefault(place, site)
        if any(isinstance(value, Accelerator) for value in found) and self.events is not self.imported:
            self.events.device.setdefault(name, site)
        return found

    def note_library(self, name: str, site: Site) -> None:
        self.events.libraries.setdefault(name, site)

    def _through_star_imports(self, path: Path, name: str, site: Site) -> Values:
        if (path, name) in self._searching:
            return NOTHING
        self._searching.add((path, name))
        found: set[Value] = set()
        source = self._sources[path]
        for node in source.star_imports:
            scope = self.imported_scope(self._modules[path], node)
            if scope is not None:
                found |= self.read_global(scope.path, name, site)
            elif not hasattr(builtins, name):
                found.add(Library(f"{node.module}.{name}"))
        self._searching.discard((path, name))
        if found:
            return frozenset(found)
        if hasattr(builtins, name) or name in _OTHER_GLOBALS:
            return frozenset({Builtin(name)})
        # Bound nowhere that was read: `global X` in a function makes it, or nobody does.
        self.events.reads.setdefault(Place("global", name, path), site)
        return NOTHING

    def ancestry(self, kind: Class, seen: frozenset[Class] = frozenset()) -> Iterator[Class | Library]:
        """A class and its bases in the order in which Python looks, the project's and others'."""
        yield kind
        for base in self.heap.get(kind, "__bases__"):
            if isinstance(base, Class) and base not in seen and base != kind:
                yield from self.ancestry(base, seen | {kind})
            elif isinstance(base, Library):
                yield base

    def foreign_base(self, kind: Class) -> str | None:
        """A base that is not read; `object` and typing's aside."""
        for base in self.ancestry(kind):
            if isinstance(base, Library) and not base.name.startswith(("abc.", "typing.")):
                return base.name
        return None

    def is_network(self, kind: Class | None) -> bool:
        """Is it an `nn.Module`, whose base calls no more of it than is known?"""
        return kind is not None and (self.foreign_base(kind) or "").startswith("torch.nn.")

    def is_single(self, kind: Class) -> bool:
        """May all who make an instance get the same one, as the source does not show otherwise?"""
        for base in self.ancestry(kind):
            for value in self.heap.get(base, "__metaclass__") | self.heap.get(base, "__decorated__"):
                if not isinstance(value, Library) or not hands_on(value.name):
                    return True
        return False

    def metaclass_methods(self, kind: Class, name: str) -> Values:
        """Methods of the project's metaclasses, on the class that they make."""
        found: Values = NOTHING
        for base in self.ancestry(kind):
            for metaclass in self.heap.get(base, "__metaclass__"):
                if isinstance(metaclass, Class):
                    found |= self.bound(self.member(metaclass, name) or NOTHING, kind)
        return found

    def member(self, kind: Class, name: str, *, after: Class | None = None) -> Values | None:
        """What a class or its bases in the project define under a name; None when none does.

        Args:
            after: Only the bases behind this one, as `super()` looks.
        """
        behind = after is None
        for base in self.ancestry(kind):
            if behind and isinstance(base, Class) and self.heap.has(base, name):
                return self.heap.get(base, name)
            behind = behind or base == after
        return None

    def bound(self, values: Values, receiver: Thing | Class) -> Values:
        """Functions of a class as attributes of its instance: methods."""
        return frozenset(
            Function(value.node, value.path, value.scope, receiver)
            if isinstance(value, Function) and value.receiver is None and not self.is_static(value)
            else value
            for value in values
        )

    @staticmethod
    def is_static(function: Function) -> bool:
        return "staticmethod" in decorators(function.node)


def decorators(node: ast.AST) -> set[str]:
    """The last names of a function's decorators."""
    found = set()
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        for item in node.decorator_list:
            inner = item.func if isinstance(item, ast.Call) else item
            found.add(inner.attr if isinstance(inner, ast.Attribute) else getattr(inner, "id", ""))
    return found


def note_import(events: Events, name: str, site: Site) -> None:
    """An import inside a function, which looks at `sys.path` when it runs."""
    if not is_standard(name):
        events.imports.setdefault(name, site)
