"""Chunks through the stages: prepared ahead, predicted here, answered while the next chunk is predicted."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from handlergen.offline.answering import Answering
from handlergen.offline.deaths import deaths_told
from handlergen.offline.predicted import Predicted
from handlergen.offline.preparation import Preparation
from handlergen.offline.rows import Chunk

if TYPE_CHECKING:
    from handlergen.runtime.hooks import Item
    from handlergen.runtime.worker import Worker

_Finished = TypeVar("_Finished")


def run_chunks(
    worker: Worker,
    directory: Path,
    chunks: Iterable[Chunk],
    finish: Callable[[Chunk, list[Item]], _Finished],
    *,
    workers: int | None,
    threads: bool = False,
    ordered: bool = True,
    tell: Callable[[str], None] = lambda _message: None,
    predicted: Predicted | None = None,
) -> Generator[_Finished, None, None]:
    """Answer chunks of rows, with one in predict, one in postprocess and a few in preparation at a time.

    Args:
        worker: The loaded model. Nobody else uses it meanwhile.
        directory: Where its hooks expect to run.
        chunks: Read as they are needed.
        finish: Called with each chunk and its items, which have their reply or failure; one at a time, in order.
        workers: Processes (or threads) that prepare; 0 for none; None for one a core where that is worth it.
        threads: Threads instead of processes.
        ordered: Keep the order of the chunks.
        tell: Gets warnings for the user.
        predicted: What a run that is killed leaves of the chunk that was predicted and not finished.

    Yields:
        What `finish` returns.

    Raises:
        Exception: What `chunks` or `finish` raises, and HandlergenError when a preparing process died.
    """
    contract = worker.bundle.contract
    pipeline = worker.pipeline
    worker.wait_for_ever()
    preparation = Preparation(
        pipeline, contract, directory, workers=workers, threads=threads, ordered=ordered, tell=tell
    )

    def keep(chunk: Chunk, items: list[Item]) -> bool:
        return predicted is None or predicted.keep(chunk, items)

    with (
        deaths_told(),
        contextlib.closing(_closable(preparation.run(chunks))) as prepared,
        contextlib.closing(Answering(pipeline, finish, keep)) as answering,
    ):
        for chunk, items in prepared:  # processes are forked before this process has a second thread
            started = time.perf_counter()
            if predicted is None or not predicted.restore(chunk, items):
                pipeline.predict(items)
            yield from answering.take(chunk, items, time.perf_counter() - started)
        yield from answering.rest()


_Element = TypeVar("_Element")


def _closable(iterator: Iterator[_Element]) -> Generator[_Element, None, None]:
    """As a generator, whose `close` reaches the one inside."""
    yield from iterator
