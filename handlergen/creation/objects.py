"""What makes an object again: its constructor's arguments, and the attributes that a new object does not have."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from handlergen.errors import HandlergenError

MISSING = object()
VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def found_arguments(value: Any, given: Mapping[str, Any] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield names and values of a constructor's arguments, where they differ from the defaults; MISSING: not found.

    An attribute of the parameter's name has it. For a switch whose attribute is a tensor or None (torch's `bias`), the
    argument is whether there is one.

    Args:
        given: Arguments that the caller knows.
    """
    given = given or {}
    parameters = _parameters(type(value))
    for each in parameters:
        if each.name in given:
            yield each.name, given[each.name]
            continue
        attribute = getattr(value, each.name, getattr(value, f"_{each.name}", MISSING))
        if isinstance(each.default, bool) and not isinstance(attribute, bool) and attribute is not MISSING:
            attribute = attribute is not None
        if each.name in ("device", "dtype") and each.default is None:
            continue
        if attribute is MISSING or inspect.ismethod(attribute):
            if each.default is each.empty:
                yield each.name, MISSING
        elif each.default is each.empty or not same(attribute, each.default):
            yield each.name, attribute
    for name in given:
        if name not in {each.name for each in parameters}:
            yield name, given[name]


def _parameters(kind: type) -> list[inspect.Parameter]:
    """Return the named parameters of a constructor; of the next base's where it has only `*args, **kwargs`."""
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        try:
            own = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        except (TypeError, ValueError):
            return []
        if not own or any(each.kind not in VARIABLE for each in own):
            return [each for each in own if each.kind not in VARIABLE]
    return []


def constructed(value: Any) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Return the arguments that make such an object again, the attributes in which a new one differs, and that one.

    A new one is made to compare: a vocabulary that was filled since is an attribute.

    Raises:
        HandlergenError: An argument is not found on the object, or the constructor fails.
    """
    kind = type(value).__qualname__.rpartition(".")[2]
    found = dict(found_arguments(value))
    if missing := ", ".join(name for name, argument in found.items() if argument is MISSING):
        raise HandlergenError(
            f"a {kind} cannot be written down: its constructor's {missing} cannot be found on the object",
            hint=f"Keep it as an attribute of that name, or make the {kind} inside of the function.",
        )
    try:
        fresh = type(value)(**found)
    except Exception as error:
        raise HandlergenError(
            f"a {kind} cannot be written down: {kind}({', '.join(found)}) raises {type(error).__name__}: {error}",
            hint=f"Keep the constructor's arguments as attributes, or make the {kind} inside of the function.",
        ) from error
    return found, dict(differing(value, fresh)), fresh


def differing(value: Any, fresh: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes in which a newly made object is not as another one, with the other's values."""
    other = vars(fresh)
    for name, attribute in vars(value).items():
        if name not in other or not same(attribute, other[name]):
            yield name, attribute


def same(one: Any, other: Any) -> bool:
    """Return whether two values are equal; objects and functions without an equality of their own: part by part."""
    if one is other:
        return True
    try:
        return type(one) is type(other) and _equal(one, other)
    except Exception:  # arrays in lists, whose comparison is no truth value
        return False


def _equal(one: Any, other: Any) -> bool:
    if inspect.isfunction(one):
        cells = zip(one.__closure__ or (), other.__closure__ or (), strict=True)
        return one.__code__ == other.__code__ and all(same(a.cell_contents, b.cell_contents) for a, b in cells)
    if hasattr(one, "shape"):
        return one.shape == other.shape and bool((one == other).all())
    # A class without an equality of its own has that of `object`.
    if getattr(type(one), "__eq__", None) is getattr(object, "__eq__", None) and hasattr(one, "__dict__"):
        return vars(one).keys() == vars(other).keys() and not list(differing(one, other))
    return bool(one == other)
