"""The body of a failed request: `{"code", "type", "message", "request_id"}`, built and recognised here alone.

A 5xx tells a client nothing of the inside: its message ends in a sentence that sends the reader to the server's log
(`in_the_log`), which is taken off again where no server is involved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .wire import NO_HEADERS, json_bytes, reason_phrase

START = b'{"code":'
"""What the body begins with, unless it is for a KServe client."""
_KEYS = frozenset(("code", "type", "message", "request_id"))


@dataclass(frozen=True)
class Failure:
    """A failed request's answer.

    Attributes:
        status: HTTP status, 300 to 599.
        type: One word for programs: the exception's name for what the client did, else what failed here.
        message: For people.
        headers: ASCII, fit to be sent.
        for_kserve: The body also has the key `error`, which KServe's clients read.
    """

    status: int
    type: str
    message: str
    headers: Mapping[str, str] = field(default_factory=lambda: NO_HEADERS)
    for_kserve: bool = False

    @property
    def phrase(self) -> str:
        """ASCII reason phrase."""
        return reason_phrase(self.status)

    def body(self, request_id: str) -> bytes:
        """Return the JSON body."""
        first = {"error": self.message} if self.for_kserve else {}
        return json_bytes(
            {
                **first,
                "code": self.status,
                "type": self.type,
                "message": self.message,
                "request_id": request_id,
            }
        )


def in_the_log(request_id: str) -> str:
    """Return the end of a message that tells a client nothing of the inside."""
    return f"; the server's log says why, under request id {request_id}"


def logged_request_id(message: str) -> str | None:
    """Return the request id of a message that ends in `in_the_log`; None for any other."""
    _, found, request_id = message.partition(in_the_log(""))
    return request_id if found else None


def error_of(body: bytes) -> dict[str, Any] | None:
    """Return what is wrong, if these bytes are the body of a failed request of a model that handlergen packed.

    Over gRPC that is the only sign of it where several requests came in one batch: TorchServe has one status for
    all of them. It is a JSON object with exactly the keys code, type, message and request_id.
    """
    if not body.startswith(START):
        return None
    try:
        value = json.loads(body)
    except ValueError:
        return None
    is_error = isinstance(value, dict) and value.keys() == _KEYS and isinstance(value["code"], int)
    return value if is_error else None


def error_text(body: bytes) -> tuple[str, str]:
    """Return (type, message) of TorchServe's or handlergen's error body; ("", the text) of any other."""
    try:
        value = json.loads(body)
        kind = str(value.get("type", ""))
        return kind, str(value["message"] if "message" in value else value["type"])
    except (ValueError, AttributeError, KeyError, TypeError):
        return "", body[:2000].decode("utf-8", "replace").strip()


def without_server(message: str, request_id: str) -> str:
    """Return a failure's message without the sentence that sends a client to the server's log."""
    return message.removesuffix(in_the_log(request_id))


def body_without_server(body: bytes) -> bytes:
    """Return the body of a failed request, its message as `without_server` has it; any other body as it is."""
    try:
        error = json.loads(body)
        error["message"] = without_server(error["message"], error["request_id"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return body
    return json_bytes(error)
