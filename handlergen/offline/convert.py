"""From the lines of a finished run to one .npy or Parquet file, in bounded memory."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from handlergen.errors import HandlergenError

_ROWS_AT_ONCE = 4096


def to_npy(lines: Path, target: Path) -> None:
    """Answers that are numbers, or arrays of one shape, as one float64 array; row i is row i of the output.

    A failed row is NaN throughout.

    Raises:
        HandlergenError: The answers do not fit into one array; names the first that does not. The lines are kept.
    """
    import numpy

    shape, count = None, 0
    for row in _rows(lines):
        count += 1
        if "answer" in row:
            found = _numbers(row).shape
            if shape is not None and found != shape:
                raise _unfit(row, f"has the shape {found}, others {shape}", lines)
            shape = found
    array = numpy.lib.format.open_memmap(
        target, mode="w+", dtype=numpy.float64, shape=(count, *(shape or ()))
    )
    for index, row in enumerate(_rows(lines)):
        array[index] = _numbers(row) if "answer" in row else numpy.nan
    array.flush()


def to_parquet(lines: Path, target: Path) -> None:
    """Columns `id`, `status`, `answer`, `error`; answers of one type keep it, others become JSON text.

    Raises:
        HandlergenError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise HandlergenError(
            "a Parquet output needs pyarrow, which is not installed",
            hint="pip install pyarrow, and run the same command again: the answers are kept",
        ) from error
    types: dict[str, Any] = {"id": None, "status": pyarrow.int16(), "answer": None, "error": None}
    for batch in _batches(lines):
        for name, known in types.items():
            if name != "status" and known != "json":
                types[name] = _merged(pyarrow, known, [row.get(name) for row in batch])
    schema = pyarrow.schema(
        [
            (name, pyarrow.string() if kind == "json" else kind or pyarrow.null())
            for name, kind in types.items()
        ]
    )
    with pyarrow.parquet.ParquetWriter(target, schema) as writer:
        for batch in _batches(lines):
            columns = {}
            for name, kind in types.items():
                values = [row.get(name) for row in batch]
                if kind == "json":
                    values = [None if value is None else _text(value, name) for value in values]
                columns[name] = values
            writer.write_table(pyarrow.Table.from_pydict(columns, schema=schema))


CONVERTERS: Mapping[str, Callable[[Path, Path], None]] = {".npy": to_npy, ".parquet": to_parquet}
"""By the output's suffix; any other output is JSONL."""


def _merged(pyarrow: Any, known: Any, values: list[Any]) -> Any:
    try:
        found = pyarrow.infer_type(values)
        if known is None or pyarrow.types.is_null(known):
            return found
        schemas = [pyarrow.schema([("v", kind)]) for kind in (known, found)]
        return pyarrow.unify_schemas(schemas, promote_options="permissive").field("v").type
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, pyarrow.ArrowNotImplementedError):
        return "json"


def _text(value: Any, name: str) -> str:
    return value if name == "id" and isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _numbers(row: dict[str, Any]) -> Any:
    import numpy

    if "encoding" in row or "content_type" in row:
        raise _unfit(row, f"is {row.get('content_type')}", None)
    try:
        array = numpy.asarray(row["answer"], dtype=numpy.float64)
    except (TypeError, ValueError):
        raise _unfit(row, "is no array of numbers", None) from None
    return array


def _unfit(row: dict[str, Any], why: str, _lines: Path | None) -> HandlergenError:
    return HandlergenError(
        f"the answers do not fit into one .npy array: that of row {row['id']} {why}",
        hint="the answers are kept as lines beside the output; write to a .jsonl or .parquet file instead",
    )


def _rows(lines: Path) -> Iterator[dict[str, Any]]:
    with lines.open("rb") as file:
        for line in file:
            yield json.loads(line)


def _batches(lines: Path) -> Iterator[list[dict[str, Any]]]:
    rows = _rows(lines)
    while batch := list(itertools.islice(rows, _ROWS_AT_ONCE)):
        yield batch
