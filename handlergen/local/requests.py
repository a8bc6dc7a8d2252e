"""Requests as TorchServe passes them to a worker (ts/service.py:57-100), without a server."""

from __future__ import annotations

import json
import mimetypes
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from handlergen.errors import HandlergenError
from handlergen.runtime.codec.content import JSON, MULTIPART, NPY, OCTETS

if TYPE_CHECKING:
    from handlergen.runtime.codec.errors import Failure
    from handlergen.runtime.pipeline.hooks import Item
    from handlergen.runtime.torchserve.streaming import Outlet

RequestParts = tuple[dict[str, Any], dict[str, Any]]
"""A request's parts by name, and its headers including its parts' content types."""


def content_type_of(path: str | Path) -> str:
    """Guess a content type from a file name; the default is `application/octet-stream`."""
    return mimetypes.guess_type(str(path))[0] or OCTETS


def body_request(body: bytes, content_type: str) -> RequestParts:
    """Return a request that consists of a body."""
    return {"body": bytearray(body)}, {"body": {"content-type": content_type}, "content-type": content_type}


def form_request(fields: Mapping[str, Any]) -> RequestParts:
    """Return a multipart form: name -> a `Path` (a file), bytes, text, or a JSON value. Raises as `body_of` does."""
    entry: dict[str, Any] = {}
    types: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, Path | bytes | bytearray):
            body, kind = body_of(value)
        else:
            # Bytes of the command line that are not UTF-8 are sent unchanged (PEP 383).
            text = value if isinstance(value, str) else json.dumps(value)
            body, kind = text.encode("utf-8", "surrogateescape"), ""
        entry[name] = bytearray(body)
        types[name] = {"content-type": kind}
    return entry, {**types, "content-type": MULTIPART}


def body_of(data: Any, content_type: str | None = None) -> tuple[bytes, str]:
    """Return the bytes and content type of a `Path` to a file, bytes, a numpy array (as `.npy`), or any JSON value.

    Raises:
        HandlergenError: The file cannot be read, or the value is not JSON.
    """
    if isinstance(data, Path):
        return read_file(data), content_type or content_type_of(data)
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data), content_type or OCTETS
    if type(data).__module__ == "numpy" and hasattr(data, "dtype") and hasattr(data, "shape"):
        return npy_bytes(data), content_type or NPY
    try:
        return json.dumps(data, ensure_ascii=False).encode("utf-8", "backslashreplace"), content_type or JSON
    except (TypeError, ValueError) as error:
        raise HandlergenError(
            f"an input of type {type(data).__name__} cannot be sent: {error}",
            hint="give a JSON value, bytes, a pathlib.Path or a numpy array",
        ) from error


def npy_bytes(array: Any) -> bytes:
    """Return a numpy array as the bytes of a .npy file."""
    import io

    import numpy

    target = io.BytesIO()
    numpy.save(target, array, allow_pickle=False)
    return target.getvalue()


def read_file(path: Path) -> bytes:
    """Return a file's bytes; raise HandlergenError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise HandlergenError(f"cannot read {path}: {error.strerror}") from error


class LocalOutlet:
    """Passes the chunks of a streamed answer, and its content type, to a function in the thread that predicts.

    The function may raise `ConsumerGone` to end the stream. `failure` is why the stream ended early, if it did.
    """

    def __init__(self, on_chunk: Callable[[bytes, str], None]) -> None:
        self._on_chunk = on_chunk
        self.failure: Failure | None = None

    def send(self, _item: Item, body: bytes, content_type: str, *_head: Any) -> None:
        self._on_chunk(body, content_type)

    def break_off(self, failure: Failure) -> None:
        self.failure = failure


class LocalContext:
    """The part of TorchServe's context of a batch that the runtime uses (ts/context.py).

    Args:
        request_ids, properties: One per request; properties are its headers, as TorchServe passes them.
        outlet: Gets the chunks of a streamed answer; None: the body gets them.
    """

    def __init__(self, request_ids: Sequence[str], properties: Sequence[dict[str, Any]], outlet: Outlet | None) -> None:
        self.request_ids = dict(enumerate(request_ids))
        self.request_processor = [SimpleNamespace(get_request_properties=partial(dict, each)) for each in properties]
        self.outlet = outlet
        self.statuses = [200] * len(properties)
        self.headers: list[dict[str, str]] = [{} for _ in properties]

    def set_response_content_type(self, index: int, value: str) -> None:
        self.headers[index]["content-type"] = value

    def set_response_status(self, code: int, _phrase: str, index: int) -> None:
        self.statuses[index] = code

    def set_response_header(self, index: int, name: str, value: str) -> None:
        self.headers[index][name] = value
