"""The rows of an input, and the result and output line of each."""

from __future__ import annotations

import base64
import itertools
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from handlergen.runtime.codec.content import JSON
from handlergen.runtime.codec.errors import body_without_server, without_server

if TYPE_CHECKING:
    from handlergen.runtime.pipeline.hooks import Item

RowId = int | str


class Row(NamedTuple):
    """One input, as a client would post it.

    Attributes:
        id: Identifies its result: the row's number from 0, a file's relative path, or a field of the row.
        body: The bytes, or the file that has them, which is read where the row is prepared.
        content_type: The request's header.
        version: Of a file: size and modification time when the file was listed.
    """

    id: RowId
    body: bytes | Path
    content_type: str
    version: str = ""


class Chunk(NamedTuple):
    """Rows that are prepared, predicted, written and recorded together; numbered from 0."""

    number: int
    rows: list[Row]

    def checksum(self) -> int:
        """Return the CRC-32 of the rows' bodies (of a file: its path and version), to recognize the same input."""
        value = 0
        for row in self.rows:
            body = row.body
            key = body if isinstance(body, bytes) else os.fsencode(body) + row.version.encode()
            value = zlib.crc32(key, value)
        return value


def in_chunks(rows: Iterable[Row], size: int) -> Iterator[Chunk]:
    """Yield chunks of `size` rows; the last may be shorter. Never reads ahead."""
    waiting = iter(rows)
    for number in itertools.count():
        chunk = list(itertools.islice(waiting, size))
        if not chunk:
            return
        yield Chunk(number, chunk)


@dataclass(frozen=True)
class Result:
    """The answer to one row: the HTTP status and body that a client would get."""

    id: RowId
    status: int
    content_type: str
    body: bytes

    @property
    def ok(self) -> bool:
        """Whether the row was answered without an error."""
        return self.status < 400

    @property
    def value(self) -> Any:
        """The decoded body: a JSON value, or the bytes if it is not JSON."""
        return json.loads(self.body) if _is_json(self.content_type) else self.body


def result_of(row_id: RowId, item: Item) -> Result:
    """Return the result of a row; `item` has its reply or its failure."""
    failure, reply = item.failure, item.reply
    if failure is not None:
        return Result(row_id, failure.status, JSON, body_without_server(failure.body(str(row_id))))
    return Result(row_id, reply.status, reply.content_type, reply.body)


@dataclass(frozen=True)
class Lines:
    """A chunk's lines of output: one JSON line per row, and how many rows failed."""

    chunk: Chunk
    text: bytes
    failed: int

    @classmethod
    def of(cls, chunk: Chunk, items: list[Item]) -> Lines:
        """Return the lines of a chunk, whose items have their reply or failure."""
        text = b"".join(line_of(row.id, item) for row, item in zip(chunk.rows, items, strict=True))
        return cls(chunk, text, sum(item.failure is not None or item.reply.status >= 400 for item in items))


def line_of(row_id: RowId, item: Item) -> bytes:
    """Return a row's line of JSONL: `{"id", "status", "answer"}`, or `{"id", "status", "error"}`.

    An answer that is not JSON is written as text (`text/*`) or base64, with its `content_type`.
    """
    failure = item.failure
    start = b'{"id":%s,"status":%d,' % (_json(row_id), failure.status if failure else item.reply.status)
    if failure is not None:
        message = without_server(failure.message, str(row_id))
        return start + b'"error":%s}\n' % _json({"type": failure.type, "message": message})
    reply = item.reply
    key = b'"answer"' if reply.status < 400 else b'"error"'
    if _is_json(reply.content_type):
        body = _one_line(reply.body) if reply.verbatim else reply.body
        if body is not None:
            return start + b"%s:%s}\n" % (key, body)
    kind = _json(reply.content_type)
    if reply.content_type.startswith("text/"):
        text = _json(reply.body.decode("utf-8", "replace"))
        return start + b'%s:%s,"content_type":%s}\n' % (key, text, kind)
    encoded = base64.b64encode(reply.body)
    return start + b'%s:"%s","content_type":%s,"encoding":"base64"}\n' % (key, encoded, kind)


def _is_json(content_type: str) -> bool:
    return content_type.startswith(JSON)


def _one_line(body: bytes) -> bytes | None:
    """Return a hook's own JSON text without line breaks; None if it is not JSON."""
    try:
        return _json(json.loads(body))
    except ValueError:
        return None


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
