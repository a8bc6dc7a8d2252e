"""Map an input to an output file; an interrupted run resumes where it stopped."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

from handlergen.errors import HandlergenError, TooManyErrors
from handlergen.local.offline.engine import Engine
from handlergen.local.offline.journal import Journal, PendingOutputs, explained_write_errors, open_journal
from handlergen.local.offline.output import CONVERTERS, OutputFiles, check_installed
from handlergen.local.offline.rows import Chunk, Lines, in_chunks
from handlergen.local.offline.sources import RowSource

DEFAULT_BATCH_SIZE = 32


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        rows, failed: Rows in the output, including those of earlier runs, and those of them that are errors.
        new_rows, seconds: Rows that this run has added, and the time since it started.
        fraction: Share of the input that has been read; None when its size is unknown.
    """

    rows: int
    failed: int
    new_rows: int
    seconds: float
    fraction: float | None


@dataclass(frozen=True)
class Summary:
    """A completed run.

    Attributes:
        output: The output file; None for standard output.
        rows, failed: As in `Progress`.
        resumed_rows: Rows that earlier runs had written.
        seconds: Duration, without loading the model.
    """

    output: Path | None
    rows: int
    failed: int
    resumed_rows: int
    seconds: float

    @property
    def rows_per_s(self) -> float:
        return (self.rows - self.resumed_rows) / self.seconds if self.seconds > 0 else 0.0


class LineStream:
    """An output that cannot be read again, so a run that writes to it cannot be resumed. Counts as a `Journal` does."""

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
    """Answer every row of an input. Resumes an earlier run with the same input, model and batch size.

    Args:
        output: A path that ends in `.jsonl`, `.csv`, `.npy` or `.parquet`; or a stream for lines (no resuming).
        batch_size: Rows that are predicted, written and recorded together.
        ordered: Keep the order of the input.
        max_errors: Stop when more rows than this have failed; None: never.
        overwrite: Start over, whatever exists.
        progress: Called after every chunk.

    Raises:
        TooManyErrors: See `max_errors`; the output so far is kept, and a run with a higher limit resumes it.
        HandlergenError: The input cannot be read, or the output cannot be written or belongs to another run.
    """
    if batch_size < 1:
        raise HandlergenError("the batch size must be at least 1")
    answer = partial(_answer_chunks, engine, ordered=ordered, max_errors=max_errors, progress=progress)
    if not isinstance(output, Path):
        return answer(source, in_chunks(source.rows(), batch_size), LineStream(output), None)
    check_installed(output)
    files = OutputFiles(output)
    if source.path is not None:
        files.refuse_as_input(source.path)
    source = replace(source, leave_out=files.contains)
    if files.converted and output.exists() and not overwrite:
        raise HandlergenError(f"{output} already exists", hint="use --overwrite to replace it")
    run = {**source.identity, "model": engine.identity, "batch_size": batch_size}
    journal = open_journal(files.lines, run, restart=overwrite)
    pending = PendingOutputs(files.pending)
    complete = False
    try:
        chunks = _unanswered(in_chunks(source.rows(), batch_size), dict(journal.done), output)
        summary = answer(source, chunks, journal, output, pending=pending)
        if files.converted:
            with explained_write_errors(output):
                CONVERTERS[output.suffix.lower()](files.lines, files.partial)
                files.partial.replace(output)
        complete = True
    finally:
        with explained_write_errors(output):
            pending.close(complete=complete)
            journal.close(complete=complete)
    if files.converted:
        files.lines.unlink()
    return summary


def _answer_chunks(
    engine: Engine,
    source: RowSource,
    chunks: Iterator[Chunk],
    writer: Journal | LineStream,
    output: Path | None,
    *,
    pending: PendingOutputs | None = None,
    ordered: bool,
    max_errors: int | None,
    progress: Callable[[Progress], None],
) -> Summary:
    started, before = time.monotonic(), writer.rows
    running = engine.run(chunks, writer.write, ordered=ordered, pending=pending)
    with contextlib.closing(running):
        _check_errors(writer, max_errors, output)
        for _ in running:
            seconds = time.monotonic() - started
            progress(Progress(writer.rows, writer.failed, writer.rows - before, seconds, source.fraction))
            _check_errors(writer, max_errors, output)
    return Summary(output, writer.rows, writer.failed, before, time.monotonic() - started)


def _check_errors(writer: Journal | LineStream, max_errors: int | None, output: Path | None) -> None:
    if max_errors is None or writer.failed <= max_errors:
        return
    kept = f"; {writer.rows} rows are in {output}" if output is not None else ""
    raise TooManyErrors(
        f"{writer.failed} row{'s' if writer.failed > 1 else ''} failed, more than the {max_errors} allowed{kept}",
        hint="repeat the command with a higher --max-errors to resume",
    )


def _unanswered(chunks: Iterator[Chunk], done: dict[int, int], output: Path) -> Iterator[Chunk]:
    """Yield the chunks that no earlier run wrote; `done` has the checksums of those that one did."""

    def changed(why: str) -> HandlergenError:
        return HandlergenError(
            f"the input is not the one that {output} was started with: {why}",
            hint="give the same input to resume, or --overwrite to start over",
        )

    for chunk in chunks:
        expected = done.pop(chunk.number, None)
        if expected is None:
            yield chunk
        elif expected != chunk.checksum():
            raise changed(f"the rows from {chunk.rows[0].id} on differ")
    if done:
        raise changed("it has fewer rows")


def as_json(summary: Summary) -> dict[str, Any]:
    """Return a summary as JSON values."""
    return {
        "output": str(summary.output) if summary.output is not None else None,
        "rows": summary.rows,
        "ok": summary.rows - summary.failed,
        "failed": summary.failed,
        "resumed_rows": summary.resumed_rows,
        "seconds": round(summary.seconds, 3),
        "rows_per_s": round(summary.rows_per_s, 1),
    }
