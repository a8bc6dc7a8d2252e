"""`LocalModel.map`, and the engine of `handlergen map` that works in this process."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handlergen.errors import HandlergenError
from handlergen.offline.engine import run_chunks
from handlergen.offline.job import Lines
from handlergen.offline.rows import Chunk, Result, Row, in_chunks, result_of
from handlergen.outgoing import body_of, content_type_of
from handlergen.runtime.malloc import keep_freed_memory

if TYPE_CHECKING:
    from handlergen.local import LocalModel
    from handlergen.offline.predicted import Predicted
    from handlergen.runtime.hooks import Item
    from handlergen.runtime.worker import Worker


def results(
    worker: Worker,
    root: Path,
    inputs: Iterable[Any],
    *,
    batch_size: int,
    workers: int | None,
    threads: bool,
    ordered: bool,
) -> Generator[Result, None, None]:
    """See `LocalModel.map`."""
    if batch_size < 1:
        raise HandlergenError("the batch size must be at least 1")

    def finish(chunk: Chunk, items: list[Item]) -> list[Result]:
        return [result_of(row.id, item) for row, item in zip(chunk.rows, items, strict=True)]

    chunks = in_chunks((_row(number, value) for number, value in enumerate(inputs)), batch_size)
    batches = run_chunks(worker, root, chunks, finish, workers=workers, threads=threads, ordered=ordered)
    with contextlib.closing(batches):
        for batch in batches:
            yield from batch


def _row(number: int, value: Any) -> Row:
    if isinstance(value, Path):
        return Row(number, value.absolute(), content_type_of(value))
    body, content_type = body_of(value)
    return Row(number, body, content_type)


class LocalEngine:
    """Answers with a model in this process.

    Args:
        model: Loaded; nobody else uses it meanwhile.
        workers, threads: As for `run_chunks`.
        tell: Gets warnings for the user.
    """

    def __init__(
        self, model: LocalModel, *, workers: int | None, threads: bool, tell: Callable[[str], None]
    ) -> None:
        self._model = model
        self._workers = workers
        self._threads = threads
        self._tell = tell

    @property
    def identity(self) -> str:
        return self._model.identity

    def run(
        self,
        chunks: Iterable[Chunk],
        write: Callable[[Lines], None],
        *,
        ordered: bool,
        predicted: Predicted | None,
    ) -> Generator[None, None, None]:
        def finish(chunk: Chunk, items: list[Item]) -> None:
            write(Lines.of(chunk, items))

        keep_freed_memory()  # a batch's inputs are laid together for predict, and then free
        # What is there now stays to the end: the collector need not look at it again, nor copy it in forked processes.
        gc.freeze()
        try:
            yield from self._run(chunks, finish, ordered, predicted)
        finally:
            gc.unfreeze()

    def _run(
        self,
        chunks: Iterable[Chunk],
        finish: Callable[[Chunk, list[Item]], None],
        ordered: bool,
        predicted: Predicted | None,
    ) -> Generator[None, None, None]:
        return run_chunks(
            self._model.worker,
            self._model.root,
            chunks,
            finish,
            workers=self._workers,
            threads=self._threads,
            ordered=ordered,
            tell=self._tell,
            predicted=predicted,
        )
