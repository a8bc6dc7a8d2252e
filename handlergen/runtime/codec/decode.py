"""From what TorchServe hands a worker to a hook's `data` and `files` (contract, section 4).

TorchServe parses on the way: a body or part whose type is exactly `application/json` arrives as its value,
one whose type starts with `text` as `str`, everything else (and what it failed to parse) as a bytearray
(otf_message_handler.py:276-315). With TS_DECODE_INPUT_REQUEST=false in the worker's environment it hands
over bytes only; both are understood here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..request import BadRequest, Files, Request, UploadedFile
from .content import (
    FORM,
    OCTETS,
    STREAM_WISH,
    field_value,
    lost_body,
    parse_type,
    plain_bytes,
    raw_bytes,
    read,
    sniff,
    whole_text,
)

_Parts = Mapping[str, Any]


@dataclass(slots=True)
class Decoded:
    """What a hook gets of a request's content.

    Attributes:
        data: The JSON value, text, bytes, array, or dict of plain fields.
        files: The other parts, in the order they were sent.
    """

    data: Any
    files: Files = field(default_factory=Files)


def open_request(entry: _Parts, properties: _Parts, request_id: str) -> Request:
    """The `request` that hooks may ask for. Parses nothing yet.

    Args:
        entry: The request's parts by name, as TorchServe hands them over.
        properties: Its headers (`str`) and its parts' types (`{"content-type": ...}`), in one mapping.
        request_id: TorchServe's id of it.
    """
    return Request(properties, request_id)


def decode(entry: _Parts, properties: _Parts) -> Decoded:
    """Read a request's content.

    Args:
        entry: The request's parts by name: `{"body": ...}`, a form's fields, or gRPC's input map.
        properties: Its headers (`str`) and its parts' types (`{"content-type": ...}`), in one mapping.

    Raises:
        BadRequest: The content is not what its type says, or did not arrive whole.
    """
    sent = _request_type(properties)
    if sent is None:
        if _is_grpc(properties):
            return _read_map(entry)
        sent = ""
    mime, charset = parse_type(sent)
    if mime == FORM:
        return _read_form(entry, properties)
    if mime == "multipart/form-data":
        if _part_type("body", properties) == mime:  # the whole body, which has no part of such a type
            raise BadRequest("The multipart body names no boundary in its Content-Type")
        return _read_parts(entry, properties)
    return Decoded(read(entry.get("body", b""), mime, charset))


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


def _part_type(name: str, properties: _Parts) -> str:
    """A part's type without parameters; "" for a plain field, or if a header of that name hides it."""
    kind = properties.get(name)
    return parse_type(kind.get("content-type") or "")[0] if isinstance(kind, Mapping) else ""


def _read_map(entry: _Parts) -> Decoded:
    """gRPC's input map: `data` and files, or the whole map."""
    if STREAM_WISH in entry:
        entry = {name: value for name, value in entry.items() if name != STREAM_WISH}
    if "data" not in entry:
        return Decoded({name: plain_bytes(value) for name, value in entry.items()})
    files = Files(UploadedFile(raw_bytes(value), name) for name, value in entry.items() if name != "data")
    return Decoded(read(entry["data"], "", None), files)


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
            files.append(UploadedFile(raw_bytes(value), name, mime or None))
        else:
            fields[name] = field_value(value)
    if has_data:
        return Decoded(_data_part(entry["data"], _part_type("data", properties)), files)
    return Decoded(fields, files)


def _data_part(value: Any, mime: str) -> Any:
    """The part named `data`: JSON if it is JSON, whether declared as such or not."""
    if mime and mime != OCTETS and not mime.startswith("text/"):
        return read(value, mime, None)
    if not isinstance(value, str | bytes | bytearray):
        return value
    found = sniff(value.encode() if isinstance(value, str) else value)
    return field_value(found) if isinstance(found, bytes) and mime != OCTETS else found


def _read_form(entry: _Parts, properties: _Parts) -> Decoded:
    """A form-encoded body: a form's fields, or JSON that `curl -d` labelled so."""
    length = Request(properties, "").headers.get("content-length")
    if not entry:
        if length is None or length == "0":
            return Decoded(b"")
        raise lost_body()
    text = whole_text(entry, length)
    if text is not None:
        return Decoded(sniff(text.encode()))
    return _read_parts(entry, properties)
