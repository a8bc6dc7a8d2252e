"""Chunks through the stages: prepared ahead, predicted here, answered while the next chunk is predicted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

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
) -> Generator[_Finished, None, None]:
    """Answer chunks of rows, with one in predict, one in postprocess and a few in preparation at a time.

    Args:
        worker: The loaded model. Nobody else uses it meanwhile.
        directory: Where its hooks expect to run.
        chunks: Read as they are needed.
        finish: Called with each chunk and its items, which have their reply or failure; in one thread, in order.
        workers: Processes (or threads) that prepare; 0 for none; None for one a core where that is worth it.
        threads: Threads instead of processes.
        ordered: Keep the order of the chunks.
        tell: Gets warnings for the user.

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

    def answer(chunk: Chunk, items: list[Item]) -> _Finished:
        pipeline.postprocess(items)
        return finish(chunk, items)

    with contextlib.closing(_closable(preparation.run(chunks))) as prepared:
        first = next(prepared, None)  # processes are forked before this process has a second thread
        if first is None:
            return
        with ThreadPoolExecutor(1, thread_name_prefix="handlergen-answer") as answering:
            under_way: Future[_Finished] | None = None
            for chunk, items in _again(first, prepared):
                pipeline.predict(items)
                if under_way is not None:
                    yield under_way.result()
                under_way = answering.submit(answer, chunk, items)
            if under_way is not None:
                yield under_way.result()


_Element = TypeVar("_Element")


def _again(first: _Element, others: Iterator[_Element]) -> Iterator[_Element]:
    yield first
    yield from others


def _closable(iterator: Iterator[_Element]) -> Generator[_Element, None, None]:
    """As a generator, whose `close` reaches the one inside."""
    yield from iterator
