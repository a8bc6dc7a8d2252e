"""The journal of a run, from which a later run resumes, whatever ended the earlier one.

**The journal.** OUTPUT.journal has a line that describes the run, then one line per chunk, written after the chunk's
lines are in the output: `[number, rows, failed, size of the output, CRC-32 of its lines, CRC-32 of its input]`. What a
process has written survives its SIGKILL; to survive a crash of the machine, a thread syncs both files a few times a
second. A resumed run trusts the longest prefix of the journal whose last chunk is in the output as it was written,
truncates the output there, and skips these chunks.

**Pending outputs.** While one chunk is postprocessed, the next one is predicted, so a killed run may lose two chunks.
To predict only one of them again, OUTPUT.predicted stores the outputs of the first before the second prediction starts.
After a crash of the machine that file may be torn; then both chunks are predicted again.
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
from pathlib import Path
from typing import Any, NamedTuple

from handlergen.errors import HandlergenError
from handlergen.local.offline.rows import Chunk, Lines
from handlergen.runtime.pipeline.hooks import Item
from handlergen.runtime.predictor_process.transport import pack, unpack

VERSION = 1
SUFFIX = ".journal"
PENDING_SUFFIX = ".predicted"
_SYNC_EVERY_S = 0.25

_MOST_PENDING = 32 << 20  # outputs of more bytes take longer to write than the overlap of two stages saves
_PENDING_HEAD = struct.Struct("<QI")  # size and CRC-32 of the pickle that follows


class JournalEntry(NamedTuple):
    """One chunk that is in the output."""

    number: int
    rows: int
    failed: int
    size: int
    lines_crc: int
    input_crc: int

    def line(self) -> bytes:
        return b"[%d,%d,%d,%d,%d,%d]\n" % self


def journal_path(output: Path) -> Path:
    """Return the path of an unfinished output's journal."""
    return output.with_name(output.name + SUFFIX)


_RESUME = "the output so far is kept; fix the cause and repeat the command to resume"


@contextlib.contextmanager
def explained_write_errors(file: Path, *, hint: str = _RESUME) -> Iterator[None]:
    """Turn an OSError while a run's file is written into a HandlergenError."""
    try:
        yield
    except OSError as error:
        raise HandlergenError(f"{file} cannot be written: {error.strerror or error}", hint=hint) from error


class Journal:
    """An output of lines and its journal; made by `open_journal`.

    Attributes:
        done: Chunks that an earlier run wrote: number -> CRC-32 of the input.
        rows, failed: Number of rows in the output, and how many of them are errors.
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
        self._sync_error: OSError | None = None
        self._syncer: threading.Thread | None = None

    def write(self, lines: Lines) -> None:
        """Append a chunk's lines and journal entry; raise HandlergenError if a file cannot be written."""
        with explained_write_errors(self.output):
            if self._sync_error is not None:
                raise self._sync_error
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
        if self._syncer is None:  # the first chunk comes after preparing processes have been forked
            self._syncer = threading.Thread(target=self._sync, name="handlergen-sync", daemon=True)
            self._syncer.start()

    def close(self, *, complete: bool) -> None:
        """Sync and close; remove the journal of a complete output. OSError: the output may not be on the disk."""
        self._ending.set()
        self._dirty.set()
        if self._syncer is not None:
            self._syncer.join()
        try:
            if self._sync_error is not None:
                raise self._sync_error
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
                self._sync_error = error
                return


def open_journal(output: Path, run: dict[str, Any], *, restart: bool) -> Journal:
    """Start an output of lines, or resume an unfinished one, whose `run` (JSON values) must be the same.

    Raises:
        HandlergenError: The output is complete, is another run's, is being written now, or cannot be written.
    """
    path = journal_path(output)
    with explained_write_errors(output, hint="name another output with -o"), contextlib.ExitStack() as opened:
        if output.exists() and not path.exists() and not restart:
            raise HandlergenError(f"{output} already exists", hint="use --overwrite to replace it")
        output.parent.mkdir(parents=True, exist_ok=True)
        journal = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        opened.callback(os.close, journal)
        try:  # one run at a time; forked processes do not inherit a record lock (fcntl(2))
            fcntl.lockf(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise HandlergenError(f"another run is writing {output}") from None
        lines = os.open(output, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        opened.callback(os.close, lines)
        described, found = _read(journal)
        if restart or described is None:
            described, found = None, []
        else:
            _check_same(described, run, output)
        while found and not _is_intact(lines, found):
            found.pop()
        os.ftruncate(lines, found[-1].size if found else 0)
        os.lseek(lines, 0, os.SEEK_END)
        head = _head(described or run)
        if described is None:
            os.ftruncate(journal, 0)
            os.lseek(journal, 0, os.SEEK_SET)
            _write_all(journal, head)
        os.ftruncate(journal, len(head) + sum(len(entry.line()) for entry in found))
        os.lseek(journal, 0, os.SEEK_END)
        opened.pop_all()
    return Journal(output, (lines, journal), found)


def _read(journal: int) -> tuple[dict[str, Any] | None, list[JournalEntry]]:
    """Return the run's description and its entries, without a torn last line."""
    # Closing another descriptor of the file would drop the record lock (fcntl(2)).
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


def _is_intact(output: int, entries: list[JournalEntry]) -> bool:
    """Return whether the last entry's chunk is in the output as it was written; after a crash it may not be."""
    last = entries[-1]
    start = entries[-2].size if len(entries) > 1 else 0
    return zlib.crc32(_pread(output, start, last.size - start)) == last.lines_crc


def _check_same(described: dict[str, Any], run: dict[str, Any], output: Path) -> None:
    different = [key for key in run if described.get(key) != run[key]]
    if different:
        what = "; ".join(f"{key} was {described.get(key)}, is {run[key]}" for key in different)
        raise HandlergenError(
            f"{output} was started by another run: {what}",
            hint="repeat that run's command to resume it, or use --overwrite to start over",
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
    """The file with the outputs of the chunk that was predicted last; created when it is first needed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._given_up = False
        self._left = _read_pending(path)

    def keep(self, chunk: Chunk, items: Sequence[Item]) -> bool:
        """Store the outputs of a chunk, replacing those of the previous chunk.

        Returns:
            False if they are too large or cannot be pickled. Later chunks are not stored then.
        """
        content = None if self._given_up else _pickled(chunk, items)
        if content is None:
            self._given_up = True
            return False
        with explained_write_errors(self._path):
            if self._file is None:
                self._path.unlink(missing_ok=True)
                self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.lseek(self._file, 0, os.SEEK_SET)
            _write_all(self._file, _PENDING_HEAD.pack(len(content), zlib.crc32(content)) + content)
        return True

    def restore(self, chunk: Chunk, items: Sequence[Item]) -> bool:
        """Give prepared items the outputs that an earlier run predicted; return False if they are another chunk's."""
        if self._left is None or self._left[:2] != (chunk.number, chunk.checksum()):
            return False
        _, _, pickled, buffers = self._left
        self._left = None
        try:
            outputs = unpack(pickled, map(bytearray, buffers))
        except Exception:  # pickled with another version of a package
            return False
        for item, (failure, stage, output, metadata) in zip(items, outputs, strict=True):
            if failure is not None:
                item.failure = failure
            elif item.failure is None:
                item.model_index, item.outputs = stage, output
                item.request.metadata.update(metadata)
        return True

    def close(self, *, complete: bool) -> None:
        """Close the file; remove it if the run is complete."""
        if self._file is not None:
            os.close(self._file)
        if complete:
            self._path.unlink(missing_ok=True)


def _pickled(chunk: Chunk, items: Sequence[Item]) -> bytes | None:
    outputs = []
    for item in items:
        if item.http is not None:  # a request object of the hooks, whose state predict may have changed
            return None
        outputs.append((item.failure, item.model_index, item.outputs, item.request._metadata or {}))
    try:
        pickled, buffers = pack(outputs)
    except Exception:  # the pickling of the user's own types raises anything
        return None
    if len(pickled) + sum(buffer.nbytes for buffer in buffers) > _MOST_PENDING:
        return None
    return pickle.dumps((chunk.number, chunk.checksum(), pickled, list(map(bytes, buffers))))


def _read_pending(path: Path) -> tuple[int, int, bytes, list[bytes]] | None:
    """Return chunk number, input CRC and outputs, if the file is complete and only this user can write to it."""
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
