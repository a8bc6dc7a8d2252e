"""Bodies that `curl -d '{...}'` sends as `application/x-www-form-urlencoded` though they are no form.

TorchServe runs every such body through a form decoder (Netty 4.1.53, HttpPostStandardRequestDecoder). It
splits at `&` and the first `=`, turns `+` into a blank and `%41` into `A`, stops at a line break after the
first `=`, keeps the last of two equal names, and drops a last name without `=`. So of `{"a": 1}` nothing
arrives at all, of `{"a": "x=1"}` everything, of `{"a": "b=", "c": "1+1"}` something else than was sent.
(Later Nettys keep the last name.) What arrived whole is put together again; for the rest the client is told
what to send.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from .requests import BadRequest

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
