"""Predictions over REST: `POST /predictions/NAME[/VERSION]`."""

from __future__ import annotations

import json as json_module
import mimetypes
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from handlergen.client.connection import Connection
from handlergen.client.results import Answer

FieldValue = str | bytes | Path
"""A multipart field: text, bytes, or a file whose name and guessed type are sent along."""


class _Unset:
    def __repr__(self) -> str:
        return "UNSET"


UNSET: Any = _Unset()
"""Stands for "no JSON given": None is JSON too."""


def content_type_of(path: Path) -> str:
    """The media type that the file's name suggests; `application/octet-stream` when it suggests none."""
    return mimetypes.guess_type(path.name)[0] or "application/octet-stream"


def payload(
    *,
    json: Any = UNSET,
    content: bytes | None = None,
    file: Path | None = None,
    fields: Mapping[str, FieldValue] | None = None,
    content_type: str | None = None,
) -> tuple[dict[str, str], dict[str, Any]]:
    """Headers and httpx options for one request body.

    Raises:
        ValueError: More than one kind of body, or none.
        OSError: A file cannot be read.
    """
    given = [
        name
        for name, there in (
            ("json", json is not UNSET),
            ("content", content is not None),
            ("file", file is not None),
            ("fields", fields is not None),
        )
        if there
    ]
    if len(given) != 1:
        raise ValueError(
            f"give exactly one of json, content, file and fields, not {', '.join(given) or 'none'}"
        )
    if fields is not None:
        return {}, {"files": [(name, _part(value)) for name, value in fields.items()]}
    if json is not UNSET:
        body, guessed = json_module.dumps(json, ensure_ascii=False).encode(), "application/json"
    elif file is not None:
        body, guessed = file.read_bytes(), content_type_of(file)
    else:
        body, guessed = content or b"", "application/octet-stream"
    return {"Content-Type": content_type or guessed}, {"content": body}


def _part(value: FieldValue) -> tuple[str | None, bytes] | tuple[str, bytes, str]:
    if isinstance(value, Path):
        return value.name, value.read_bytes(), content_type_of(value)
    if isinstance(value, bytes):
        return None, value
    return None, value.encode("utf-8", "surrogateescape")  # as it was typed (PEP 383)


class RestInference:
    """Predictions and ping on the inference address."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def predict(
        self, name: str, *, version: str | None = None, headers: Mapping[str, str] | None = None, **body: Any
    ) -> Answer:
        """One request; `body` as for `payload`. Raises RequestFailed or ServerError."""
        own, options = payload(**body)
        response = self._connection.request(
            "POST", _path(name, version), headers={**own, **(headers or {})}, **options
        )
        return Answer(
            response.status_code, response.content, {k.lower(): v for k, v in response.headers.items()}
        )

    def stream(
        self, name: str, *, version: str | None = None, headers: Mapping[str, str] | None = None, **body: Any
    ) -> Iterator[bytes]:
        """One request whose answer is yielded in the chunks in which it arrives."""
        own, options = payload(**body)
        with self._connection.stream(
            "POST", _path(name, version), headers={**own, **(headers or {})}, **options
        ) as response:
            yield from response.iter_raw()

    def ping(self) -> str:
        """The server's word for its health ("Healthy"; also while models are still loading)."""
        return str(self._connection.request("GET", "/ping").json()["status"])


def _path(name: str, version: str | None) -> str:
    return f"/predictions/{quote(name, safe='')}" + (f"/{quote(version, safe='')}" if version else "")
