"""What may stand in the head of an HTTP response that TorchServe writes.

A worker sends its reason phrase and content type with their length in characters but their content in bytes
(otf_message_handler.py:118-132), so anything but ASCII there desynchronises the stream and kills the worker;
so does a header value that is no `str`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

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
