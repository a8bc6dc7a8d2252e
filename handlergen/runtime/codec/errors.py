"""The answer to a failed request (contract, section 6): from an exception to a status and a body, and back."""

from __future__ import annotations

import errno
import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..forms.table import FORMS
from ..request import BadRequest
from .content import NO_HEADERS, is_status, json_bytes, reason_phrase, safe_headers
from .redaction import without_secrets

START = b'{"code":'
"""The first bytes of an error body, unless it is for a KServe client."""
_KEYS = frozenset(("code", "type", "message", "request_id"))


@dataclass(frozen=True)
class Failure:
    """A failed request's answer.

    Attributes:
        status: HTTP status, 300 to 599.
        type: One word for programs: the exception's class for an error of the client, else what failed.
        message: For people.
        headers: ASCII.
        for_kserve: The body also has the key `error`, which KServe's clients read.
    """

    status: int
    type: str
    message: str
    headers: Mapping[str, str] = field(default_factory=lambda: NO_HEADERS)
    for_kserve: bool = False

    def body(self, request_id: str) -> bytes:
        """Return the JSON body."""
        body = {"error": self.message} if self.for_kserve else {}
        fields = {"code": self.status, "type": self.type, "message": self.message, "request_id": request_id}
        return json_bytes(body | fields)


def in_the_log(request_id: str) -> str:
    """Return the end of a message that hides the cause from the client."""
    return f"; the server's log says why, under request id {request_id}"


def logged_request_id(message: str) -> str | None:
    """Return the request id of a message that ends in `in_the_log`; None for any other."""
    _, found, request_id = message.partition(in_the_log(""))
    return request_id if found else None


def error_of(body: bytes) -> dict[str, Any] | None:
    """Return the error, if these bytes are the error body of a model that handlergen packed; else None.

    The body is a JSON object with exactly the keys code, type, message and request_id. Over gRPC only the body shows
    that one request of a batch has failed: TorchServe has one status for all of them.
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
    """Return a failure's message without the sentence that refers a client to the server's log."""
    return message.removesuffix(in_the_log(request_id))


def body_without_server(body: bytes) -> bytes:
    """Return an error body with its message passed through `without_server`; any other body unchanged."""
    try:
        error = json.loads(body)
        error["message"] = without_server(error["message"], error["request_id"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return body
    return json_bytes(error)


INPUT = "input"
"""The name of the `hook` where handlergen itself converts data to the type of a hook's parameter."""

_MESSAGE_CHARACTERS = 4000
_FIELD_ERRORS = 20
"""The most field errors of one request that a message names."""

# RuntimeErrors that mean "out of memory" without being torch.OutOfMemoryError: raised by cuBLAS and cuDNN, by
# CPU allocation (c10/core/impl/alloc_cpu.cpp), by MPS, by onnxruntime.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED"
    r"|can't allocate memory|not enough memory|Failed to allocate memory|std::bad_alloc",
    re.IGNORECASE,
)


class LockTimeout(Exception):
    """The device lock was not obtained in time.

    Args:
        message: For the log: which process holds the lock, for how long.
        retry_after_s: The `Retry-After` for the client, in whole seconds.
    """

    def __init__(self, message: str = "", *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EncodeError(Exception):
    """An answer that cannot be sent. The client gets the message: it names types and places, no values."""


def failure_of(error: BaseException, *, hook: str, form: str, request_id: str) -> Failure:
    """Return the failure that the client gets for an exception.

    Nothing is raised: where the exception's own code fails (a property `status_code`, say), the cause is hidden.

    Args:
        hook: The hook's role (`preprocess`, `predict`, ...), `INPUT`, `decode` or `encode`.
        request_id: Named in messages that hide the cause, to find the traceback in the log.
    """
    try:
        return _failure_of(error, hook, form, request_id)
    except Exception:
        return _opaque(500, "InternalError", "The prediction failed", request_id)


def _failure_of(error: BaseException, hook: str, form: str, request_id: str) -> Failure:
    error = _single(error)
    known = _chosen(error) or _known(error, request_id)
    if known is not None:
        return known
    own_input = hook in (INPUT, "preprocess")
    if own_input and (fields := _field_errors(error)) is not None:
        return Failure(400, "ValidationError", fields)
    if isinstance(error, ValueError) and hook == "preprocess" and FORMS[form].value_error_is_400:
        return Failure(400, type(error).__name__, _text(error) or "The request's data is not valid")
    where = hook if hook not in (INPUT, "decode", "encode") else "prediction"
    return _opaque(500, "InternalError", f"The model's {where} failed", request_id)


def pass_interrupt(error: BaseException) -> None:
    """Raise Ctrl-C again: it is for the program, not one request's failure.

    Whatever else a hook raises is that request's, BaseExceptions too: SystemExit, asyncio's CancelledError, the panics
    of libraries that are written in Rust. In another thread than the main one only a hook raises KeyboardInterrupt.
    """
    if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
        raise error


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on the host or the device. Follows `raise ... from`; nothing is raised."""
    seen: set[int] = set()
    try:
        current: BaseException | None = _single(error)
        while current is not None and id(current) not in seen:
            seen.add(id(current))
            if isinstance(current, MemoryError) or _named(current, "OutOfMemoryError"):
                return True
            if isinstance(current, OSError) and current.errno == errno.ENOMEM:  # mmap(2), ftruncate(2), fork(2)
                return True
            # torch's errors are RuntimeErrors, onnxruntime's are not.
            library = isinstance(current, RuntimeError) or type(current).__module__.startswith("onnxruntime")
            if library and _OUT_OF_MEMORY.search(_text(current)):
                return True
            current = current.__cause__
    except Exception:  # the exception's own code
        return False
    return False


def _chosen(error: BaseException) -> Failure | None:
    """Return the failure of an exception that has a status of its own."""
    status: Any = getattr(error, "status_code", None)
    if is_status(status) and status >= 300:
        # Without a `detail` the text may not have been written for a client; a 5xx must not show it.
        detail = getattr(error, "detail", _text(error) if status < 500 else None)
        return Failure(
            int(status),
            type(error).__name__,
            _cut(_message(detail) or reason_phrase(int(status)) or "The request failed"),
            _headers_of(error),
        )
    code: Any = getattr(error, "error_code", None)
    if _named(error, "PredictionException") and isinstance(code, int):  # ts/utils/util.py
        message = _cut(_message(getattr(error, "message", None)) or "The prediction failed")
        return Failure(int(code) if is_status(code) and code >= 300 else 500, "PredictionException", message)
    return None


def _known(error: BaseException, request_id: str) -> Failure | None:
    """Return the failure of an exception that handlergen has a status for."""
    if isinstance(error, BadRequest):
        return Failure(400, "BadRequest", _cut(_text(error)))
    if isinstance(error, LockTimeout):
        wait = {"Retry-After": str(max(1, int(error.retry_after_s)))}
        return Failure(503, "DeviceBusy", "The device is busy; try again later", wait)
    if isinstance(error, EncodeError):
        return Failure(500, "EncodeError", _cut(_text(error)))
    if is_out_of_memory(error):
        return _opaque(507, "OutOfMemory", "Out of memory", request_id)
    return None


def _opaque(status: int, kind: str, what: str, request_id: str) -> Failure:
    return Failure(status, kind, what + in_the_log(request_id))


def _single(error: BaseException) -> BaseException:
    """Return the exception inside a group of one, which an async task group raises for one failed task."""
    for _ in range(16):
        inner = getattr(error, "exceptions", None)
        if not (isinstance(inner, tuple) and len(inner) == 1 and isinstance(inner[0], BaseException)):
            break
        error = inner[0]
    return error


def _named(error: BaseException, name: str) -> bool:
    """Return whether one of its classes has this name: neither torch nor ts is imported to ask."""
    return any(kind.__name__ == name for kind in type(error).__mro__)


def _field_errors(error: BaseException) -> str | None:
    """Return a pydantic ValidationError as text, `field.name: problem; ...`; None for another exception.

    The values that were sent are left out (they may be large, or secret).
    """
    if not any(k.__name__ == "ValidationError" and "pydantic" in k.__module__ for k in type(error).__mro__):
        return None
    return _cut("; ".join(_field_lines(error))) or "The request's data is not valid"


def _field_lines(error: Any) -> Iterator[str]:
    errors = error.errors()
    for entry in errors[:_FIELD_ERRORS]:
        place = ".".join(str(part) for part in entry.get("loc", ()))
        text = str(entry.get("msg", "not valid"))
        yield f"{place}: {text}" if place else text
    if len(errors) > _FIELD_ERRORS:
        yield f"and {len(errors) - _FIELD_ERRORS} more"


def _headers_of(error: BaseException) -> Mapping[str, str]:
    headers = getattr(error, "headers", None)
    try:
        return safe_headers(headers) if headers else NO_HEADERS
    except (TypeError, ValueError, AttributeError):
        return NO_HEADERS


def _message(detail: Any) -> str:
    """Return a `detail` as text: FastAPI allows any JSON value there."""
    if detail is None or isinstance(detail, str):
        return detail or ""
    try:
        return json.dumps(detail, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return ""


def _text(error: BaseException) -> str:
    try:
        return _cut(str(error))
    except Exception:  # the user's own __str__
        return ""


def _cut(text: str) -> str:
    text = without_secrets(text)
    return text if len(text) <= _MESSAGE_CHARACTERS else text[:_MESSAGE_CHARACTERS] + "…"
