"""From what TorchServe hands a worker to a hook's `data` and `files` (contract, section 4).

TorchServe parses on the way: a body or part whose type is exactly `application/json` arrives as its value, one
whose type starts with `text` as `str`, everything else (and what it failed to parse) as a bytearray
(otf_message_handler.py:276-315). With TS_DECODE_INPUT_REQUEST=false in the worker's environment it hands over
bytes only; both are understood here.
"""

from __future__ import annotations

import codecs
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from .form_body import FORM, lost_body, whole_text
from .requests import BadRequest, Files, Request, UploadedFile
from .wire import JSON, OCTETS

_Parts = Mapping[str, Any]
_CHARSET = re.compile(r';\s*charset\s*=\s*"?([^\s";]+)', re.IGNORECASE)
_JSON_STARTS = frozenset(b' \t\r\n{["-0123456789tfn')
_NPY = frozenset(("application/x-npy", "application/npy"))
_MSGPACK = frozenset(("application/x-msgpack", "application/msgpack", "application/vnd.msgpack"))


@dataclass(slots=True)
class Decoded:
    """What a hook gets of a request's content.

    Attributes:
        data: The JSON value, text, bytes, array, or dict of plain fields.
        files: The other parts, in the order they were sent.
    """

    data: Any
    files: Files = field(default_factory=Files)


def open_request(entry: _Parts, properties: _Parts, request_id: str) -> Request:  # noqa: ARG001
    """The `request` that hooks may ask for. Parses nothing yet.

    Args:
        entry: The request's parts by name, as TorchServe hands them over.
        properties: Its headers (`str`) and its parts' content types (`{"content-type": ...}`), in one mapping.
        request_id: TorchServe's id of it.
    """
    return Request(properties, request_id)


def decode(entry: _Parts, properties: _Parts) -> Decoded:
    """Read a request's content.

    Args:
        entry: The request's parts by name: `{"body": ...}`, a form's fields, or gRPC's input map.
        properties: Its headers (`str`) and its parts' content types (`{"content-type": ...}`), in one mapping.

    Raises:
        BadRequest: The content is not what its type says, or did not arrive whole.
    """
    sent = _request_type(properties)
    if sent is None:
        if _is_grpc(properties):
            return _read_map(entry)
        sent = ""
    mime, charset = _parse_type(sent)
    if mime == FORM:
        return _read_form(entry, properties)
    if mime == "multipart/form-data":
        if _part_type("body", properties) == mime:  # the whole body, which has no part of such a type
            raise BadRequest("The multipart body names no boundary in its Content-Type")
        return _read_parts(entry, properties)
    return Decoded(_read(entry.get("body", b""), mime, charset))


def _request_type(properties: _Parts) -> str | None:
    """The Content-Type header. Not the content type of a part that has this name."""
    for usual in ("Content-Type", "content-type"):
        value = properties.get(usual)
        if isinstance(value, str):
            return value
    for name, value in properties.items():
        if isinstance(value, str) and name.lower() == "content-type":
            return value
    return None


def _is_grpc(properties: _Parts) -> bool:
    return not any(isinstance(value, str) for value in properties.values())


@lru_cache(maxsize=256)
def _parse_type(sent: str) -> tuple[str, str | None]:
    """`Text/Plain; charset=latin-1` → (`text/plain`, `latin-1`)."""
    charset = _CHARSET.search(sent)
    return sent.partition(";")[0].strip().lower(), charset[1] if charset else None


def _part_type(name: str, properties: _Parts) -> str:
    """A part's content type without parameters; "" for a plain field, or if a header of that name hides it."""
    kind = properties.get(name)
    return _parse_type(kind.get("content-type") or "")[0] if isinstance(kind, Mapping) else ""


def _read(value: Any, mime: str, charset: str | None) -> Any:
    """One body, or one part of a declared type."""
    if not isinstance(value, bytes | bytearray):
        # TorchServe has parsed it already, always as UTF-8.
        if isinstance(value, str) and charset and not mime.endswith("json"):
            return _text(value.encode(), charset)
        return value
    if mime == JSON or mime.endswith("+json"):
        return _json(value, charset)
    if not mime:
        return _sniff(value)
    if mime.startswith("text/"):
        return _text(value, charset)
    if mime in _NPY and (numpy := _optional("numpy")):
        return _array(value, numpy)
    if mime in _MSGPACK and (msgpack := _optional("msgpack")):
        try:
            return msgpack.unpackb(value, strict_map_key=False)
        except Exception as error:  # whatever msgpack says of these bytes, they are the client's
            raise BadRequest(f"The body is not valid msgpack ({type(error).__name__})") from error
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
        raise BadRequest("The body is nested too deeply") from None
    except ValueError as error:
        why = "it is empty" if not value else str(error)
        raise BadRequest(f"The body is not valid JSON: {why}") from error


def _sniff(value: bytes | bytearray) -> Any:
    """The JSON value if the bytes are JSON, else the bytes."""
    if value and value[0] in _JSON_STARTS:
        try:
            return json.loads(value.decode())
        except RecursionError:
            raise BadRequest("The body is nested too deeply") from None
        except ValueError:  # UnicodeDecodeError too
            pass
    return bytes(value)


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

    The header is read alone and held against the number of bytes: `numpy.load` would allocate first whatever
    shape the header claims.
    """
    import io

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


def _read_map(entry: _Parts) -> Decoded:
    """gRPC's input map: `data` and files, or the whole map."""
    if "data" not in entry:
        return Decoded({name: bytes(value) for name, value in entry.items()})
    files = Files(UploadedFile(value, name) for name, value in entry.items() if name != "data")
    return Decoded(_sniff(entry["data"]), files)


def _read_parts(entry: _Parts, properties: _Parts) -> Decoded:
    """A form's parts. TorchServe gives a file its content type, and a plain field none, whatever it had."""
    has_data = "data" in entry
    fields: dict[str, Any] = {}
    files = Files()
    for name, value in entry.items():
        mime = _part_type(name, properties)
        if has_data and name == "data":
            continue
        if has_data or mime or not isinstance(value, bytes | bytearray):
            files.append(UploadedFile(_content(value), name, mime or None))
        else:
            fields[name] = _field(value)
    if has_data:
        return Decoded(_data_part(entry["data"], _part_type("data", properties)), files)
    return Decoded(fields, files)


def _data_part(value: Any, mime: str) -> Any:
    """The part named `data`: JSON if it is JSON, whether declared as such or not."""
    if mime and mime != OCTETS and not mime.startswith("text/"):
        return _read(value, mime, None)
    if not isinstance(value, str | bytes | bytearray):
        return value
    found = _sniff(value.encode() if isinstance(value, str) else value)
    return _field(found) if isinstance(found, bytes) and mime != OCTETS else found


def _field(value: bytes | bytearray) -> str | bytes:
    """A plain field: text, or bytes if it is not UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return bytes(value)


def _content(value: Any) -> bytes | bytearray:
    """A part's bytes. Of a JSON part that TorchServe has parsed, bytes that mean the same."""
    if isinstance(value, bytes | bytearray):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def _read_form(entry: _Parts, properties: _Parts) -> Decoded:
    """A form-encoded body: a form's fields, or JSON that `curl -d` labelled so."""
    length = Request(properties, "").headers.get("content-length")
    if not entry:
        if length is None or length == "0":
            return Decoded(b"")
        raise lost_body()
    text = whole_text(entry, length)
    if text is not None:
        return Decoded(_sniff(text.encode()))
    return _read_parts(entry, properties)
