"""From an input to an output file, as often interrupted as it may be."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Protocol

from handlergen.errors import HandlergenError, TooManyErrors
from handlergen.local.offline.engine import Engine
from handlergen.local.offline.journal import PendingOutputs, open_journal, write_errors_told
from handlergen.local.offline.output import CONVERTERS, OutputFiles, check_installed
from handlergen.local.offline.rows import Chunk, Lines, in_chunks
from handlergen.local.offline.sources import RowSource

DEFAULT_BATCH_SIZE = 32


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        rows: In the output, with those of the runs before.
        failed: How many of them are errors.
        new_rows: Of this run.
        seconds: That this run has taken so far.
        fraction: Of the input that has been read; None when its size is not known.
    """

    rows: int
    failed: int
    new_rows: int
    seconds: float
    fraction: float | None


@dataclass(frozen=True)
class Summary:
    """A run that reached the end of its input.

    Attributes:
        output: Where the answers are; None for standard output.
        rows: In the output.
        failed: How many of them are errors.
        resumed_rows: How many of them were there when it began.
        seconds: That it took, without loading the model.
    """

    output: Path | None
    rows: int
    failed: int
    resumed_rows: int
    seconds: float

    @property
    def rows_per_s(self) -> float:
        return (self.rows - self.resumed_rows) / self.seconds if self.seconds > 0 else 0.0


class _LineWriter(Protocol):
    """An output of lines: a `Journal`'s, or a stream.

    Attributes:
        rows, failed: How many rows are in it, and how many of them are errors.
    """

    rows: int
    failed: int

    def write(self, lines: Lines) -> None: ...


class _LineStream:
    """An output that cannot be read again, and so not be resumed."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.rows = 0
        self.failed = 0

    def write(self, lines: Lines) -> None:
        self._stream.write(lines.text)
        self._stream.flush()
        self.rows += len(lines.chunk.rows)
        self.failed += lines.failed


def map_to_file(
    engine: Engine,
    source: RowSource,
    output: Path | IO[bytes],
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    ordered: bool = True,
    max_errors: int | None = None,
    overwrite: bool = False,
    progress: Callable[[Progress], None] = lambda _progress: None,
) -> Summary:
    """Answer every row of an input; go on with what another run of the same has left.

    Args:
        engine: What answers.
        source: The input.
        output: A path that ends in `.jsonl`, `.npy` or `.parquet`, or a stream for lines, which cannot be resumed.
        batch_size: Rows that are predicted, written and recorded together.
        ordered: Keep the order of the input.
        max_errors: Stop when more rows than this have failed; None for never.
        overwrite: Begin anew, whatever is there.
        progress: Told after every chunk.

    Raises:
        TooManyErrors: See `max_errors`; what is done is kept, and a run with a greater one goes on.
        HandlergenError: The input or the output is not what it should be.
    """
    if batch_size < 1:
        raise HandlergenError("the batch size must be at least 1")
    if not isinstance(output, Path):
        run = _Run(engine, source, batch_size, ordered, max_errors, progress)
        return run.go(_LineStream(output), None, {}, None)
    check_installed(output)
    files = OutputFiles(output)
    if source.path is not None:
        files.refuse_as_input(source.path)
    run = _Run(engine, replace(source, leave_out=files.own), batch_size, ordered, max_errors, progress)
    if files.converted and output.exists() and not overwrite:
        raise HandlergenError(f"{output} is there already", hint="--overwrite makes it anew")
    same = {**source.identity, "model": engine.identity, "batch_size": batch_size}
    journal = open_journal(files.lines, same, restart=overwrite)
    pending = PendingOutputs(files.pending)
    complete = False
    try:
        summary = run.go(journal, output, dict(journal.done), pending)
        if files.converted:
            _convert(files)
        complete = True
    finally:
        with write_errors_told(output):
            pending.close(complete=complete)
            journal.close(complete=complete)
    if files.converted:
        files.lines.unlink()
    return summary


def _convert(files: OutputFiles) -> None:
    """Make the output of its lines, in one step."""
    with write_errors_told(files.output):
        CONVERTERS[files.output.suffix.lower()](files.lines, files.partial)
        files.partial.replace(files.output)


@dataclass(frozen=True)
class _Run:
    engine: Engine
    source: RowSource
    batch_size: int
    ordered: bool
    max_errors: int | None
    progress: Callable[[Progress], None]

    def go(
        self, writer: _LineWriter, output: Path | None, done: dict[int, int], pending: PendingOutputs | None
    ) -> Summary:
        """Answer what is not in `done`."""
        started, before = time.monotonic(), writer.rows
        chunks = _left(in_chunks(self.source.rows(), self.batch_size), done, output)
        running = self.engine.run(chunks, writer.write, ordered=self.ordered, pending=pending)
        with contextlib.closing(running):
            _check_errors(writer, self.max_errors, output)
            for _ in running:
                seconds = time.monotonic() - started
                fraction = self.source.fraction()
                self.progress(Progress(writer.rows, writer.failed, writer.rows - before, seconds, fraction))
                _check_errors(writer, self.max_errors, output)
        return Summary(output, writer.rows, writer.failed, before, time.monotonic() - started)


def _check_errors(writer: _LineWriter, max_errors: int | None, output: Path | None) -> None:
    if max_errors is None or writer.failed <= max_errors:
        return
    kept = f"; {writer.rows} rows are in {output}" if output is not None else ""
    raise TooManyErrors(
        f"{writer.failed} row{'s' if writer.failed > 1 else ''} failed, more than the {max_errors} allowed{kept}",
        hint="the same command with a greater --max-errors goes on",
    )


def _left(chunks: Iterator[Chunk], done: dict[int, int], output: Path | None) -> Iterator[Chunk]:
    """The chunks that no earlier run wrote.

    Raises:
        HandlergenError: What an earlier run wrote was the answer to something else.
    """
    for chunk in chunks:
        expected = done.pop(chunk.number, None)
        if expected is None:
            yield chunk
        elif expected != chunk.checksum():
            raise _another_input(output, f"rows from {chunk.rows[0].id} on are others")
    if done:
        raise _another_input(output, "it has fewer rows")


def _another_input(output: Path | None, why: str) -> HandlergenError:
    return HandlergenError(
        f"the input is not the one that {output} was begun with: {why}",
        hint="give the same input to go on, or --overwrite to begin anew",
    )


def as_json(summary: Summary) -> dict[str, Any]:
    """A summary as plain values."""
    return {
        "output": str(summary.output) if summary.output is not None else None,
        "rows": summary.rows,
        "ok": summary.rows - summary.failed,
        "failed": summary.failed,
        "resumed_rows": summary.resumed_rows,
        "seconds": round(summary.seconds, 3),
        "rows_per_s": round(summary.rows_per_s, 1),
    }
