"""Read rows from JSONL, CSV, .npy, a directory or glob of files, or standard input."""

from __future__ import annotations

import csv
import glob
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from handlergen.errors import HandlergenError
from handlergen.local.offline.output import numpy_for
from handlergen.local.offline.rows import Row, RowId
from handlergen.local.requests import content_type_of, npy_bytes
from handlergen.runtime.codec.content import JSON, NPY

_BY_SUFFIX = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv", ".npy": "npy"}

_LARGEST_FIELD = 1 << 30  # characters of a CSV field. Python's own limit of 131,072 is less than an image in base64


@dataclass
class RowSource:
    """An input that can be read once, from its start.

    Attributes:
        format: `jsonl`, `csv`, `npy` or `files`.
        path: The file or directory; None for standard input and for a glob.
        pattern: A glob that the files match; of a single file its name.
        id_field: The field of a row that is its id; None: use its number.
        content_type: Overrides the type guessed from the file name.
        stream: Read instead of `path`.
        directory: `pattern` is relative to it.
        leave_out: Whether to skip a file that was found, such as the run's own output.
        fraction: Share of the input that has been read, 0..1; None if its size is unknown.
    """

    format: str
    path: Path | None = None
    pattern: str | None = None
    id_field: str | None = None
    content_type: str | None = None
    stream: IO[bytes] | None = None
    directory: Path = field(default_factory=Path.cwd)
    leave_out: Callable[[Path], bool] = lambda _path: False
    warn: Callable[[str], None] = lambda _message: None
    fraction: float | None = field(default=None, init=False)

    @property
    def identity(self) -> dict[str, Any]:
        """Return what identifies this input, for a run that is resumed."""
        found = self.path if self.path is not None and not _is_pipe(self.path) else None
        return {
            "format": self.format,
            "input": self.pattern or (str(found.resolve()) if found is not None else "-"),
            "id_field": self.id_field,
            "content_type": self.content_type,
        }

    def rows(self) -> Iterator[Row]:
        """Yield the rows, read as they are needed; raise HandlergenError if the input cannot be read."""
        try:
            yield from {"jsonl": self._jsonl, "csv": self._csv, "npy": self._npy, "files": self._files}[self.format]()
        except OSError as error:
            raise HandlergenError(f"cannot read {error.filename or self._name}: {error.strerror}") from error

    @property
    def _name(self) -> str:
        return str(self.path or self.pattern or "standard input")

    def _opened(self) -> IO[bytes]:
        if self.stream is not None:
            return self.stream
        assert self.path is not None
        return self.path.open("rb")

    def _jsonl(self) -> Iterator[Row]:
        with self._opened() as file:
            size = os.fstat(file.fileno()).st_size if self.path is not None else 0
            done = number = 0
            for line in file:
                done += len(line)
                body = line.strip()
                if not body:
                    continue
                if size:
                    self.fraction = done / size
                yield Row(self._id(number, body), body, JSON)
                number += 1

    def _csv(self) -> Iterator[Row]:
        with self._opened() as file:
            size = os.fstat(file.fileno()).st_size if self.path is not None else 0
            for number, row in enumerate(_csv_rows(file, self._name)):
                if size:
                    self.fraction = min(1.0, file.tell() / size)
                body = json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogateescape")
                yield Row(self._id(number, row), body, JSON)

    def _npy(self) -> Iterator[Row]:
        numpy = numpy_for("a .npy input")
        if self.path is None or _is_pipe(self.path):
            raise HandlergenError(f"a .npy input must be a file: {self._name} can only be read once")
        try:
            array = numpy.load(self.path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise HandlergenError(f"{self.path} is not a .npy file of numbers: {error}") from error
        if array.ndim == 0:
            raise HandlergenError(f"{self.path} has no rows: it is a single number")
        for number in range(len(array)):
            self.fraction = (number + 1) / len(array)
            yield Row(number, npy_bytes(array[number]), NPY)

    def _files(self) -> Iterator[Row]:
        if self.pattern is not None:
            # Path.glob rejects absolute patterns, and normalizes the paths.
            names = glob.glob(self.pattern, root_dir=self.directory, recursive=True)  # noqa: PTH207
            found = sorted(name for name in names if self._is_input(self.directory / name))
            total = len(found)
            inputs = ((name, self.directory / name) for name in found)
        else:
            assert self.path is not None
            root = self.path.absolute()
            skipped: list[Path] = []
            total = sum(self._is_input(path) for path in _walk(root, skipped))
            if skipped:
                self.warn(
                    f"skipped {len(skipped)} symbolic link{'s' if len(skipped) > 1 else ''} to directories in "
                    f"{self.path} ({skipped[0].relative_to(root)}): give such a directory as an input of its own"
                )
            inputs = ((path.relative_to(root).as_posix(), path) for path in _walk(root, []) if self._is_input(path))
        if total == 0:
            raise HandlergenError(
                f"no file matches {self.pattern}" if self.pattern else f"there are no files in {self.path}"
            )
        for number, (name, path) in enumerate(inputs):
            self.fraction = min(1.0, (number + 1) / total)
            yield Row(name, path, self.content_type or content_type_of(name), _version(path))

    def _is_input(self, path: Path) -> bool:
        return path.is_file() and not self.leave_out(path)

    def _id(self, number: int, row: bytes | dict[str, Any]) -> RowId:
        if self.id_field is None:
            return number
        try:
            value = (json.loads(row) if isinstance(row, bytes) else row)[self.id_field]
        except (ValueError, KeyError, TypeError, IndexError):
            return number  # decoding the row reports the error
        return value if isinstance(value, int | str) and not isinstance(value, bool) else json.dumps(value)


def open_source(
    given: str,
    *,
    format: str | None = None,
    id_field: str | None = None,
    content_type: str | None = None,
    stdin: IO[bytes] | None = None,
    warn: Callable[[str], None] = lambda _message: None,
) -> RowSource:
    """Determine the format of an input.

    Args:
        given: A file (JSONL, CSV with a header, .npy), a directory, a glob, or `-` for JSONL (CSV) on `stdin`. A pipe
            or a device is read like `-`.
        format: Overrides the format that the file's suffix suggests.
        id_field, content_type, warn: As for `RowSource`; `content_type` is for files only.
        stdin: Where `-` reads.

    Raises:
        HandlergenError: The input does not exist, or its format is unknown.
    """
    path = Path(given).absolute()
    if id_field is not None and format not in (None, "jsonl", "csv"):
        raise HandlergenError("only rows of JSONL or CSV have fields to take the id from")
    if given == "-":
        return RowSource(format or "jsonl", id_field=id_field, stream=stdin)
    if path.is_dir():
        return RowSource("files", path, content_type=content_type, warn=warn)
    if path.exists():
        found = format or _BY_SUFFIX.get(path.suffix.lower()) or ("jsonl" if _is_pipe(path) else "files")
        if found != "files":
            return RowSource(found, path, id_field=id_field, content_type=content_type)
        if _is_pipe(path):
            raise HandlergenError(
                f"{given} is a pipe or a device, not a file", hint="read lines from it with --format jsonl"
            )
        return RowSource("files", path, glob.escape(given), content_type=content_type)
    if glob.has_magic(given):
        return RowSource("files", pattern=given, content_type=content_type)
    raise HandlergenError(
        f"there is no input {given}", hint="give a file, a directory, a quoted glob, or - for standard input"
    )


def _csv_rows(file: IO[bytes], name: str) -> Iterator[dict[str, str]]:
    """Yield the rows after the header, as they are read; `name` is the file's.

    A byte that is not UTF-8 is kept as a surrogate (PEP 383), so that only its row fails.
    """
    csv.field_size_limit(max(csv.field_size_limit(), _LARGEST_FIELD))
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.DictReader(text, delimiter="\t" if name.lower().endswith(".tsv") else ",", strict=True)
    try:
        _check_header(reader.fieldnames or (), name)
        for row in reader:
            if None in row or None in row.values():
                width = "more" if None in row else "fewer"
                raise HandlergenError(f"{name}, line {reader.line_num}: the row has {width} fields than the header")
            yield row
    except csv.Error as error:
        raise HandlergenError(f"{name}, line {reader.reader.line_num}: {error}") from error
    finally:
        text.detach()  # the caller closes the file


def _check_header(names: Any, file: str) -> None:
    twice = [field for field, count in Counter(names).items() if count > 1]
    if twice:
        raise HandlergenError(
            f"{file}, line 1: the header has {', '.join(map(repr, twice))} twice, and a row has one value per name",
            hint="rename one of the columns",
        )
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        raise HandlergenError(f"{file}, line 1: the header is not UTF-8", hint="save the file as UTF-8") from None


def _is_pipe(path: Path) -> bool:
    """Return whether the path can only be read once: a pipe (`<(command)`) or a device."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _version(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:  # reading the row reports the error
        return ""
    return f" {found.st_size} {found.st_mtime_ns}"


def _walk(directory: Path, skipped: list[Path]) -> Iterator[Path]:
    """Yield the files below a directory by name, without hidden ones. Links to directories, which may form a cycle, are
    not followed but added to `skipped`.
    """
    with os.scandir(directory) as found:
        entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda e: e.name)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), skipped)
        elif entry.is_file():
            yield Path(entry.path)
        elif entry.is_dir():
            skipped.append(Path(entry.path))
