"""What a load test sends: the rows of an input, ready for the wire."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from handlergen.client.rest import FieldValue
from handlergen.errors import HandlergenError
from handlergen.offline.sources import open_source
from handlergen.outgoing import JSON, content_type_of, read_file

MOST_ROWS = 10_000
_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class Sample:
    """One request.

    Attributes:
        content: The body over REST.
        content_type: Its type.
        fields: Over gRPC the entries of the request; a body is the entry `data`.
    """

    content: bytes
    content_type: str
    fields: Mapping[str, bytes]


def of_body(content: bytes, content_type: str) -> Sample:
    """A request that is nothing but a body."""
    return Sample(content, content_type, {"data": content})


def of_json_text(text: str) -> Sample:
    """JSON as somebody wrote it; the model, not this function, is its judge."""
    return of_body(text.encode("utf-8", "surrogateescape"), JSON)


def of_file(path: Path, content_type: str | None = None) -> Sample:
    """A file's bytes, with the type that its name tells.

    Raises:
        HandlergenError: It cannot be read.
    """
    return of_body(read_file(path), content_type or content_type_of(path))


def of_fields(fields: Mapping[str, FieldValue]) -> Sample:
    """A multipart form.

    Raises:
        HandlergenError: A file cannot be read.
    """
    import httpx

    from handlergen.client.rest import payload

    entries = {}
    for name, value in fields.items():
        if isinstance(value, Path):
            entries[name] = read_file(value)
        else:
            entries[name] = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
    headers, options = payload(fields=fields)
    request = httpx.Request("POST", "http://localhost/", headers=headers, **options)
    return Sample(request.read(), request.headers["Content-Type"], entries)


def of_input(given: str, *, content_type: str | None = None) -> list[Sample]:
    """The rows of what `map` takes: JSONL, CSV, .npy, a directory of files, a glob; the first 10 000 of them.

    Raises:
        HandlergenError: It cannot be read, has no rows, or they are too large to be kept.
    """
    rows = islice(open_source(given, content_type=content_type).rows(), MOST_ROWS)
    return _kept(
        (
            of_file(row.body, row.content_type)
            if isinstance(row.body, Path)
            else of_body(row.body, row.content_type)
            for row in rows
        ),
        given,
    )


def _kept(samples: Iterable[Sample], given: str) -> list[Sample]:
    kept: list[Sample] = []
    size = 0
    for sample in samples:
        size += len(sample.content)
        if size > _MOST_BYTES:
            break
        kept.append(sample)
    if not kept:
        raise HandlergenError(f"there is no row in {given}", hint="give at least one request to send")
    return kept
