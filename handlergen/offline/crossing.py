"""Rows as requests, prepared; and what of a prepared request crosses from one process to another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from handlergen.errors import HandlergenError
from handlergen.offline.rows import Row
from handlergen.outgoing import body_request, read_file
from handlergen.runtime.failures import Failure
from handlergen.runtime.hook_inputs import HookInputs
from handlergen.runtime.hooks import Item
from handlergen.runtime.pipeline import Pipeline, open_items
from handlergen.runtime.requests import BadRequest


def prepare(pipeline: Pipeline, rows: Sequence[Row]) -> list[Item]:
    """Rows as requests, decoded and preprocessed; in this thread."""
    items = open_rows(pipeline, rows)
    pipeline.preprocess(items)
    return items


def open_rows(pipeline: Pipeline, rows: Sequence[Row]) -> list[Item]:
    """Rows as requests that have just arrived. One whose file cannot be read has failed already."""
    entries, properties, unreadable = [], [], {}
    kinds: dict[str, dict[str, Any]] = {}
    for index, (_, body, content_type, _version) in enumerate(rows):
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


def taken(item: Item, inputs: HookInputs) -> tuple[Any, ...]:
    """A prepared item as plain values: its failure, or what the later stages read."""
    failure = item.failure
    if failure is not None:
        return ((failure.status, failure.type, failure.message, dict(failure.headers)),)
    return (None, item.inputs, item.request._metadata, *inputs.of_item(item))


def restored(rows: Sequence[Row], values: Sequence[tuple[Any, ...]]) -> list[Item]:
    """The items of `taken`, in the process that predicts."""
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
        _, item.inputs, metadata, item.data, item.files, entry, item.http = value
        if metadata:
            item.request.metadata.update(metadata)
        if entry is not None:
            item.entry = entry
    return items
