"""The record of a run, with which another run goes on where this one ended, whatever ended it.

**The journal.** Beside the output lies OUTPUT.journal: a line that describes the run, then one line a chunk, written
after the chunk's lines are in the output: `[number, rows, failed, size of the output, CRC-32 of its lines, CRC-32 of
its input]`. What a process wrote survives its SIGKILL; so that it survives the machine too, both files are synced in a
thread of its own, a few times a second.

A resumed run believes the longest prefix of the journal whose last chunk stands in the output as it was written, cuts
the output there, and leaves out these chunks.

**Pending outputs.** While one chunk is postprocessed, the next one is predicted: a run that is killed then has two
chunks under way. So that another run predicts only one of them again, the outputs of the first are in OUTPUT.predicted
before the second prediction begins. As with the journal, what a process wrote survives its SIGKILL. After a crash of
the machine the file may be torn; then both chunks are predicted again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pickle
import stat
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handlergen.errors import HandlergenError
from handlergen.local.offline.rows import Chunk, Lines
from handlergen.runtime.pipeline.hooks import Item
from handlergen.runtime.predictor_process import serialization

VERSION = 1
SUFFIX = ".journal"
PENDING_SUFFIX = ".predicted"
_SYNC_EVERY_S = 0.25

_MOST_PENDING = 32 << 20
"""Bytes of outputs above which writing them costs more than the overlap of two stages gives."""

_PENDING_HEAD = struct.Struct("<QI")
"""Size and CRC-32 of the pickle that follows."""


@dataclass(frozen=True)
class JournalEntry:
    """One chunk that is done."""

    number: int
    rows: int
    failed: int
    size: int
    lines_crc: int
    input_crc: int

    def line(self) -> bytes:
        return b"[%d,%d,%d,%d,%d,%d]\n" % (
            self.number,
            self.rows,
            self.failed,
            self.size,
            self.lines_crc,
            self.input_crc,
        )


def journal_path(output: Path) -> Path:
    """Where the journal of an output lies while it is not complete."""
    return output.with_name(output.name + SUFFIX)


@contextlib.contextmanager
def write_errors_told(file: Path) -> Iterator[None]:
    """Make an error of the system while a run's file is written one that says how the run goes on.

    Raises:
        HandlergenError: The disk is full, say.
    """
    try:
        yield
    except OSError as error:
        raise HandlergenError(
            f"{file} cannot be written: {error.strerror or error}",
            hint="what is done is kept; when that is mended, the same command goes on",
        ) from error


class Journal:
    """An output of lines and the record of what is in it; made by `open_journal`.

    Attributes:
        done: Input CRC by number of the chunks that an earlier run wrote.
        rows, failed: How many rows are in the output, and how many of them are errors.
    """

    def __init__(self, output: Path, files: tuple[int, int], entries: list[JournalEntry]) -> None:
        self.output = output
        self._output, self._journal = files
        self.done = {entry.number: entry.input_crc for entry in entries}
        self.rows = sum(entry.rows for entry in entries)
        self.failed = sum(entry.failed for entry in entries)
        self._size = entries[-1].size if entries else 0
        self._dirty = threading.Event()
        self._ending = threading.Event()
        self._trouble: OSError | None = None
        self._syncer: threading.Thread | None = None

    def write(self, lines: Lines) -> None:
        """Add a chunk's lines; when this returns, a resumed run does not repeat them.

        Raises:
            HandlergenError: The disk is full, say.
        """
        with write_errors_told(self.output):
            if self._trouble is not None:
                raise self._trouble
            chunk, text = lines.chunk, lines.text
            _write_all(self._output, text)
            self._size += len(text)
            entry = JournalEntry(
                chunk.number, len(chunk.rows), lines.failed, self._size, zlib.crc32(text), chunk.checksum()
            )
            _write_all(self._journal, entry.line())
        self.rows += entry.rows
        self.failed += entry.failed
        self._dirty.set()
        if self._syncer is None:  # not before: preparing processes are forked first
            self._syncer = threading.Thread(target=self._sync, name="handlergen-sync", daemon=True)
            self._syncer.start()

    def close(self, *, complete: bool) -> None:
        """Sync and close; the journal of a complete output is removed.

        Raises:
            OSError: What was written may not have reached the disk.
        """
        self._ending.set()
        self._dirty.set()
        if self._syncer is not None:
            self._syncer.join()
        try:
            if self._trouble is not None:
                raise self._trouble
            os.fsync(self._output)
            if not complete:
                os.fsync(self._journal)
            else:
                journal_path(self.output).unlink(missing_ok=True)
        finally:
            os.close(self._output)
            os.close(self._journal)

    def _sync(self) -> None:
        while not self._ending.wait(_SYNC_EVERY_S):
            self._dirty.wait()
            self._dirty.clear()
            try:
                os.fdatasync(self._output)
                os.fdatasync(self._journal)
            except OSError as error:
                self._trouble = error
                return


def open_journal(output: Path, run: dict[str, Any], *, restart: bool) -> Journal:
    """Begin an output, or go on with one that another run left.

    Args:
        output: Of lines.
        run: What makes this run the same as another one; plain JSON values.
        restart: Begin anew whatever is there.

    Raises:
        HandlergenError: There is a complete output, another run's, or one that is being written now; or it cannot be
            written.
    """
    try:
        return _opened(output, run, restart=restart)
    except OSError as error:
        raise HandlergenError(
            f"{output} cannot be written: {error.strerror or error}", hint="name another output with -o"
        ) from error


def _opened(output: Path, run: dict[str, Any], *, restart: bool) -> Journal:
    path = journal_path(output)
    if output.exists() and not path.exists() and not restart:
        raise HandlergenError(f"{output} is there already", hint="--overwrite makes it anew")
    output.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as opened:
        journal = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        opened.callback(os.close, journal)
        _claim(journal, output)
        lines = os.open(output, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        opened.callback(os.close, lines)
        described, entries = _read(journal)
        if restart or described is None:
            described, entries = None, []
        else:
            _check_same(described, run, output)
        while entries and not _stands(lines, entries):
            entries.pop()
        os.ftruncate(lines, entries[-1].size if entries else 0)
        os.lseek(lines, 0, os.SEEK_END)
        head = _head(described or run)
        if described is None:
            os.ftruncate(journal, 0)
            os.lseek(journal, 0, os.SEEK_SET)
            _write_all(journal, head)
        os.ftruncate(journal, len(head) + sum(len(entry.line()) for entry in entries))
        os.lseek(journal, 0, os.SEEK_END)
        opened.pop_all()
    return Journal(output, (lines, journal), entries)


def _claim(journal: int, output: Path) -> None:
    """Only one run at a time. A record lock: forked preparing processes do not inherit it (fcntl(2))."""
    try:
        fcntl.lockf(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise HandlergenError(f"another run is writing {output}") from None


def _read(journal: int) -> tuple[dict[str, Any] | None, list[JournalEntry]]:
    """The run's description and its entries; a torn last line is as if it had not been begun."""
    # Not through another descriptor: closing it would drop the record lock (fcntl(2)).
    lines = _pread(journal, 0, os.fstat(journal).st_size).split(b"\n")[:-1]
    try:
        described: dict[str, Any] = json.loads(lines[0])["run"]
        if lines[0] + b"\n" != _head(described):
            return None, []
    except (IndexError, KeyError, ValueError, TypeError):
        return None, []
    entries: list[JournalEntry] = []
    for line in lines[1:]:
        try:
            entries.append(JournalEntry(*json.loads(line)))
        except (ValueError, TypeError):
            break
        if entries[-1].line() != line + b"\n":
            entries.pop()
            break
    return described, entries


def _stands(output: int, entries: list[JournalEntry]) -> bool:
    """Is the last entry's chunk in the output as it was written? (After a crash of the machine it may not be.)"""
    last = entries[-1]
    start = entries[-2].size if len(entries) > 1 else 0
    return zlib.crc32(_pread(output, start, last.size - start)) == last.lines_crc


def _check_same(described: dict[str, Any], run: dict[str, Any], output: Path) -> None:
    different = [key for key in run if described.get(key) != run[key]]
    if different:
        what = "; ".join(f"{key} was {described.get(key)}, is {run[key]}" for key in different)
        raise HandlergenError(
            f"{output} was begun by another run: {what}",
            hint="give what that run was given to go on with it, or --overwrite to begin anew",
        )


def _head(run: dict[str, Any]) -> bytes:
    return json.dumps({"handlergen_journal": VERSION, "run": run}).encode() + b"\n"


def _pread(file: int, start: int, size: int) -> bytes:
    parts = []
    while size > 0:
        part = os.pread(file, min(size, 1 << 24), start)
        if not part:
            break
        parts.append(part)
        start, size = start + len(part), size - len(part)
    return b"".join(parts)


def _write_all(file: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]


class PendingOutputs:
    """The file with the outputs of the chunk that was predicted last.

    Args:
        path: Where it is, if an earlier run left it; it is made when it is needed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._given_up = False
        self._left = _pending_of(path)

    def keep(self, chunk: Chunk, items: Sequence[Item]) -> bool:
        """Write down what the postprocessing of a chunk needs of its prediction; replaces the chunk before it.

        Returns:
            False when that cannot be: it is too much, or cannot be pickled. No later chunk is tried then.

        Raises:
            HandlergenError: The disk is full, say.
        """
        content = None if self._given_up else _pickled(chunk, items)
        if content is None:
            self._given_up = True
            return False
        with write_errors_told(self._path):
            if self._file is None:
                self._path.unlink(missing_ok=True)
                self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.lseek(self._file, 0, os.SEEK_SET)
            _write_all(self._file, _PENDING_HEAD.pack(len(content), zlib.crc32(content)) + content)
        return True

    def restore(self, chunk: Chunk, items: Sequence[Item]) -> bool:
        """Give prepared items the outputs that an earlier run has predicted for them.

        Returns:
            False when this is not the chunk that it left.
        """
        if self._left is None or self._left[:2] != (chunk.number, chunk.checksum()):
            return False
        _, _, pickled, buffers = self._left
        self._left = None
        try:
            outputs = serialization.unpack(pickled, map(bytearray, buffers))
        except Exception:  # made by another version of what the module imports
            return False
        for item, (failure, stage, output, metadata) in zip(items, outputs, strict=True):
            if failure is not None:
                item.failure = failure
            elif item.failure is None:
                item.model_index, item.outputs = stage, output
                item.request.metadata.update(metadata)
        return True

    def close(self, *, complete: bool) -> None:
        """Close the file; that of a complete run is removed."""
        if self._file is not None:
            os.close(self._file)
        if complete:
            self._path.unlink(missing_ok=True)


def _pickled(chunk: Chunk, items: Sequence[Item]) -> bytes | None:
    outputs = []
    for item in items:
        if item.http is not None:  # an object of the hooks' own, on which predict may have left anything
            return None
        outputs.append((item.failure, item.model_index, item.outputs, item.request._metadata or {}))
    try:
        pickled, buffers = serialization.pack(outputs)
    except Exception:  # the pickling of the user's own types raises anything
        return None
    if len(pickled) + sum(buffer.nbytes for buffer in buffers) > _MOST_PENDING:
        return None
    return pickle.dumps((chunk.number, chunk.checksum(), pickled, list(map(bytes, buffers))))


def _pending_of(path: Path) -> tuple[int, int, bytes, list[bytes]] | None:
    """Chunk, its input's CRC and its outputs of a whole file that nobody else could have written; else None."""
    with contextlib.suppress(OSError, struct.error):
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with os.fdopen(file, "rb") as opened:
            found = os.fstat(file)
            if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
                return None
            size, crc = _PENDING_HEAD.unpack(opened.read(_PENDING_HEAD.size))
            content = opened.read()[:size]
            if len(content) == size and zlib.crc32(content) == crc:
                left: tuple[int, int, bytes, list[bytes]] = pickle.loads(content)  # noqa: S301 - this user's
                return left
    return None
