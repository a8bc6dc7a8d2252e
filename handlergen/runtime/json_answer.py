"""Answers as compact JSON.

Three ways, each taken only if the one before could not do it: orjson (if it is installed), the standard
library's C encoder, and a walk in Python that repairs what has a JSON meaning (NaN, keys that are no text) and
names the place of what has none.

With and without orjson the text is the same but for numbers below 0.0001, which the standard library writes as
`1e-05` and orjson as `0.00001`: the same number, in the fewest digits that give it back.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
from collections.abc import Callable
from typing import Any

from .failures import EncodeError
from .plain import ARRAY_CONVERTERS, converter_of, element_count, finite_list, numpy_array

orjson: Any = None
with contextlib.suppress(ImportError):  # optional; the standard library takes its place
    orjson = importlib.import_module("orjson")
_OPTIONS: int = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME if orjson else 0

MAX_DEPTH = 250
"""Levels of nesting that an answer may have in any case (orjson stops at 254)."""

_PLACE = b"\0"  # where an array's text goes; JSON text never has this byte
_SMALL = 64  # elements; below, orjson's call for a single array costs more than its list

_HINTS = {
    "bytes": "encode it as text (base64), or return bytes alone",
    "bytearray": "encode it as text (base64), or return bytes alone",
    "generator": "return a list",
    "coroutine": "await it",
    "Image": "return the image alone, or its bytes as base64 text",
}


def dump(value: Any, nan: str) -> bytes:
    """`value` as compact UTF-8 JSON.

    Args:
        value: Anything with a JSON meaning, see `plain.converter_of`.
        nan: `null`, or `error`: then a NaN or infinity is refused.

    Raises:
        EncodeError: Names the type and the place of what cannot be encoded.
    """
    if orjson is not None:
        try:
            body = _by_orjson(value)
        except (TypeError, ValueError, RecursionError):  # JSONEncodeError is a TypeError
            pass
        else:
            if nan == "null" or b"null" not in body:  # orjson writes NaN as null
                return body
    try:
        return _ENCODERS[nan](value).encode("utf-8", "backslashreplace")
    except (TypeError, ValueError, RecursionError):
        pass
    return _Walk(nan).dump(value)


def _by_orjson(value: Any) -> bytes:
    """Large arrays are encoded apart and put in their places at the end, which copies their text only once."""
    arrays: list[bytes] = []

    def default(item: Any) -> Any:
        convert = converter_of(item)
        if convert in ARRAY_CONVERTERS and (text := _array_text(item)) is not None:
            arrays.append(text)
            return orjson.Fragment(_PLACE)
        return _plain(item)

    body: bytes = orjson.dumps(value, default, _OPTIONS)
    if not arrays:
        return body
    if body == _PLACE:
        return arrays[0]
    pieces = body.split(_PLACE)
    whole = [b""] * (len(pieces) + len(arrays))
    whole[::2], whole[1::2] = pieces, arrays
    return b"".join(whole)


def _array_text(value: Any) -> bytes | None:
    """The JSON of an array or tensor; None if it is small, or of a type that orjson does not write."""
    if element_count(value) < _SMALL:
        return None
    array = numpy_array(value)
    if array is None:
        return None
    if array.dtype.kind == "f":
        # float32 too as the double that it is: what `tolist` gives, and what the other encoder writes.
        array = array.astype("=f8", order="C", copy=False)
    elif array.dtype.kind in "iub":
        array = array.astype(array.dtype.newbyteorder("="), order="C", copy=False)
    else:
        return None
    text: bytes = orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)
    return text


def _plain(value: Any) -> Any:
    """One step towards plain data, for the encoders' `default`.

    Raises:
        TypeError: It has no JSON meaning, or its own conversion failed.
    """
    convert = converter_of(value)
    if convert is None:
        raise TypeError
    try:
        return convert(value)
    except Exception as error:
        raise TypeError from error


def _finite(value: Any) -> Any:
    """For the standard library's encoder, which refuses NaN: arrays with their NaN as None."""
    array = numpy_array(value) if converter_of(value) in ARRAY_CONVERTERS else None
    return finite_list(array) if array is not None and array.dtype.kind == "f" else _plain(value)


def _encoders() -> dict[str, Callable[[Any], str]]:
    kinds = {"null": _finite, "error": _plain}
    return {
        nan: json.JSONEncoder(
            ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=default
        ).encode
        for nan, default in kinds.items()
    }


_ENCODERS = _encoders()


class _Walk:
    """Makes an answer plain, element by element, knowing where it is.

    Args:
        nan: As for `dump`.
    """

    def __init__(self, nan: str) -> None:
        self._nan = nan
        self._path: list[Any] = []
        self._open: set[int] = set()

    def dump(self, value: Any) -> bytes:
        try:
            plain = self._visit(value)
        except RecursionError:
            raise self._error("is nested too deeply") from None
        try:
            return _ENCODERS["error"](plain).encode("utf-8", "backslashreplace")
        except (TypeError, ValueError, RecursionError) as error:
            raise EncodeError(f"The answer cannot be encoded as JSON ({type(error).__name__})") from error

    def _visit(self, value: Any) -> Any:
        if value is None or isinstance(value, str | bool):
            return value
        if isinstance(value, float):
            return self._float(value)
        if isinstance(value, int):
            return self._int(value)
        if len(self._path) >= MAX_DEPTH:
            raise self._error(f"is nested deeper than {MAX_DEPTH} levels")
        if id(value) in self._open:
            raise self._error(f"is a {type(value).__name__} that contains itself")
        self._open.add(id(value))
        try:
            return self._container(value)
        finally:
            self._open.discard(id(value))

    def _container(self, value: Any) -> Any:
        # Loops, so that a level of nesting costs two frames: Python allows a thousand.
        if isinstance(value, dict):
            plain = {}
            for key, item in value.items():
                name = self._key(key)
                self._path.append(key)
                plain[name] = self._visit(item)
                self._path.pop()  # not on the way out of an error, whose text is made from the path
            return plain
        if isinstance(value, list | tuple):
            if set(map(type, value)) <= {float} and all(map(math.isfinite, value)):
                return value
            items = []
            for index, item in enumerate(value):
                self._path.append(index)
                items.append(self._visit(item))
                self._path.pop()
            return items
        convert = converter_of(value)
        if convert is None:
            raise self._error(*_no_meaning(value))
        try:
            inner = convert(value)
        except Exception as error:
            raise self._error(f"is a {type(value).__name__} that cannot be converted") from error
        if isinstance(inner, dict | list):
            return self._container(inner)
        return self._visit(inner)

    def _float(self, value: float) -> float | None:
        if math.isfinite(value):
            return float(value)
        if self._nan == "null":
            return None
        raise self._error(f"is {float(value)}, which JSON does not have", "nan: error is set")

    def _int(self, value: int) -> int:
        try:
            int.__repr__(value)
        except ValueError:  # Python writes at most 4300 digits
            raise self._error("is a number of too many digits") from None
        return int(value)

    def _key(self, key: Any) -> str:
        if isinstance(key, str):
            return str.__str__(key)
        if isinstance(key, bool) or key is None or isinstance(key, int | float):
            return json.dumps(key)
        convert = converter_of(key)
        inner = convert(key) if convert is not None else key
        if isinstance(inner, str | int | float) and inner is not key:
            return self._key(inner)
        raise self._error(f"has a key of type {type(key).__name__}", "JSON's keys are text")

    def _error(self, what: str, hint: str = "") -> EncodeError:
        place = "answer" + "".join(f"[{_short(key)}]" for key in self._path[:20])
        if len(self._path) > 20:
            place += "..."
        return EncodeError(f"The answer cannot be encoded: {place} {what}" + (f"; {hint}" if hint else ""))


def _no_meaning(value: Any) -> tuple[str, str]:
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    hint = next((_HINTS[each.__name__] for each in kind.__mro__ if each.__name__ in _HINTS), "")
    return f"is of type {name}", hint


def _short(key: Any) -> str:
    """A key as it stands in the path: text is cut, and of other things only the type is named."""
    if isinstance(key, str):
        return repr(key if len(key) <= 40 else key[:37] + "...")
    return repr(key) if isinstance(key, int) and abs(key) < 10**18 else f"<{type(key).__name__}>"
