"""The content of requests: content types, a request's `data` and `files`, and the headers and statuses of responses.

By default TorchServe parses first: a body or part whose type is exactly `application/json` arrives as its value, one
whose type starts with `text` as `str`, everything else (and invalid JSON) as a bytearray
(otf_message_handler.py:276-315). With TS_DECODE_INPUT_REQUEST=false in the worker's environment it delivers bytes only.
Both are supported.
"""

from __future__ import annotations

import codecs
import importlib
import io
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from ..request import BadRequest, Files, Request, UploadedFile

_CHARSET = re.compile(r';\s*charset\s*=\s*"?([^\s";]+)', re.IGNORECASE)
JSON = "application/json"
NDJSON = "application/x-ndjson"
TEXT = "text/plain; charset=utf-8"
CSV = "text/csv"
EVENT_STREAM = "text/event-stream"
OCTETS = "application/octet-stream"
NPY = "application/x-npy"
PNG = "image/png"
FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"
_NPY_NAMES = (NPY, "application/npy")
_MSGPACK_NAMES = ("application/x-msgpack", "application/msgpack", "application/vnd.msgpack")

NO_HEADERS: Mapping[str, str] = MappingProxyType({})
COMMAND = "x-handlergen-command"
"""A header of DESCRIBE with commands to a worker; see `torchserve.control`."""

STREAM_WISH = "ts_stream_next"
"""TorchServe's header for the chunks of an answer. As an entry of a gRPC request's input with the value `true`, it asks
for chunks as they are made (see `streaming`). Hooks see neither."""

_JSON_STARTS = frozenset(b' \t\r\n{["-0123456789tfn')
_TOO_DEEP = "The body is nested too deeply"


@lru_cache(maxsize=256)
def parse_type(sent: str) -> tuple[str, str | None]:
    """Split a Content-Type into type and charset: `Text/Plain; charset=latin-1` → (`text/plain`, `latin-1`)."""
    charset = _CHARSET.search(sent)
    return sent.partition(";")[0].strip().lower(), charset[1] if charset else None


def read(value: Any, mime: str, charset: str | None) -> Any:  # noqa: PLR0911
    """Return the value of a body or part.

    Args:
        value: Bytes, or the value that TorchServe has parsed them to (`str` for `text*`, any value for JSON).
        mime: The declared type in lower case without parameters; "" if none was declared: JSON is then recognised.
        charset: The type's charset parameter.

    Raises:
        BadRequest: The content is not valid for its type.
    """
    if not isinstance(value, (bytes, bytearray)):
        # TorchServe has parsed it already, always as UTF-8.
        if isinstance(value, str) and charset and not mime.endswith("json"):
            return _text(value.encode(), charset)
        return value
    if mime == JSON or mime.endswith("+json"):
        return _json(value, charset)
    if not mime:
        return sniff(value)
    if mime.startswith("text/"):
        return _text(value, charset)
    if mime in _NPY_NAMES and (numpy := optional_module("numpy")):
        return _array(value, numpy)
    if mime in _MSGPACK_NAMES and (msgpack := optional_module("msgpack")):
        try:
            return msgpack.unpackb(value, strict_map_key=False)
        except Exception as error:  # any error is the client's: the bytes are
            raise BadRequest(f"The body is not valid msgpack ({type(error).__name__})") from error
    return bytes(value)


def sniff(value: bytes | bytearray) -> Any:
    """Return the JSON value if the bytes are JSON, else the bytes."""
    if value and value[0] in _JSON_STARTS:
        try:
            return json.loads(value.decode())
        except RecursionError:
            raise BadRequest(_TOO_DEEP) from None
        except ValueError:  # UnicodeDecodeError too
            pass
    return bytes(value)


def _json(value: bytes | bytearray, charset: str | None) -> Any:
    try:
        try:
            return json.loads(value)
        except UnicodeDecodeError:
            if not charset:
                raise
            return json.loads(_text(value, charset))
    except UnicodeDecodeError as error:
        raise BadRequest(f"The body is not valid JSON: it is not UTF-8 (byte {error.start})") from error
    except RecursionError:
        # Not chained: its traceback holds a thousand frames.
        raise BadRequest(_TOO_DEEP) from None
    except ValueError as error:
        why = "it is empty" if not value else str(error)
        raise BadRequest(f"The body is not valid JSON: {why}") from error


def _text(value: bytes | bytearray, charset: str | None) -> str:
    name = charset or "utf-8"
    try:
        if not getattr(codecs.lookup(name), "_is_text_encoding", True):
            raise LookupError(name)
        return value.decode(name)
    except LookupError as error:
        raise BadRequest(f"The charset {name!r} is not known") from error
    except ValueError as error:
        raise BadRequest(f"The text is not valid {name}") from error


def _array(value: bytes | bytearray, numpy: Any) -> Any:
    """An `.npy` file as an array over the request's own bytes. Never unpickles.

    The header is read first and compared with the number of bytes: `numpy.load` would allocate whatever shape the
    header claims.
    """
    form = numpy.lib.format
    stream = io.BytesIO(value)
    try:
        read = {(1, 0): form.read_array_header_1_0, (2, 0): form.read_array_header_2_0}
        shape, fortran, dtype = read[form.read_magic(stream)](stream)
        if dtype.hasobject:
            raise ValueError("arrays of objects are not supported")
        count = math.prod(shape)
        rest = len(value) - stream.tell()
        if count * dtype.itemsize != rest or min(shape, default=0) < 0:
            raise ValueError(f"shape {shape} of {dtype} does not match its {rest} bytes")
        owned = value if isinstance(value, bytearray) else bytearray(value)  # hooks may write to it
        flat = numpy.frombuffer(owned, dtype=dtype, count=count, offset=stream.tell())
        return flat.reshape(shape, order="F" if fortran else "C")
    except Exception as error:  # any error is the client's: the bytes are
        why = str(error) if isinstance(error, ValueError) else type(error).__name__
        raise BadRequest(f"The body is not a valid .npy array: {why}") from error


def optional_module(name: str) -> Any:
    """Import a module; None if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


_Parts = Mapping[str, Any]


@dataclass(init=False)
class Decoded:
    """A request's content for the hooks.

    Attributes:
        data: The JSON value, text, bytes, array, or dict of plain fields.
        files: The other parts, in the order they were sent.
    """

    __slots__ = ("data", "files")  # by hand: dataclass(slots=True) needs Python 3.10

    data: Any
    files: Files

    def __init__(self, data: Any, files: Files | None = None) -> None:
        self.data = data
        self.files = Files() if files is None else files


def is_compressed(properties: _Parts) -> bool:
    """Return whether a request has a Content-Encoding: see `content_encoding`."""
    return "content-encoding" in map(str.lower, properties)


def decode(entry: _Parts, properties: _Parts) -> Decoded:
    """Read a request's content.

    Args:
        entry: The request's parts by name: `{"body": ...}`, a form's fields, or gRPC's input map.
        properties: Its headers (`str`) and its parts' types (`{"content-type": ...}`), in one mapping.

    Raises:
        BadRequest: The content is not valid for its type, or did not arrive whole.
    """
    # A part of this name has a mapping there.
    types = (text for name, text in properties.items() if isinstance(text, str) and name.lower() == "content-type")
    sent = next(types, "")
    if not sent and Request(properties, "").is_grpc:
        return _read_map(entry)
    mime, charset = parse_type(sent)
    if mime == FORM:
        return _read_form(entry, properties)
    if mime == MULTIPART:
        if _part_type("body", properties) == mime:  # the whole body, which has no part of such a type
            raise BadRequest("The multipart body names no boundary in its Content-Type")
        return _read_parts(entry, properties)
    return Decoded(read(entry.get("body", b""), mime, charset))


def _part_type(name: str, properties: _Parts) -> str:
    """Return a part's type without parameters; "" for a plain field, or if a header of that name hides it."""
    kind = properties.get(name)
    return parse_type(kind.get("content-type") or "")[0] if isinstance(kind, Mapping) else ""


def _read_map(entry: _Parts) -> Decoded:
    """Read gRPC's input map: `data` and files, or the whole map."""
    if STREAM_WISH in entry:
        entry = {name: value for name, value in entry.items() if name != STREAM_WISH}
    if "data" not in entry:
        return Decoded({name: bytes(value) if isinstance(value, bytearray) else value for name, value in entry.items()})
    files = Files(UploadedFile(_raw_bytes(value), name) for name, value in entry.items() if name != "data")
    return Decoded(read(entry["data"], "", None), files)


def _read_parts(entry: _Parts, properties: _Parts) -> Decoded:
    """Read a form's parts. TorchServe passes a file's content type, but not a plain field's."""
    has_data = "data" in entry
    fields: dict[str, Any] = {}
    files = Files()
    for name, value in entry.items():
        mime = _part_type(name, properties)
        if has_data and name == "data":
            continue
        if has_data or mime or not isinstance(value, (bytes, bytearray)):
            files.append(UploadedFile(_raw_bytes(value), name, mime or None))
        else:
            fields[name] = _field_value(value)
    if has_data:
        return Decoded(_data_part(entry["data"], _part_type("data", properties)), files)
    return Decoded(fields, files)


def _data_part(value: Any, mime: str) -> Any:
    """Read the part named `data`; JSON is recognised whether it is declared or not."""
    if mime and mime != OCTETS and not mime.startswith("text/"):
        return read(value, mime, None)
    if not isinstance(value, (str, bytes, bytearray)):
        return value
    found = sniff(value.encode() if isinstance(value, str) else value)
    return _field_value(found) if isinstance(found, bytes) and mime != OCTETS else found


def _read_form(entry: _Parts, properties: _Parts) -> Decoded:
    """Read a form-encoded body: a form's fields, or JSON that `curl -d` labelled as a form."""
    length = Request(properties, "").headers.get("content-length")
    if not entry:
        if length is None or length == "0":
            return Decoded(b"")
        raise _lost_body()
    text = _whole_text(entry, length)
    return _read_parts(entry, properties) if text is None else Decoded(sniff(text.encode()))


_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def _lost_body() -> BadRequest:
    """Return the error for a body that TorchServe's form decoder dropped or changed."""
    return BadRequest(
        "The body is not a form although its Content-Type says so (the default of curl -d), so TorchServe lost or "
        "changed parts of it. Send it with its own type, for JSON: Content-Type: application/json"
    )


def _whole_text(entry: Mapping[str, Any], length: str | None) -> str | None:
    """Return the text that was sent, if it was no form; None if it was one. `length` is the Content-Length header.

    Raises:
        BadRequest: The body was no form, and cannot be restored with certainty: something was dropped or replaced.
    """
    first = next(iter(entry))
    if len(entry) == 1 and not entry[first] and length == str(len(first.encode("utf-8", "replace"))):
        return first  # a Netty that keeps the last name
    if not first.lstrip().startswith(("{", "[", '"')):
        return None
    fields = [
        (name, value.decode("utf-8", "replace") if isinstance(value, (bytes, bytearray)) else str(value))
        for name, value in entry.items()
    ]
    for bare in (False, True):  # `x` and `x=` arrive alike
        text = "&".join(name if bare and not value else f"{name}={value}" for name, value in fields)
        if length is not None and length != str(len(text.encode("utf-8", "replace"))):
            continue
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            continue
        # A space may have been a `+`, but not between JSON's tokens.
        if any(" " in each for each in _STRING.findall(text)):
            raise _lost_body()
        return text
    raise _lost_body()


def _field_value(value: bytes | bytearray) -> str | bytes:
    """Return a plain field as text, or as bytes if it is not UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return bytes(value)


def _raw_bytes(value: Any) -> bytes | bytearray:
    """Return a part's bytes; of a JSON part that TorchServe has parsed, equivalent bytes."""
    if isinstance(value, (bytes, bytearray)):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")  # RFC 9110, 5.6.2
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]+")

# Written by TorchServe itself, or (ts_stream_next) a command to it.
_RESERVED = frozenset(
    ("connection", "content-length", "content-type", "keep-alive", "transfer-encoding", "upgrade")
) | {STREAM_WISH, "x-request-id"}


def header_value(value: Any) -> str:
    """Return a value as one line of ASCII: control characters become a space, other characters `?`."""
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    return _UNPRINTABLE.sub(" ", text).encode("ascii", "replace").decode("ascii").strip()


def header_pairs(headers: Any) -> Iterable[tuple[str, Any]]:
    """Yield name and value of every header in a mapping or a list of pairs; names as `str`."""
    pairs = headers.items() if hasattr(headers, "items") else (headers or ())
    for name, value in pairs:
        yield (name.decode("latin-1") if isinstance(name, bytes) else str(name)), value


def safe_headers(headers: Any) -> dict[str, str]:
    """Return the headers that a hook may set, as ASCII.

    Omitted: headers that TorchServe writes itself, and invalid names. Values of a repeated name are joined with a
    comma (TorchServe keeps one value per name), except for `set-cookie`, which keeps the last one.
    """
    safe: dict[str, str] = {}
    spelled: dict[str, str] = {}
    for name, value in header_pairs(headers):
        lower = name.lower()
        if lower in _RESERVED or not _TOKEN.match(name):
            continue
        text = header_value(value)
        known = spelled.setdefault(lower, name)
        safe[known] = f"{safe[known]}, {text}" if known in safe and lower != "set-cookie" else text
    return safe


def is_status(value: Any) -> bool:
    """Return whether a value is a status that a response may have (200 to 599)."""
    return isinstance(value, int) and not isinstance(value, bool) and 200 <= value <= 599


def reason_phrase(status: int) -> str:
    """Return the standard reason phrase of a status, ASCII; "" for a status without one."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def json_bytes(value: Any) -> bytes:
    """Encode plain values as compact UTF-8 JSON; a lone surrogate, which UTF-8 cannot hold, as its JSON escape."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")
