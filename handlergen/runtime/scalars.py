"""From a decoded value to text, a number, a date and the like, or an array: the plain kinds that records consist of."""

from __future__ import annotations

import datetime
import decimal
import math
import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any

Place = tuple[str | int, ...]
"""Where a value stands inside the input: keys and indices."""

Reader = Callable[[Any, Place], Any]
"""Converts a value at a place; raises ValidationError."""

_TRUE = frozenset(("true", "1", "yes", "on"))
_FALSE = frozenset(("false", "0", "no", "off"))
_MOST = 20  # errors that a message names


class ValidationError(Exception):
    """The input is not what the annotation says: status 400, with the field errors.

    Args:
        errors: Place and message of each.
    """

    status_code = 400

    def __init__(self, errors: list[tuple[Place, str]]) -> None:
        self.errors = errors
        lines = [f"{'.'.join(map(str, place))}: {text}" if place else text for place, text in errors[:_MOST]]
        if len(errors) > _MOST:
            lines.append(f"and {len(errors) - _MOST} more")
        self.detail = "; ".join(lines)
        super().__init__(self.detail)


def reader_of(kind: Any) -> Reader | None:
    """What reads a plain kind or an array; None for any other."""
    return SCALARS.get(kind) or _array(kind)


def unchanged(value: Any, _place: Place) -> Any:
    """Reads what has no annotation, or one that says nothing of values."""
    return value


def wrong(wanted: str, value: Any, place: Place) -> ValidationError:
    """Names the kind of what came, never the value: it may be large, or secret."""
    return ValidationError([(place, f"wanted {wanted}, got {_kind(value)}")])


def _kind(value: Any) -> str:
    kinds: tuple[tuple[Any, str], ...] = (
        (bool, "a truth value"), (str, "text"), (int | float, "a number"), (bytes, "bytes"),
        (type(None), "null"), (list | tuple, "a list"), (Mapping, "an object"),
    )  # fmt: skip
    return next((name for kind, name in kinds if isinstance(value, kind)), type(value).__name__)


def _array(kind: Any) -> Reader | None:
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None and kind is numpy.ndarray:
        make: Callable[[Any], Any] = numpy.asarray
    elif torch is not None and kind is torch.Tensor:
        make = torch.as_tensor
    else:
        return None

    def read(value: Any, place: Place) -> Any:
        try:
            array = make(value)
        except (ValueError, TypeError, RuntimeError, OverflowError):
            array = None
        if array is None or getattr(array.dtype, "kind", "f") in "OSU":
            raise wrong("an array of numbers, each row of the same length", value, place)
        return array

    return read


def _text(value: Any, place: Place) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise wrong("text in UTF-8", value, place) from None
    raise wrong("text", value, place)


def _bytes(value: Any, place: Place) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    raise wrong("bytes or text", value, place)


def _whole(value: Any, place: Place) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        if isinstance(value, float) and value == math.floor(value):
            return int(value)
        if isinstance(value, str | bytes) and len(value) < 4000:
            return int(value)
    except (ValueError, OverflowError):
        pass
    raise wrong("a whole number", value, place)


def _number(value: Any, place: Place) -> float:
    try:
        if isinstance(value, float | int | str | bytes) and not isinstance(value, bool):
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise wrong("a number", value, place)


def _truth(value: Any, place: Place) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).lower() if isinstance(value, str | int) else ""
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise wrong("true or false", value, place)


def _nothing(value: Any, place: Place) -> None:
    if value is not None:
        raise wrong("null", value, place)


def _from_text(make: Callable[[str], Any], wanted: str, kind: type) -> Reader:
    def read(value: Any, place: Place) -> Any:
        if isinstance(value, kind):
            return value
        try:
            return make(value if isinstance(value, str) else str(value))
        except (ValueError, ArithmeticError):
            raise wrong(wanted, value, place) from None

    return read


def _iso(text: str) -> datetime.datetime:
    # Python 3.10 does not read the Z that JSON's dates usually end in.
    return datetime.datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)


SCALARS: dict[Any, Reader] = {
    str: _text,
    bytes: _bytes,
    bool: _truth,
    int: _whole,
    float: _number,
    type(None): _nothing,
    datetime.datetime: _from_text(_iso, "a date and time (ISO 8601)", datetime.datetime),
    datetime.date: _from_text(datetime.date.fromisoformat, "a date (ISO 8601)", datetime.date),
    datetime.time: _from_text(datetime.time.fromisoformat, "a time (ISO 8601)", datetime.time),
    uuid.UUID: _from_text(uuid.UUID, "a UUID", uuid.UUID),
    decimal.Decimal: _from_text(decimal.Decimal, "a number", decimal.Decimal),
    Path: _from_text(Path, "a path", PurePath),
}
