"""What a hook can reach by name: from its compiled code, through the project's own functions, classes and modules.

Libraries' functions are not followed. Where the code does not say of which object an attribute is read, every module,
class and function of the project that was reached by another way than its own name counts: too much rather than too
little.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib
import importlib.util
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

from .code_reads import Import, reads_of
from .own_files import OwnFiles

_MOST_STEPS = 20_000
_MOST_ITEMS = 500
"""Of one container that are looked at for functions and objects of the project."""
_DEPTH = 4
_HIDDEN = frozenset(("__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__class__"))


Place = tuple[object, str]
"""An owner, by its identity or a module's name, and a name in it."""


class Reached(NamedTuple):
    """A value that a hook can reach.

    Attributes:
        shown: How the source may write it: `TABLE`, `cfg.TABLE`, `Reader.table`.
        through: The functions between the hook and the value.
        value: The object.
    """

    shown: str
    through: tuple[str, ...]
    value: Any


class Reach:
    """What one hook reaches.

    Args:
        hook: The function.
        files: Says what the project's own is.
        served: For a hook that is a method: the class of its first parameter.
        skipped: Methods of that class that a hook does not call by chance: the other hooks, the constructor.

    Attributes:
        values: By owner and name, which tell a place from every other.
        attributes: All names that are read as attributes, of whatever.
        own: The attributes of its first parameter that are read, directly or through methods.
        own_in_full: It may read any of them: `vars(self)`, `getattr(self, name)`.
    """

    def __init__(
        self,
        hook: Any,
        files: OwnFiles,
        *,
        served: type | None = None,
        skipped: Iterable[str] = (),
    ) -> None:
        self.values: dict[Place, Reached] = {}
        self.attributes: set[str] = set()
        self.own: set[str] = set()
        self.own_in_full = False
        self.served = served
        self._hook = getattr(hook, "__name__", "")
        self._files = files
        self._skipped = frozenset(skipped)
        self._passes_itself_on = False
        self._owners: dict[int, tuple[Any, tuple[str, ...]]] = {}
        self._seen: set[tuple[int, bool]] = set()
        self._waiting: deque[tuple[Any, tuple[str, ...], bool]] = deque()
        self._kept: list[Any] = []
        """What has been seen, so that no other object takes its identity."""
        self._waiting.append((hook, (), served is not None))
        self._walk()

    def _walk(self) -> None:
        steps = 0
        known = (-1, -1, -1)
        while steps < _MOST_STEPS:
            while self._waiting and steps < _MOST_STEPS:
                steps += 1
                with contextlib.suppress(Exception):  # an object that does not let itself be looked at
                    self._look(*self._waiting.popleft())
            if self._passes_itself_on:
                self.own |= self.attributes - self._skipped
            now = (len(self.attributes), len(self._owners), len(self.own))
            if now == known:
                return
            known = now
            self._read_owners()

    def _look(self, value: Any, through: tuple[str, ...], method: bool) -> None:
        if (id(value), method) in self._seen:
            return
        self._seen.add((id(value), method))
        self._kept.append(value)
        if isinstance(value, FunctionType):
            self._look_into_function(value, through, method)
        elif isinstance(value, type):
            self._look_into_class(value, through)
        elif isinstance(value, ModuleType):
            if self._files.has_module(value):
                self._owners.setdefault(id(value), (value, through))
        else:
            for inner in self._parts(value, _DEPTH):
                self._waiting.append((inner, through, method))

    def _look_into_function(self, function: FunctionType, through: tuple[str, ...], method: bool) -> None:
        own = self._files.has_function(function)
        cells = _cells(function)
        wrapped = [function.__dict__.get("__wrapped__")]
        if not own:  # a decorator of a library's: what it wraps is ours, what it is made of is not
            wrapped += [each for each in cells.values() if self._is_ours(each)]
        self._waiting.extend((each, through, method) for each in wrapped if each is not None)
        reads = reads_of(function.__code__)
        parameters = function.__code__.co_varnames[: function.__code__.co_argcount]
        if method and parameters:
            self.own |= reads.after.get(parameters[0], frozenset())
            self._passes_itself_on |= own and parameters[0] in reads.bare
            self.own_in_full |= own and reads.reflects and parameters[0] in reads.bare
            if own and "super" in reads.names:
                self.own |= reads.attributes
        if not own:
            return
        here = through if function.__name__ == self._hook else (*through, function.__name__)
        self.attributes |= reads.attributes
        self._owners.setdefault(id(function), (function, through))
        for name, inner in cells.items():
            if name != "__class__":
                is_wrapped = method and isinstance(inner, FunctionType)
                shown = f"{name} of {function.__name__}"
                self._note((id(function), name), shown, here, inner, method=is_wrapped)
        defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        for number, inner in enumerate(defaults):
            self._note((id(function), f"default {number}"), f"a default of {function.__name__}", here, inner)
        for name in reads.names:
            self._read_global(function, name, reads.after.get(name, frozenset()), name in reads.bare, here)
        for each in reads.imports:
            for module in self._imported(each, function):
                self._waiting.append((module, here, False))

    def _is_ours(self, value: Any) -> bool:
        return isinstance(value, FunctionType) and self._files.has_function(value)

    def _read_global(
        self, function: FunctionType, name: str, after: Iterable[str], bare: bool, through: tuple[str, ...]
    ) -> None:
        space = function.__globals__
        if name not in space:
            if hasattr(builtins, name):
                self.values.setdefault(("builtins", name), Reached(name, through, getattr(builtins, name)))
            return
        value = space[name]
        is_module = isinstance(value, ModuleType)
        place = (space.get("__name__", ""), name)
        self.values.setdefault(place, Reached(name, through, value))
        if is_module and not bare:
            self._read_attributes(value, after, name, through)
        elif value is self.served:
            self.own |= set(after)
        else:
            self._waiting.append((value, through, False))

    def _look_into_class(self, kind: type, through: tuple[str, ...]) -> None:
        if kind is self.served:
            return
        for each in kind.__mro__:
            if self._files.has_class(each):
                self._owners.setdefault(id(each), (each, through))
                for name, value in list(vars(each).items()):
                    if name.startswith("__") and name not in _HIDDEN:
                        self._waiting.append((value, through, False))

    def _read_owners(self) -> None:
        for owner, through in list(self._owners.values()):
            self._read_attributes(owner, self.attributes, _name_of(owner), through)
        if self.served is not None:
            for each in self.served.__mro__[:-1]:
                named = {name: vars(each)[name] for name in self.own if name in vars(each)}
                for name, value in named.items():
                    if self._files.has_class(each):
                        self._note((id(each), name), f"{each.__name__}.{name}", (), value, method=True)
                    else:
                        self._waiting.append((value, (), True))

    def _read_attributes(
        self, owner: Any, names: Iterable[str], shown: str, through: tuple[str, ...]
    ) -> None:
        """The attributes of a module, class or function that some code names."""
        if isinstance(owner, ModuleType) and not self._files.has_module(owner):
            return
        space = vars(owner)
        place = owner.__name__ if isinstance(owner, ModuleType) else id(owner)
        for name in names:
            if name in space and name not in _HIDDEN:
                self._note((place, name), f"{shown}.{name}", through, space[name])
                value = space[name]
                if isinstance(value, ModuleType) and self._files.has_module(value):
                    self._owners.setdefault(id(value), (value, through))

    def _note(
        self,
        place: Place,
        shown: str,
        through: tuple[str, ...],
        value: Any,
        *,
        method: bool = False,
    ) -> None:
        if place not in self.values:
            self.values[place] = Reached(shown, through, value)
        self._waiting.append((value, through, method))

    def _parts(self, value: Any, depth: int) -> Iterator[Any]:
        """Functions, classes and modules inside a value: what wraps one, containers, objects of the project."""
        if isinstance(value, staticmethod | classmethod | MethodType):
            yield value.__func__
        if isinstance(value, MethodType):
            yield from self._inside(value.__self__, depth)
        elif isinstance(value, property):
            yield from (each for each in (value.fget, value.fset) if each is not None)
        elif isinstance(value, functools.partial):
            for inner in (value.func, *value.args, *value.keywords.values()):
                yield from self._inside(inner, depth)
        elif isinstance(value, functools.cached_property):
            yield value.func
        elif isinstance(value, Mapping | list | tuple | set | frozenset | deque):
            items = value.values() if isinstance(value, Mapping) else value
            for inner in list(islice(items, _MOST_ITEMS)):
                yield from self._inside(inner, depth)
        elif self._files.has_class(type(value)):
            yield type(value)
            for inner in list(getattr(value, "__dict__", {}).values()):
                yield from self._inside(inner, depth)
        else:  # functools.lru_cache, say
            wrapped = getattr(value, "__dict__", {}).get("__wrapped__")
            if isinstance(wrapped, FunctionType):
                yield wrapped

    def _inside(self, value: Any, depth: int) -> Iterator[Any]:
        if isinstance(value, FunctionType | type | ModuleType):
            yield value
        elif depth and not isinstance(value, str | bytes | int | float | None):
            yield from self._parts(value, depth - 1)

    def _imported(self, wanted: Import, function: FunctionType) -> Iterator[ModuleType]:
        """The project's modules that an import inside a function names.

        They are imported now, as the worker's first request would: what `load` does with them can be seen only so.
        """
        package = function.__globals__.get("__package__") or ""
        name = wanted.module
        if wanted.level:
            with contextlib.suppress(ImportError):
                name = importlib.util.resolve_name("." * wanted.level + name, package)
        for each in (name, *(f"{name}.{inner}" for inner in wanted.names)):
            module = sys.modules.get(each) or self._import(each)
            if module is not None and self._files.has_module(module):
                yield module

    def _import(self, name: str) -> ModuleType | None:
        try:
            spec = importlib.util.find_spec(name)
            if spec is None or not spec.origin or not self._files.has_file(spec.origin):
                return None
            return importlib.import_module(name)
        except (Exception, SystemExit):  # it is in a try statement, or never reached
            return None


def _cells(function: FunctionType) -> dict[str, Any]:
    """What a function has of those that it was made in."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # it is still empty
            found[name] = cell.cell_contents
    return found


def _name_of(owner: Any) -> str:
    name: str = owner.__name__
    return name.rpartition(".")[2]
