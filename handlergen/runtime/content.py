"""One body or one part of a request: from bytes to the value that its content type says it is."""

from __future__ import annotations

import codecs
import io
import json
import re
import sys
from functools import lru_cache
from typing import Any

from .requests import BadRequest
from .wire import JSON

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
