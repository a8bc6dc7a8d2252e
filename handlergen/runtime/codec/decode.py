"""Decoding: from a request as TorchServe delivers it to a hook's `data` and `files` (contract, section 4).

By default TorchServe parses first: a body or part whose type is exactly `application/json` arrives as its value, one
whose type starts with `text` as `str`, everything else (and invalid JSON) as a bytearray
(otf_message_handler.py:276-315). With TS_DECODE_INPUT_REQUEST=false in the worker's environment it delivers bytes only.
Both are supported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..request import BadRequest, Files, Request, UploadedFile
from .content import FORM, MULTIPART, OCTETS, STREAM_WISH, parse_type, read, sniff

_Parts = Mapping[str, Any]


@dataclass(slots=True)
class Decoded:
    """A request's content for the hooks.

    Attributes:
        data: The JSON value, text, bytes, array, or dict of plain fields.
        files: The other parts, in the order they were sent.
    """

    data: Any
    files: Files = field(default_factory=Files)


def decode(entry: _Parts, properties: _Parts) -> Decoded:
    """Read a request's content.

    Args:
        entry: The request's parts by name: `{"body": ...}`, a form's fields, or gRPC's input map.
        properties: Its headers (`str`) and its parts' types (`{"content-type": ...}`), in one mapping.

    Raises:
        BadRequest: The content is not valid for its type, or did not arrive whole.
    """
    sent = _request_type(properties)
    if sent is None:
        if Request(properties, "").is_grpc:
            return _read_map(entry)
        sent = ""
    mime, charset = parse_type(sent)
    if mime == FORM:
        return _read_form(entry, properties)
    if mime == MULTIPART:
        if _part_type("body", properties) == mime:  # the whole body, which has no part of such a type
            raise BadRequest("The multipart body names no boundary in its Content-Type")
        return _read_parts(entry, properties)
    return Decoded(read(entry.get("body", b""), mime, charset))


def _request_type(properties: _Parts) -> str | None:
    """Return the Content-Type header; a part of this name has a mapping there."""
    return next(
        (text for name, text in properties.items() if isinstance(text, str) and name.lower() == "content-type"),
        None,
    )


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
        if has_data or mime or not isinstance(value, bytes | bytearray):
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
    if not isinstance(value, str | bytes | bytearray):
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
    """Return the text that was sent, if it was no form; None if it was one.

    Args:
        entry: The fields that the form decoder made of the text, at least one.
        length: The Content-Length header, which shows whether something was dropped or replaced.

    Raises:
        BadRequest: The body was no form, and cannot be restored with certainty.
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
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            continue
        # A space may have been a `+`, but not between JSON's tokens.
        if any(" " in each for each in _STRING.findall(text)):
            raise _lost_body()
        return text
    raise _lost_body()


def _joined(entry: Mapping[str, Any], *, bare: bool) -> str:
    pieces = []
    for name, value in entry.items():
        text = value.decode("utf-8", "replace") if isinstance(value, bytes | bytearray) else str(value)
        pieces.append(name if bare and not text else f"{name}={text}")
    return "&".join(pieces)


def _field_value(value: bytes | bytearray) -> str | bytes:
    """Return a plain field as text, or as bytes if it is not UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return bytes(value)


def _raw_bytes(value: Any) -> bytes | bytearray:
    """Return a part's bytes; of a JSON part that TorchServe has parsed, equivalent bytes."""
    if isinstance(value, bytes | bytearray):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")
