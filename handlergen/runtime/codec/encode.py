"""Encoding: from a hook's answer to bytes, content type, status and headers (contract, section 5)."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import decimal
import enum
import importlib
import io
import json
import math
import sys
import uuid
from array import array as c_array
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from operator import methodcaller
from pathlib import PurePath
from typing import Any

from .content import JSON, NO_HEADERS, OCTETS, PNG, TEXT, header_pairs, header_value, is_status, safe_headers
from .errors import EncodeError

orjson: Any = None
with contextlib.suppress(ImportError):  # optional; the standard library takes its place
    orjson = importlib.import_module("orjson")
_OPTIONS: int = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME if orjson else 0

_PLAIN = frozenset((dict, list, str, int, float, bool, type(None), tuple))
_PNG_MODES = frozenset(("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA"))
_BODILESS = frozenset((204, 205, 304))


@dataclass(init=False)
class Encoded:
    """An encoded answer.

    Attributes:
        body: The bytes to send.
        content_type: ASCII.
        status: HTTP status, 200 to 599.
        headers: ASCII, without the content type.
        verbatim: The hook made the body itself, which may not match the content type. Not compared.
    """

    __slots__ = ("body", "content_type", "headers", "status", "verbatim")

    body: bytes
    content_type: str
    status: int
    headers: Mapping[str, str]

    def __init__(
        self,
        body: bytes,
        content_type: str,
        status: int = 200,
        headers: Mapping[str, str] = NO_HEADERS,
        *,
        verbatim: bool = False,
    ) -> None:
        self.body = body
        self.content_type = content_type
        self.status = status
        self.headers = headers
        self.verbatim = verbatim


def encode(answer: Any, *, nan: str = "null", limit: int | None = None) -> Encoded:
    """Encode a hook's answer.

    Args:
        answer: JSON-like data (dataclasses, pydantic models, arrays, tensors and so on at any depth), bytes, a
            PIL image, or an object with `status_code` and `body`.
        nan: Encode a NaN or infinity as `null`, or refuse it (`error`).
        limit: The most bytes that the server can send.

    Raises:
        EncodeError: The answer cannot be sent; names the type and its place in the answer, or the sizes.
    """
    if type(answer) in _PLAIN or converter_of(answer) in ARRAY_CONVERTERS:
        encoded = Encoded(dump(answer, nan), JSON)
    elif isinstance(answer, (bytes, bytearray, memoryview)):
        encoded = Encoded(bytes(answer), OCTETS)
    elif (images := sys.modules.get("PIL.Image")) is not None and isinstance(answer, images.Image):
        encoded = Encoded(_png(answer), PNG)
    elif _is_response(answer):
        encoded = _response(answer, nan)
    else:
        encoded = Encoded(dump(answer, nan), JSON)
    if limit is not None and len(encoded.body) > limit:
        raise EncodeError(
            f"The answer has {len(encoded.body)} bytes; the server sends at most {limit} (max_response_size)"
        )
    return encoded


def _png(image: Any) -> bytes:
    target = io.BytesIO()
    try:
        # PNG has neither CMYK, YCbCr, LAB and HSV nor floating-point pixels.
        (image if image.mode in _PNG_MODES else image.convert("RGB")).save(target, "PNG")
    except Exception as error:
        raise EncodeError(f"The image (mode {image.mode}) cannot be written as PNG") from error
    return target.getvalue()


def _is_response(answer: Any) -> bool:
    status = getattr(answer, "status_code", None)
    is_number = isinstance(status, int) and not isinstance(status, bool)
    return is_number and not isinstance(answer, type) and hasattr(answer, "body") and not callable(answer.body)


def _response(answer: Any, nan: str) -> Encoded:
    """Encode an answer that has a status and headers of its own, as Starlette's responses do."""
    head = response_head(answer)
    body = answer.body
    if body is None or head.status in _BODILESS:
        content, usual = b"", TEXT
    elif isinstance(body, str):
        content, usual = body.encode("utf-8", "replace"), TEXT
    elif isinstance(body, (bytes, bytearray, memoryview)):
        content, usual = bytes(body), OCTETS
    else:
        inner = encode(body, nan=nan)
        content, usual = inner.body, inner.content_type
    return Encoded(content, head.content_type or usual, head.status, head.headers, verbatim=True)


def response_head(answer: Any) -> Encoded:
    """Return status, headers and content type of a response; no body, and "" where it names no content type.

    Raises:
        EncodeError: The status is not one of 200 to 599, or the headers are not a mapping.
    """
    if not is_status(answer.status_code):
        raise EncodeError(f"The answer's status {int(answer.status_code)} is not one of 200 to 599")
    status = int(answer.status_code)
    try:
        headers = getattr(answer, "headers", None)
        kept = safe_headers(headers)
        declared = next((value for name, value in header_pairs(headers) if name.lower() == "content-type"), None)
    except (TypeError, ValueError) as error:
        raise EncodeError(f"The headers of {type(answer).__name__} are not a mapping of str to str") from error
    declared = declared or getattr(answer, "media_type", None) or getattr(answer, "content_type", None)
    return Encoded(b"", header_value(declared) if declared else "", status, kept)


MAX_DEPTH = 250
"""Levels of nesting that an answer may have in any case (orjson stops at 254)."""

_SMALL = 64
"""Elements. For fewer, a list is faster than a call of orjson for the array alone."""

_HINTS = {
    "bytes": "encode it as text (base64), or return bytes alone",
    "bytearray": "encode it as text (base64), or return bytes alone",
    "generator": "return a list",
    "coroutine": "await it",
    "Image": "return the image alone, or its bytes as base64 text",
}


def dump(value: Any, nan: str) -> bytes:
    """Encode a value as compact UTF-8 JSON.

    Args:
        value: Plain data, or what `converter_of` has a conversion for, at any depth.
        nan: `null`, or `error`: then a NaN or infinity is refused.

    Raises:
        EncodeError: Names the type and the place of what cannot be encoded.
    """
    if orjson is not None:
        try:
            body: bytes = orjson.dumps(value, _orjson_default, _OPTIONS)
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


def _orjson_default(item: Any) -> Any:
    if converter_of(item) in ARRAY_CONVERTERS and (text := _array_text(item)) is not None:
        return orjson.Fragment(text)
    return _plain(item)


def _array_text(value: Any) -> bytes | None:
    """Return the JSON of an array or tensor; None if it is small, or of a type that orjson does not support."""
    if (value.numel() if hasattr(value, "numel") else value.size) < _SMALL:
        return None
    array = numpy_array(value)
    if array is None:
        return None
    if array.dtype.kind == "f":
        # As doubles, like `tolist`: both encoders write the same text.
        array = array.astype("=f8", order="C", copy=False)
    elif array.dtype.kind in "iub":
        array = array.astype(array.dtype.newbyteorder("="), order="C", copy=False)
    else:
        return None
    text: bytes = orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)
    return text


def _plain(value: Any) -> Any:
    """Convert a value one step towards plain data, for the encoders' `default`.

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
    """Like `_plain`, with NaN and infinities in arrays as None: the standard library's encoder refuses them."""
    array = numpy_array(value) if converter_of(value) in ARRAY_CONVERTERS else None
    if array is None or array.dtype.kind != "f":
        return _plain(value)
    numpy = sys.modules["numpy"]
    doubles = array.astype("=f8", copy=False)
    finite = numpy.isfinite(doubles)
    return (doubles if finite.all() else numpy.where(finite, doubles, None)).tolist()


_ENCODERS: dict[str, Callable[[Any], str]] = {
    nan: json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=default).encode
    for nan, default in (("null", _finite), ("error", _plain))
}


class _Walk:
    """Converts an answer to plain data element by element, and names the place of what cannot be encoded."""

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
        if value is None or isinstance(value, (str, bool)):
            return value
        if isinstance(value, float):
            return self._float(value)
        if isinstance(value, int):
            try:
                int.__repr__(value)
            except ValueError:  # Python writes at most 4300 digits
                raise self._error("is a number of too many digits") from None
            return int(value)
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
        if isinstance(value, (list, tuple)):
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
            kind = type(value)
            name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
            hint = next((_HINTS[each.__name__] for each in kind.__mro__ if each.__name__ in _HINTS), "")
            raise self._error(f"is of type {name}", hint)
        try:
            inner = convert(value)
        except Exception as error:
            raise self._error(f"is a {type(value).__name__} that cannot be converted") from error
        if isinstance(inner, (dict, list)):
            return self._container(inner)
        return self._visit(inner)

    def _float(self, value: float) -> float | None:
        if math.isfinite(value):
            return float(value)
        if self._nan == "null":
            return None
        raise self._error(f"is {float(value)}, which JSON does not have", "nan: error is set")

    def _key(self, key: Any) -> str:
        if isinstance(key, str):
            return str.__str__(key)
        if isinstance(key, bool) or key is None or isinstance(key, (int, float)):
            return json.dumps(key)
        convert = converter_of(key)
        inner = convert(key) if convert is not None else key
        if isinstance(inner, (str, int, float)) and inner is not key:
            return self._key(inner)
        raise self._error(f"has a key of type {type(key).__name__}", "JSON's keys are text")

    def _error(self, what: str, hint: str = "") -> EncodeError:
        place = "answer" + "".join(f"[{_short(key)}]" for key in self._path[:20])
        if len(self._path) > 20:
            place += "..."
        return EncodeError(f"The answer cannot be encoded: {place} {what}" + (f"; {hint}" if hint else ""))


def _short(key: Any) -> str:
    """Return a key as the path shows it: long text is cut, and of an object only the type is named."""
    if isinstance(key, str):
        return repr(key if len(key) <= 40 else key[:37] + "...")
    return repr(key) if isinstance(key, int) and abs(key) < 10**18 else f"<{type(key).__name__}>"


def converter_of(value: Any) -> Callable[[Any], Any] | None:
    """Return the function that converts this object one step towards JSON.

    None if its type has no JSON meaning: bytes, images, generators, complex numbers, and unknown types.
    """
    kind: Any = type(value)
    return _converter(kind)


@lru_cache(maxsize=1024)
def _converter(kind: type) -> Callable[[Any], Any] | None:  # noqa: PLR0911
    for known, convert in _KNOWN:
        if issubclass(kind, known):
            return convert
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and issubclass(kind, torch.Tensor):
        return _tensor_list
    if numpy is not None and issubclass(kind, (numpy.ndarray, numpy.generic)):
        return _array_list
    if hasattr(kind, "model_dump"):
        return _pydantic
    if hasattr(kind, "parse_obj") and hasattr(kind, "__fields__"):  # pydantic 1
        return methodcaller("dict")
    if issubclass(kind, Mapping):  # before dataclasses: a Hugging Face ModelOutput is both
        return dict
    if dataclasses.is_dataclass(kind):
        return _fields
    if issubclass(kind, AbstractSet):
        return _ordered
    if issubclass(kind, Sequence) and not issubclass(kind, (bytes, bytearray, memoryview)):
        return list
    return None


def numpy_array(value: Any) -> Any:
    """Return an array or tensor as a numpy array on the host; None for anything else, or without numpy."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    if isinstance(value, numpy.ndarray):
        return None if hasattr(value, "mask") else value  # only `tolist` of a masked array leaves out what is masked
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return None
    try:
        return _host(value).numpy()
    except (RuntimeError, TypeError):  # a torch built without numpy, a type that numpy lacks
        return None


def _host(tensor: Any) -> Any:
    """Return a tensor as a dense, detached one on the CPU, of a type that numpy has."""
    import torch

    plain = tensor.detach()
    if plain.is_quantized:
        plain = plain.dequantize()
    if plain.layout is not torch.strided:
        plain = plain.to_dense()
    plain = plain.cpu()
    if plain.is_floating_point() and plain.dtype not in (torch.float64, torch.float32, torch.float16):
        plain = plain.float()  # bfloat16 and the 8-bit types; exact
    return plain.resolve_conj().resolve_neg()


def _tensor_list(tensor: Any) -> Any:
    if tensor.is_nested:
        return list(tensor.unbind())
    plain = _host(tensor)
    if plain.is_complex():
        raise TypeError("complex numbers have no JSON meaning")
    return plain.tolist()


def _array_list(array: Any) -> Any:
    """Convert arrays and scalars of numpy."""
    if array.dtype.kind in "mM":
        numpy = sys.modules["numpy"]
        if array.dtype.kind == "m":
            return (array / numpy.timedelta64(1, "s")).tolist()
        text = numpy.datetime_as_string(array)
        return numpy.where(numpy.isnat(array), None, text).tolist()
    if array.dtype.kind == "c":
        raise TypeError("complex numbers have no JSON meaning")
    if array.dtype.kind == "f":
        return array.astype("=f8").tolist()  # longdouble's own list would hold longdoubles
    return array.tolist()


def _pydantic(model: Any) -> Any:
    try:
        return model.model_dump(mode="json")
    except Exception as error:
        if type(error).__name__ != "PydanticSerializationError":
            raise
        return model.model_dump()  # fields of foreign types (arrays), which are converted here


def _fields(instance: Any) -> dict[str, Any]:
    return {each.name: getattr(instance, each.name) for each in dataclasses.fields(instance)}


def _ordered(values: Any) -> list[Any]:
    """Return a set as a list, sorted where its elements can be, so that equal sets give equal answers."""
    try:
        return sorted(values)
    except TypeError:
        return list(values)


def _decimal(number: decimal.Decimal) -> int | float:
    """Return whole numbers exactly, others as the nearest double."""
    if number.is_finite() and number == number.to_integral_value() and number.adjusted() < 400:
        return int(number)
    return float(number)


_KNOWN: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (enum.Enum, lambda member: member.value),
    (datetime.timedelta, datetime.timedelta.total_seconds),
    ((datetime.date, datetime.time), methodcaller("isoformat")),
    ((uuid.UUID, PurePath), str),
    (decimal.Decimal, _decimal),
    # Subclasses of plain types, which orjson does not take for them.
    (float, float),
    (tuple, list),
    (c_array, c_array.tolist),
)

ARRAY_CONVERTERS = (_array_list, _tensor_list)
"""The results of `converter_of` for numpy's arrays and scalars, and for tensors."""
