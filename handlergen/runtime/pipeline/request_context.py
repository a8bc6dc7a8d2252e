"""The context (`contextvars`) of a request: a copy of the one that import, setup and load left, in all of its hooks.

Python keeps decimal's precision, numpy's error state (from numpy 2 on) and variables of the module's own there. When
preprocess and predict run in two processes, what a hook has changed travels with the request.
"""

from __future__ import annotations

import contextvars
import decimal
import importlib
import sys
from collections.abc import Callable, Mapping
from contextvars import Context, ContextVar
from typing import Any, NamedTuple, TypeVar

Changes = Mapping[str, Any]
"""Values that hooks have set, by the names under which another process finds the variables."""

_ABSENT = object()
_DECIMAL, _NUMPY = "decimal", "numpy"


class CannotCross(Exception):
    """A hook has set a variable that another process could not find."""


class RequestContexts:
    """Makes the contexts of requests.

    Args:
        base: What import, setup and load left.
    """

    def __init__(self, base: Context) -> None:
        self._base = base
        # Decimal's is an object that hooks change in place: each request has its own.
        self._decimal = any(type(value) is decimal.Context for value in base.values())

    def new(self, changes: Changes | None = None) -> Context:
        """Return a request's own context.

        Args:
            changes: What hooks of the request have set in another process.

        Raises:
            Exception: A variable is of a module that cannot be imported here.
        """
        context = self._base.copy()
        if self._decimal:
            context.run(_own_decimal)
        if changes:
            context.run(_set, changes)
        return context

    def changes(self, context: Context) -> Changes | None:
        """Return what hooks have set in a request's context; None when it is nothing.

        Raises:
            CannotCross: A variable can be found by no name.
        """
        base = self._base
        changed = [variable for variable, value in context.items() if base.get(variable, _ABSENT) is not value]
        return context.run(_values, changed) if changed else None


_T = TypeVar("_T")


def apart(function: Callable[[], _T]) -> _T:
    """Call a function in a copy of this thread's context, which stays as it is.

    Raises:
        BaseException: What the function raises.
    """
    context = contextvars.copy_context()
    context.run(_own_decimal)
    result: _T = context.run(function)
    return result


def _own_decimal() -> None:
    decimal.setcontext(decimal.getcontext().copy())


class _Library(NamedTuple):
    """How to read and set a variable that a library keeps to itself."""

    get: Callable[[], Any]
    set: Callable[[Any], Any]


def _library(name: str) -> _Library:
    if name == _DECIMAL:
        return _Library(decimal.getcontext, decimal.setcontext)
    import numpy

    return _Library(numpy.geterr, lambda state: numpy.seterr(**state))


def _values(variables: list[ContextVar[Any]]) -> Changes:
    changes = {}
    for variable in variables:
        name = _name_of(variable)
        changes[name] = _library(name).get() if name in (_DECIMAL, _NUMPY) else variable.get()
    return changes


def _set(changes: Changes) -> None:
    for name, value in changes.items():
        if name in (_DECIMAL, _NUMPY):
            _library(name).set(value)
            continue
        module, _, attribute = name.partition(":")
        getattr(importlib.import_module(module), attribute).set(value)


_names: dict[ContextVar[Any], str] = {}


def _name_of(variable: ContextVar[Any]) -> str:
    """Return `module:attribute`, under which every process that has imported the module finds a variable."""
    name = _names.get(variable)
    if name is None:
        name = _names[variable] = _search(variable)
    return name


def _search(variable: ContextVar[Any]) -> str:
    if variable.name == "decimal_context":  # Modules/_decimal/_decimal.c, Lib/_pydecimal.py
        return _DECIMAL
    for module_name, module in list(sys.modules.items()):
        for attribute, value in list(getattr(module, "__dict__", {}).items()):
            if value is variable:
                return _NUMPY if module_name.partition(".")[0] == "numpy" else f"{module_name}:{attribute}"
    raise CannotCross(
        f"the context variable {variable.name!r} is no attribute of a module, so that another process cannot find it"
    )
