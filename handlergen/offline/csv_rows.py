"""A CSV file as rows: objects of strings, one a line, by the names in its header."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any

from handlergen.errors import HandlergenError

_LARGEST_FIELD = 1 << 30
"""Characters. Python's own limit of 131,072 is less than an image in base64."""


def csv_rows(file: IO[bytes], *, delimiter: str, name: str) -> Iterator[dict[str, str]]:
    """The rows after the header, as they are read.

    A byte that is not UTF-8 is kept as a surrogate (PEP 383), so that it is its row alone that fails.

    Args:
        file: At its beginning.
        delimiter: Between two fields.
        name: Of the file, for messages.

    Raises:
        HandlergenError: The header cannot be told apart or read, a row is not as wide as it, or quotes do not close.
    """
    csv.field_size_limit(max(csv.field_size_limit(), _LARGEST_FIELD))
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.DictReader(text, delimiter=delimiter, strict=True)
    try:
        _check_header(reader.fieldnames or (), name)
        for row in reader:
            _check_width(row, name, reader.line_num)
            yield row
    except csv.Error as error:
        raise HandlergenError(f"{name}, line {reader.reader.line_num}: {error}") from error
    finally:
        text.detach()  # the file is the caller's to close


def _check_header(names: Any, file: str) -> None:
    twice = [field for field, count in Counter(names).items() if count > 1]
    if twice:
        raise HandlergenError(
            f"{file}, line 1: the header has {', '.join(map(repr, twice))} twice, and a row keeps one value for a name",
            hint="rename one of the columns",
        )
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        raise HandlergenError(
            f"{file}, line 1: the header is not UTF-8", hint="save the file as UTF-8"
        ) from None


def _check_width(row: dict[Any, Any], file: str, line: int) -> None:
    if None in row or None in row.values():
        raise HandlergenError(
            f"{file}, line {line}: the row has {'more' if None in row else 'fewer'} fields than the header"
        )
