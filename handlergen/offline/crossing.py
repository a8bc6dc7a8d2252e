"""Rows as requests, prepared; and what of a prepared request crosses from one process to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handlergen.errors import HandlergenError
from handlergen.offline.rows import Row
from handlergen.outgoing import body_request, read_file
from handlergen.runtime.failures import Failure
from handlergen.runtime.hooks import Item
from handlergen.runtime.pipeline import Pipeline, open_items
from handlergen.runtime.requests import BadRequest

if TYPE_CHECKING:
    from handlergen.runtime.contract import Contract


def prepare(pipeline: Pipeline, rows: Sequence[Row]) -> list[Item]:
    """Rows as requests, decoded and preprocessed; in this thread."""
    items = open_rows(pipeline, rows)
    pipeline.preprocess(items)
    return items


def open_rows(pipeline: Pipeline, rows: Sequence[Row]) -> list[Item]:
    """Rows as requests that have just arrived. One whose file cannot be read has failed already."""
    entries, properties, unreadable = [], [], {}
    kinds: dict[str, dict[str, Any]] = {}
    for index, (_, body, content_type) in enumerate(rows):
        content = body if isinstance(body, bytes) else b""
        if isinstance(body, Path):
            try:
                content = read_file(body)
            except HandlergenError as error:
                unreadable[index] = error.message
        entries.append({"body": bytearray(content)})
        if content_type not in kinds:  # headers are only read: rows of one type share theirs
            kinds[content_type] = body_request(b"", content_type)[1]
        properties.append(kinds[content_type])
    items = open_items(entries, properties, [str(row.id) for row in rows])
    for index, message in unreadable.items():
        pipeline.fail(items[index], BadRequest(message), "decode")
    return items


@dataclass(frozen=True)
class Needs:
    """What of a prepared request the later stages read, so that no more of it crosses to the predicting process."""

    data: bool
    files: bool
    http: bool

    @classmethod
    def of(cls, contract: Contract) -> Needs:
        """Read it from the parameters of the hooks that follow."""
        if contract.form == "flow":
            return cls(data=True, files=True, http=True)
        later = [hook for role, hook in contract.hooks.items() if role in ("predict", "postprocess")]
        sources = {parameter.source for hook in later for parameter in hook.parameters}
        return cls(bool(sources & {"data", "input_data"}), "files" in sources, "http_request" in sources)

    def taken(self, item: Item) -> tuple[Any, ...]:
        """The item as plain values."""
        failure = item.failure
        if failure is not None:
            return ((failure.status, failure.type, failure.message, dict(failure.headers)),)
        return (
            None,
            item.inputs,
            item.request._metadata,
            item.data if self.data else None,
            item.files if self.files else None,
            (item.entry, item.http) if self.http else None,
        )


def restored(rows: Sequence[Row], values: Sequence[tuple[Any, ...]]) -> list[Item]:
    """The items of `Needs.taken`, in the process that predicts."""
    kinds: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row.content_type not in kinds:
            kinds[row.content_type] = body_request(b"", row.content_type)[1]
    items = open_items(
        [{} for _ in rows], [kinds[row.content_type] for row in rows], [str(row.id) for row in rows]
    )
    for item, value in zip(items, values, strict=True):
        if value[0] is not None:
            item.failure = Failure(*value[0])
            continue
        _, item.inputs, metadata, item.data, item.files, http = value
        if metadata:
            item.request.metadata.update(metadata)
        if http is not None:
            item.entry, item.http = http
    return items
