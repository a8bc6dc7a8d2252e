"""What a failed request says where no server is involved: the same, but not that a server's log says why."""

from __future__ import annotations

import json

from handlergen.runtime.failures import in_the_log


def without_server(message: str, request_id: str) -> str:
    """A failure's message without the sentence that sends a client to the server's log."""
    return message.removesuffix(in_the_log(request_id))


def body_without_server(body: bytes) -> bytes:
    """The JSON body of a failed request, its message as `without_server` has it; any other body as it is."""
    try:
        error = json.loads(body)
        error["message"] = without_server(error["message"], error["request_id"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return body
    return json.dumps(error, ensure_ascii=False, separators=(",", ":")).encode()
