"""The files of an output, and the conversion of a finished run's lines to CSV, .npy or Parquet."""

from __future__ import annotations

import base64
import csv
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from handlergen.errors import HandlergenError
from handlergen.local.offline.journal import PENDING_SUFFIX, journal_path

_ROWS_AT_ONCE = 4096
_MOST_COLUMNS = 1000
_JSON = "json"  # instead of a column's type: its values have no type in common, and are written as JSON text


@dataclass(frozen=True)
class OutputFiles:
    """The files of one output, whether they exist or not; `output` is the one that the user named."""

    output: Path

    @property
    def converted(self) -> bool:
        """Whether the output is converted from lines at the end of the run."""
        return self.output.suffix.lower() in CONVERTERS

    @property
    def lines(self) -> Path:
        """Where the lines are written."""
        return self.output.with_name(self.output.name + ".rows.jsonl") if self.converted else self.output

    @property
    def journal(self) -> Path:
        return journal_path(self.lines)

    @property
    def pending(self) -> Path:
        return self.lines.with_name(self.lines.name + PENDING_SUFFIX)

    @property
    def partial(self) -> Path:
        """The name of a converted output until it is complete."""
        return self.output.with_name(self.output.name + ".partial")

    def refuse_as_input(self, path: Path) -> None:
        """Raise HandlergenError if an input is one of these files, perhaps under another name: it would be lost."""
        for own in self._all:
            if _same_file(own, path):
                same = "" if own == path else f": {own} is the same file"
                raise HandlergenError(
                    f"{path} is the input, and the run would overwrite it{same}",
                    hint="name another output with -o",
                )

    def contains(self, path: Path) -> bool:
        """Return whether a path is one of these files, which need not exist at the moment."""
        return path.resolve() in self._places

    @property
    def _all(self) -> tuple[Path, ...]:
        return self.output, self.lines, self.journal, self.pending, self.partial

    @cached_property
    def _places(self) -> frozenset[Path]:
        return frozenset(path.resolve() for path in self._all)


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.is_file() and one.samefile(other)
    except OSError:  # such as a name that is too long; opening it reports the error
        return False


def can_resume(output: Path) -> bool:
    """Return whether there is an unfinished run to resume."""
    return OutputFiles(output).journal.exists()


def to_npy(lines: Path, target: Path) -> None:
    """Write answers that are numbers, or arrays of one shape, as one float64 array; failed rows are NaN.

    Raises:
        HandlergenError: The answers do not fit into one array. The lines are kept.
    """
    numpy = numpy_for("a .npy output")
    shape, count = None, 0
    for row in _rows(lines):
        count += 1
        if "answer" in row:
            found = _numbers(row).shape
            if shape is not None and found != shape:
                raise _unfit(row, f"has the shape {found}, others {shape}")
            shape = found
    array = numpy.lib.format.open_memmap(target, mode="w+", dtype=numpy.float64, shape=(count, *(shape or ())))
    for index, row in enumerate(_rows(lines)):
        array[index] = _numbers(row) if "answer" in row else numpy.nan
    array.flush()


def to_parquet(lines: Path, target: Path) -> None:
    """Write columns `id`, `status`, `answer`, `error`. Answers of one type keep it, others become JSON text."""
    pyarrow = _pyarrow()
    types: dict[str, Any] = {"id": None, "status": pyarrow.int16(), "answer": None, "error": None}
    for batch in _batches(lines):
        for name, known in types.items():
            if name != "status" and known != _JSON:
                types[name] = _merged(pyarrow, known, [_cell(row, name) for row in batch])
    if types["error"] in (None, pyarrow.null()):  # the same columns with and without errors
        types["error"] = pyarrow.struct([("type", pyarrow.string()), ("message", pyarrow.string())])
    try:
        _write(lines, target, types)
    except pyarrow.ArrowException:
        # An integer of one batch is too large for the floats of another.
        _write(lines, target, {**types, "answer": _JSON, "error": _JSON})


def to_csv(lines: Path, target: Path) -> None:
    """Write columns `id`, `status`, the answer, `error`; other than texts, values are JSON, and nulls are empty.

    If all answers are objects, with at most 1000 different keys, each key is a column (`answer.KEY` where one of the
    other columns has its name); else the column is `answer`, with bytes as base64.
    """
    keys: dict[str, None] = {}
    for row in _rows(lines):
        if "answer" in row:
            answer = row["answer"]
            keys |= dict.fromkeys(answer if isinstance(answer, dict) else ())
            if not isinstance(answer, dict) or len(keys) > _MOST_COLUMNS:
                keys = {}
                break
    own = ("id", "status", "error")
    named = [f"answer.{key}" if key in own else key for key in keys] or ["answer"]
    with target.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)  # lines end in CRLF: with \n, Python 3.11 does not quote a cell with a lone CR
        writer.writerow(["id", "status", *named, "error"])
        for row in _rows(lines):
            answer, error = row.get("answer"), row.get("error")
            values = [(answer or {}).get(key) for key in keys] if keys else [answer]
            said = f"{error['type']}: {error['message']}" if error else None
            writer.writerow([_csv_cell(value) for value in (row["id"], row["status"], *values, said)])


def _csv_cell(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


CONVERTERS: Mapping[str, Callable[[Path, Path], None]] = {".csv": to_csv, ".npy": to_npy, ".parquet": to_parquet}
"""By the output's suffix; other outputs are JSONL."""


def check_installed(output: Path) -> None:
    """Raise HandlergenError if the package that writes this kind of output is not installed."""
    if output.suffix.lower() == ".parquet":
        _pyarrow()
    elif output.suffix.lower() == ".npy":
        numpy_for("a .npy output")


def numpy_for(what: str) -> Any:
    """Return numpy, which `what` needs; raise HandlergenError if it is not installed."""
    try:
        import numpy
    except ImportError as error:
        raise HandlergenError(
            f"{what} needs numpy, which is not installed", hint="pip install numpy, or use a .jsonl file"
        ) from error
    return numpy


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise HandlergenError(
            "a Parquet output needs pyarrow, which is not installed",
            hint="pip install 'handlergen[parquet]', or write to a .jsonl file",
        ) from error
    return pyarrow


def _write(lines: Path, target: Path, types: Mapping[str, Any]) -> None:
    pyarrow = _pyarrow()
    schema = pyarrow.schema(
        [(name, pyarrow.string() if kind == _JSON else kind or pyarrow.null()) for name, kind in types.items()]
    )
    with pyarrow.parquet.ParquetWriter(target, schema) as writer:
        for batch in _batches(lines):
            columns = {
                name: [_json_text(row, name) if kind == _JSON else _cell(row, name) for row in batch]
                for name, kind in types.items()
            }
            writer.write_table(pyarrow.Table.from_pydict(columns, schema=schema))


def _merged(pyarrow: Any, known: Any, values: list[Any]) -> Any:
    """Return the type that holds these values and those of earlier batches; `_JSON` if there is none."""
    try:
        found = pyarrow.array(values).type
        if known is not None and not pyarrow.types.is_null(known):
            schemas = [pyarrow.schema([("v", kind)]) for kind in (known, found)]
            found = pyarrow.unify_schemas(schemas, promote_options="permissive").field("v").type
            pyarrow.array(values, found)
    except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError):  # the last: an unpaired surrogate
        return _JSON
    return _JSON if _has_empty_struct(pyarrow, found) else found


def _has_empty_struct(pyarrow: Any, kind: Any) -> bool:
    """Return whether a type contains an empty struct (`{}`), which Parquet does not support."""
    if pyarrow.types.is_struct(kind):
        return kind.num_fields == 0 or any(_has_empty_struct(pyarrow, field.type) for field in kind)
    return bool(pyarrow.types.is_list(kind)) and _has_empty_struct(pyarrow, kind.value_type)


def _cell(row: dict[str, Any], name: str) -> Any:
    value = row.get(name)
    return base64.b64decode(value) if name == "answer" and value and row.get("encoding") == "base64" else value


def _json_text(row: dict[str, Any], name: str) -> str | None:
    value = row.get(name)
    if value is None and not (name == "answer" and name in row):
        return None
    text = value if name == "id" and isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    # An unpaired surrogate, which UTF-8 cannot encode, becomes the escape that it is in the lines.
    return text.encode("utf-8", "backslashreplace").decode()


def _numbers(row: dict[str, Any]) -> Any:
    numpy = numpy_for("a .npy output")
    if "content_type" in row:
        raise _unfit(row, f"is {row['content_type']}")
    try:
        return numpy.asarray(row["answer"], dtype=numpy.float64)
    except (TypeError, ValueError):
        raise _unfit(row, "is not an array of numbers") from None


def _unfit(row: dict[str, Any], why: str) -> HandlergenError:
    return HandlergenError(
        f"the answers do not fit into one .npy array: the answer of row {row['id']} {why}",
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
