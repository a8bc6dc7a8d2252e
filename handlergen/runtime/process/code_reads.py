"""What a function's compiled code reads by name: globals, attributes, imports. Nothing is called."""

from __future__ import annotations

import dis
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType

_GLOBALS = frozenset(("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"))
_ATTRIBUTES = frozenset(("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "IMPORT_FROM"))
_WRITES = frozenset(("STORE_ATTR", "DELETE_ATTR"))
_NO_USE = frozenset(("type", "isinstance", "id"))
"""What may take an object without reading attributes of the instance."""
_BY_TEXT = frozenset(("getattr", "hasattr", "vars", "globals", "attrgetter", "methodcaller", "__dict__"))
"""With one of these in it, the code's texts may be names."""


@dataclass(frozen=True)
class Import:
    """`import MODULE` or `from ..MODULE import NAMES` inside a function.

    Attributes:
        level: How many dots.
        module: Empty for `from . import`.
        names: What is asked of it.
    """

    level: int
    module: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Reads:
    """What one piece of code reads, the functions and classes that are written inside it included.

    Attributes:
        names: Globals, or builtins.
        after: The attributes that stand right behind a variable, global or local: `cfg.TOKENS`, `self.labels`.
        bare: Variables that are used in another way too: passed on, called, given another name.
        attributes: All names that are read as attributes, of whatever.
        imports: Inside the code.
        reflects: It may ask for attributes by names that it computes.
    """

    names: frozenset[str]
    after: dict[str, frozenset[str]]
    bare: frozenset[str]
    attributes: frozenset[str]
    imports: tuple[Import, ...]
    reflects: bool


@lru_cache(maxsize=4096)
def reads_of(code: CodeType) -> Reads:
    """Read a code object."""
    names: set[str] = set()
    after: defaultdict[str, set[str]] = defaultdict(set)
    bare: set[str] = set()
    attributes: set[str] = set()
    imports: list[Import] = []
    texts: set[str] = set()
    for part in _parts(code):
        instructions = [each for each in dis.get_instructions(part) if each.opname != "EXTENDED_ARG"]
        padded = [None, None, *instructions, None]
        for earlier, before, this, behind in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
            assert this is not None
            if this.opname in _ATTRIBUTES:
                attributes.add(this.argval)
            elif this.opname == "IMPORT_NAME":
                imports.append(_imported(earlier, before, this))
            for variable in _loaded(this, part):
                if this.opname in _GLOBALS:
                    names.add(variable)
                if behind is not None and variable == _last(this) and behind.opname in _ATTRIBUTES:
                    after[variable].add(behind.argval)
                elif behind is not None and behind.opname in _WRITES and variable == _last(this):
                    pass
                elif _is_called(before, behind):
                    after[variable].add("__call__")
                elif before is None or before.argval not in _NO_USE:
                    bare.add(variable)
        texts |= {text for text in part.co_consts if isinstance(text, str) and text.isidentifier()}
    reflects = bool(_BY_TEXT & (names | attributes))
    if reflects:
        names |= texts
        attributes |= texts
        bare |= set(after)
    return Reads(
        frozenset(names),
        {variable: frozenset(found) for variable, found in after.items()},
        frozenset(bare),
        frozenset(attributes),
        tuple(imports),
        reflects,
    )


def _parts(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts(constant)


def _loaded(instruction: dis.Instruction, code: CodeType) -> tuple[str, ...]:
    """The variables whose values it takes; Python 3.13 takes two at once, and a closure's cells like locals."""
    name, value = instruction.opname, instruction.argval
    if name in _GLOBALS:
        return (value,)
    if name == "STORE_FAST_LOAD_FAST":
        return (value[1],)
    if not name.startswith(("LOAD_FAST", "LOAD_DEREF")):
        return ()
    found = value if isinstance(value, tuple) else (value,)
    cells = code.co_cellvars if name.startswith("LOAD_FAST") else ()
    return tuple(each for each in found if each not in cells)


def _is_called(before: dis.Instruction | None, behind: dis.Instruction | None) -> bool:
    """Whether a variable is what a call calls. (Not told apart from another use in Python 3.10.)"""
    beside = behind if sys.version_info >= (3, 13) else before
    return beside is not None and beside.opname == "PUSH_NULL"


def _last(instruction: dis.Instruction) -> str:
    value = instruction.argval
    last: str = value[-1] if isinstance(value, tuple) else value
    return last


def _imported(level: dis.Instruction | None, names: dis.Instruction | None, this: dis.Instruction) -> Import:
    wanted = names.argval if names is not None else None
    dots = level.argval if level is not None and isinstance(level.argval, int) else 0
    return Import(dots, this.argval, tuple(wanted) if isinstance(wanted, tuple) else ())
