"""Requests as TorchServe hands them to a worker (ts/service.py:57-100), and error messages, where no server is."""

from __future__ import annotations

import json
import mimetypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from handlergen.errors import HandlergenError
from handlergen.runtime.codec.content import JSON, MULTIPART, NPY, OCTETS

RequestParts = tuple[dict[str, Any], dict[str, Any]]
"""The request's parts by name, and its headers with its parts' content types."""


def content_type_of(path: str | Path) -> str:
    """What a file's name says about its content; octets when it says nothing."""
    return mimetypes.guess_type(str(path))[0] or OCTETS


def body_request(body: bytes, content_type: str) -> RequestParts:
    """A request that is nothing but a body."""
    return {"body": bytearray(body)}, {"body": {"content-type": content_type}, "content-type": content_type}


def form_request(fields: Mapping[str, Any]) -> RequestParts:
    """A multipart form: by name a `Path` (a file), bytes, text, or a value that becomes JSON text.

    Raises:
        HandlergenError: A file cannot be read.
    """
    entry: dict[str, Any] = {}
    types: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, Path):
            body, kind = read_file(value), content_type_of(value)
        elif isinstance(value, bytes | bytearray):
            body, kind = bytes(value), OCTETS
        else:
            # What was no UTF-8 on the command line goes out as it was typed (PEP 383).
            text = value if isinstance(value, str) else json.dumps(value)
            body, kind = text.encode("utf-8", "surrogateescape"), ""
        entry[name] = bytearray(body)
        types[name] = {"content-type": kind}
    return entry, {**types, "content-type": MULTIPART}


def body_of(data: Any, content_type: str | None = None) -> tuple[bytes, str]:
    """The bytes of one input and their type.

    Args:
        data: A `Path` to a file, bytes, a numpy array (sent as `.npy`), or any JSON value.
        content_type: In place of the usual one.

    Raises:
        HandlergenError: The file cannot be read, or the value is no JSON.
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
    """A numpy array as the bytes of a .npy file."""
    import io

    import numpy

    target = io.BytesIO()
    numpy.save(target, array, allow_pickle=False)
    return target.getvalue()


def read_file(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        HandlergenError: It cannot be read; says why.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise HandlergenError(f"cannot read {path}: {error.strerror}") from error
