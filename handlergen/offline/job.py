"""From an input to an output file, as often interrupted as it may be."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from handlergen.errors import HandlergenError, TooManyErrors
from handlergen.offline.convert import CONVERTERS, needs_of
from handlergen.offline.deaths import deaths_told
from handlergen.offline.journal import Journal, open_journal, written
from handlergen.offline.output_files import OutputFiles
from handlergen.offline.predicted import Predicted
from handlergen.offline.rows import Chunk, in_chunks, is_failed, line_of
from handlergen.offline.sources import Source

if TYPE_CHECKING:
    from handlergen.runtime.hooks import Item

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


@dataclass(frozen=True)
class Lines:
    """A chunk's part of the output."""

    chunk: Chunk
    text: bytes
    failed: int

    @classmethod
    def of(cls, chunk: Chunk, items: list[Item]) -> Lines:
        text = b"".join(line_of(row.id, item) for row, item in zip(chunk.rows, items, strict=True))
        return cls(chunk, text, sum(map(is_failed, items)))


class Engine(Protocol):
    """Answers chunks: in this process, or on a cluster."""

    @property
    def identity(self) -> str:
        """What tells the model from another one."""

    def run(
        self,
        chunks: Iterable[Chunk],
        write: Callable[[Lines], None],
        *,
        ordered: bool,
        predicted: Predicted | None,
    ) -> Generator[None, None, None]:
        """Hand each chunk's lines to `write` as soon as they are there; yield after each.

        Args:
            chunks: Read as they are needed.
            write: One call at a time.
            ordered: Keep their order.
            predicted: Where outputs are kept that are not written yet; None: nowhere.
        """


class _Sink(Protocol):
    rows: int
    failed: int

    def take(self, lines: Lines) -> None: ...


def map_to_file(
    engine: Engine,
    source: Source,
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
        with deaths_told():
            return run.go(_Stream(output), None, {}, None)
    needs_of(output)
    files = OutputFiles(output)
    if source.path is not None:
        files.refuse_as_input(source.path)
    run = _Run(engine, replace(source, leave_out=files.own), batch_size, ordered, max_errors, progress)
    if files.converted and output.exists() and not overwrite:
        raise HandlergenError(f"{output} is there already", hint="--overwrite makes it anew")
    same = {**source.identity, "model": engine.identity, "batch_size": batch_size}
    journal = open_journal(files.lines, same, restart=overwrite)
    predicted = Predicted(files.predicted)
    complete = False
    try:
        with deaths_told():
            summary = run.go(_Recorded(journal), output, dict(journal.done), predicted)
        if files.converted:
            _convert(files)
        complete = True
    finally:
        with written(output):
            predicted.close(complete=complete)
            journal.close(complete=complete)
    if files.converted:
        files.lines.unlink()
    return summary


def _convert(files: OutputFiles) -> None:
    """Make the output of its lines, in one step."""
    with written(files.output):
        CONVERTERS[files.output.suffix.lower()](files.lines, files.partial)
        files.partial.replace(files.output)


@dataclass(frozen=True)
class _Run:
    engine: Engine
    source: Source
    batch_size: int
    ordered: bool
    max_errors: int | None
    progress: Callable[[Progress], None]

    def go(
        self, sink: _Sink, output: Path | None, done: dict[int, int], predicted: Predicted | None
    ) -> Summary:
        """Answer what is not in `done`."""
        started, before = time.monotonic(), sink.rows
        chunks = _left(in_chunks(self.source.rows(), self.batch_size), done, output)
        running = self.engine.run(chunks, sink.take, ordered=self.ordered, predicted=predicted)
        with contextlib.closing(running):
            _check_errors(sink, self.max_errors, output)
            for _ in running:
                seconds = time.monotonic() - started
                fraction = self.source.fraction()
                self.progress(Progress(sink.rows, sink.failed, sink.rows - before, seconds, fraction))
                _check_errors(sink, self.max_errors, output)
        return Summary(output, sink.rows, sink.failed, before, time.monotonic() - started)


def _check_errors(sink: _Sink, max_errors: int | None, output: Path | None) -> None:
    if max_errors is None or sink.failed <= max_errors:
        return
    kept = f"; {sink.rows} rows are in {output}" if output is not None else ""
    raise TooManyErrors(
        f"{sink.failed} row{'s' if sink.failed > 1 else ''} failed, more than the {max_errors} that are allowed{kept}",
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


class _Recorded:
    """Writes lines into an output with a journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.rows = journal.rows
        self.failed = journal.failed

    def take(self, lines: Lines) -> None:
        count = len(lines.chunk.rows)
        with written(self._journal.output):
            self._journal.write(
                lines.chunk.number,
                lines.text,
                rows=count,
                failed=lines.failed,
                input_crc=lines.chunk.checksum(),
            )
        self.rows += count
        self.failed += lines.failed


class _Stream:
    """Writes lines to where nothing can be read again."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.rows = 0
        self.failed = 0

    def take(self, lines: Lines) -> None:
        self._stream.write(lines.text)
        self._stream.flush()
        self.rows += len(lines.chunk.rows)
        self.failed += lines.failed


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
