"""Content types: what a body or a part holds, and what may stand in the head of an HTTP response."""

from __future__ import annotations

import codecs
import io
import json
import re
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from ..request import BadRequest

_CHARSET = re.compile(r';\s*charset\s*=\s*"?([^\s";]+)', re.IGNORECASE)
_JSON_STARTS = frozenset(b' \t\r\n{["-0123456789tfn')
_NPY = frozenset(("application/x-npy", "application/npy"))
_MSGPACK = frozenset(("application/x-msgpack", "application/msgpack", "application/vnd.msgpack"))
_TOO_DEEP = "The body is nested too deeply"
_raw_decode = json.JSONDecoder().raw_decode


@lru_cache(maxsize=256)
def parse_type(sent: str) -> tuple[str, str | None]:
    """`Text/Plain; charset=latin-1` → (`text/plain`, `latin-1`)."""
    charset = _CHARSET.search(sent)
    return sent.partition(";")[0].strip().lower(), charset[1] if charset else None


def read(value: Any, mime: str, charset: str | None) -> Any:  # noqa: PLR0911
    """The value of a body or part of a declared type.

    Args:
        value: Bytes, or what TorchServe has made of them (`str` for `text*`, any value for JSON).
        mime: Its type in lower case without parameters; "" if none was declared: then JSON if it is JSON.
        charset: The type's charset parameter.

    Raises:
        BadRequest: It is not what its type says.
    """
    if not isinstance(value, bytes | bytearray):
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
    if mime in _NPY and (numpy := _optional("numpy")):
        return _array(value, numpy)
    if mime in _MSGPACK and (msgpack := _optional("msgpack")):
        return _msgpack(value, msgpack)
    return bytes(value)


def sniff(value: bytes | bytearray) -> Any:
    """The JSON value if the bytes are JSON, else the bytes."""
    if value and value[0] in _JSON_STARTS:
        try:
            return json.loads(value.decode())
        except RecursionError:
            raise BadRequest(_TOO_DEEP) from None
        except ValueError:  # UnicodeDecodeError too
            pass
    return bytes(value)


def field_value(value: bytes | bytearray) -> str | bytes:
    """A plain field: text, or bytes if it is not UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return bytes(value)


def plain_bytes(value: Any) -> Any:
    """Bytes that hooks can rely on being `bytes`: TorchServe hands over bytearrays. Other values unchanged."""
    return bytes(value) if isinstance(value, bytearray) else value


def raw_bytes(value: Any) -> bytes | bytearray:
    """A part's bytes. Of a JSON part that TorchServe has parsed, bytes that mean the same."""
    if isinstance(value, bytes | bytearray):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def _json(value: bytes | bytearray, charset: str | None) -> Any:
    try:
        try:
            return _loads(value)
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


def _loads(value: bytes | bytearray) -> Any:
    """As `json.loads`, in half the time where the body is UTF-8 that begins with the value, as nearly all are.

    Whatever else it is (spaces first, UTF-16, no JSON) goes to `json.loads`, which has its own word for it.
    """
    try:
        text = value.decode()
        found, end = _raw_decode(text)
        if end == len(text) or not text[end:].strip(" \t\r\n"):
            return found
    except ValueError:  # UnicodeDecodeError too
        pass
    return json.loads(value)


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


def _msgpack(value: bytes | bytearray, msgpack: Any) -> Any:
    try:
        return msgpack.unpackb(value, strict_map_key=False)
    except Exception as error:  # whatever msgpack says of these bytes, they are the client's
        raise BadRequest(f"The body is not valid msgpack ({type(error).__name__})") from error


def _array(value: bytes | bytearray, numpy: Any) -> Any:
    """An `.npy` file as an array over the request's own bytes. Never unpickles.

    The header is read alone and held against the number of bytes: `numpy.load` would allocate first whatever
    shape the header claims.
    """
    form = numpy.lib.format
    stream = io.BytesIO(value)
    try:
        read = {(1, 0): form.read_array_header_1_0, (2, 0): form.read_array_header_2_0}
        shape, fortran, dtype = read[form.read_magic(stream)](stream)
        if dtype.hasobject:
            raise ValueError("arrays of objects are not read")
        count = 1
        for size in shape:
            count *= size
        rest = len(value) - stream.tell()
        if count * dtype.itemsize != rest or min(shape, default=0) < 0:
            raise ValueError(f"shape {shape} of {dtype} does not match its {rest} bytes")
        owned = value if isinstance(value, bytearray) else bytearray(value)  # hooks may write to it
        flat = numpy.frombuffer(owned, dtype=dtype, count=count, offset=stream.tell())
        return flat.reshape(shape, order="F" if fortran else "C")
    except Exception as error:  # whatever numpy says of these bytes, they are the client's
        why = str(error) if isinstance(error, ValueError) else type(error).__name__
        raise BadRequest(f"The body is not a valid .npy array: {why}") from error


def _optional(name: str) -> Any:
    """A module that the user's process may have, or None."""
    if name not in sys.modules:
        try:
            __import__(name)
        except ImportError:
            return None
    return sys.modules[name]


FORM = "application/x-www-form-urlencoded"

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def lost_body() -> BadRequest:
    """What to tell a client whose body the form decoder dropped or changed."""
    return BadRequest(
        "The body was labelled a form (curl -d does so by itself) but is none, so TorchServe lost or changed "
        "parts of it. Send it with its own type, for JSON: Content-Type: application/json"
    )


def whole_text(entry: Mapping[str, Any], length: str | None) -> str | None:
    """The text that was sent, if it was no form; None if it was one.

    Args:
        entry: The fields that the form decoder made of it, at least one.
        length: The Content-Length header, the only trace of what was dropped or replaced.

    Raises:
        BadRequest: It was no form, and cannot be put together with certainty.
    """
    first = next(iter(entry))
    if len(entry) == 1 and not entry[first] and length == str(len(first.encode("utf-8", "replace"))):
        return first  # a Netty that keeps the last name
    if not first.lstrip().startswith(("{", "[", '"')):
        return None
    for bare in (False, True):  # `x` and `x=` arrive alike
        text = _joined(entry, bare=bare)
        if length is not None and length != str(len(text.encode("utf-8", "replace"))):
            continue
        if _is_json(text):
            return _certain(text)
    raise lost_body()


def _joined(entry: Mapping[str, Any], *, bare: bool) -> str:
    pieces = []
    for name, value in entry.items():
        text = value.decode("utf-8", "replace") if isinstance(value, bytes | bytearray) else str(value)
        pieces.append(name if bare and not text else f"{name}={text}")
    return "&".join(pieces)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _certain(text: str) -> str:
    """The text, unless a blank in it may have been a `+`. Between JSON's tokens there can be no `+`."""
    if any(" " in each for each in _STRING.findall(text)):
        raise lost_body()
    return text


JSON = "application/json"
OCTETS = "application/octet-stream"
TEXT = "text/plain; charset=utf-8"
NO_HEADERS: Mapping[str, str] = MappingProxyType({})

STREAM_WISH = "ts_stream_next"
"""TorchServe's header for the chunks of an answer; also the entry of a gRPC request's input whose value `true` asks
for chunks as they are made (see `streaming`). Hooks see neither."""

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")  # RFC 9110, 5.6.2
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]+")

# Written by TorchServe itself, or (ts_stream_next) a command to it.
_RESERVED = frozenset(
    ("connection", "content-length", "content-type", "keep-alive", "transfer-encoding", "upgrade")
) | {STREAM_WISH, "x-request-id"}


def header_value(value: Any) -> str:
    """`value` as one line of ASCII: line breaks and control characters become a blank, the rest `?`."""
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    return _UNPRINTABLE.sub(" ", text).encode("ascii", "replace").decode("ascii").strip()


def header_pairs(headers: Any) -> Iterable[tuple[str, Any]]:
    """Name and value of every header in a mapping or a list of pairs; names as `str`."""
    pairs = headers.items() if hasattr(headers, "items") else (headers or ())
    for name, value in pairs:
        yield (name.decode("latin-1") if isinstance(name, bytes) else str(name)), value


def safe_headers(headers: Any) -> dict[str, str]:
    """The headers that a hook may set, fit to be sent.

    Left out: what TorchServe writes itself, and names that are no token. A repeated name's values are joined
    with a comma (TorchServe keeps one value a name), except `set-cookie`, whose last stands.
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
    """Is it a status that a response may end with (200 to 599)?"""
    return isinstance(value, int) and not isinstance(value, bool) and 200 <= value <= 599


def reason_phrase(status: int) -> str:
    """The standard's phrase for a status, ASCII; "" for a status without one."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def json_bytes(value: Any) -> bytes:
    """Plain values as compact UTF-8 JSON; a lone surrogate, which UTF-8 cannot hold, as its JSON escape."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")
