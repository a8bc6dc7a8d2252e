"""Chunks of rows through the stages: prepared ahead, predicted here, postprocessed beside the next prediction."""

from __future__ import annotations

import contextlib
import gc
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from handlergen.errors import HandlergenError
from handlergen.local.offline.preparation import Preparation
from handlergen.local.offline.rows import Chunk, Lines, Result, Row, in_chunks, result_of
from handlergen.local.requests import body_of, content_type_of
from handlergen.runtime.device.device import keep_freed_memory
from handlergen.runtime.pipeline.batching import own_copy

if TYPE_CHECKING:
    from handlergen.local.model import LocalModel
    from handlergen.local.offline.journal import PendingOutputs
    from handlergen.runtime.pipeline.hooks import Item
    from handlergen.runtime.pipeline.pipeline import Pipeline
    from handlergen.runtime.worker import Worker

_WORTH_A_THREAD_S = 1e-3
"""What can be saved on a chunk, below which another thread costs more: it takes the interpreter from this one."""

_WAITS_S = 5e-3
"""Of a chunk's postprocessing spent waiting (for a disk, a network), above which several threads do it."""

_THREADS = 8
"""The most that wait at once: as many as postprocess a batch of `LocalModel.batch`."""

_MEASURED = 4
"""Chunks whose times count. The least of them does: the first calls of a hook may import and compile."""

_Finished = TypeVar("_Finished")


class Engine(Protocol):
    """Answers chunks: in this process, or on a cluster."""

    @property
    def identity(self) -> str:
        """A text that changes with the model."""

    def run(
        self,
        chunks: Iterable[Chunk],
        write: Callable[[Lines], None],
        *,
        ordered: bool,
        pending: PendingOutputs | None,
    ) -> Generator[None, None, None]:
        """Hand each chunk's lines to `write` as soon as they are there; yield after each.

        Args:
            chunks: Read as they are needed.
            write: One call at a time.
            ordered: Keep their order.
            pending: Where outputs are kept that are not written yet; None: nowhere.
        """


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
        pending: PendingOutputs | None,
    ) -> Generator[None, None, None]:
        keep_freed_memory()  # a batch's inputs are laid together for predict, and then free
        # What is there now stays to the end: the collector need not look at it again, nor copy it in forked processes.
        gc.freeze()
        try:
            yield from run_chunks(
                self._model.worker,
                self._model.root,
                chunks,
                lambda chunk, items: write(Lines.of(chunk, items)),
                workers=self._workers,
                threads=self._threads,
                ordered=ordered,
                tell=self._tell,
                pending=pending,
            )
        finally:
            gc.unfreeze()


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
    """Answer any inputs; see `LocalModel.map`."""
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
    return Row(number, *body_of(value))


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
    pending: PendingOutputs | None = None,
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
        pending: Where the outputs of the chunk are kept that was predicted and is not finished; None: nowhere.

    Yields:
        What `finish` returns.

    Raises:
        Exception: What `chunks` or `finish` raises, and HandlergenError when a preparing process died.
    """
    pipeline = worker.pipeline
    worker.disable_lock_timeout()
    preparation = Preparation(
        pipeline,
        worker.bundle.contract,
        directory,
        workers=workers,
        threads=threads,
        ordered=ordered,
        tell=tell,
    )
    with (
        contextlib.closing(preparation.run(chunks)) as prepared,
        contextlib.closing(_Postprocessing(pipeline, finish, pending)) as postprocessing,
    ):
        for chunk, items in prepared:  # processes are forked before this process has a second thread
            started = time.perf_counter()
            if pending is None or not pending.restore(chunk, items):
                pipeline.predict(items)
            yield from postprocessing.take(chunk, items, time.perf_counter() - started)
        yield from postprocessing.rest()


class _Postprocessing(Generic[_Finished]):
    """Postprocesses chunks and hands them to `finish`, in the order in which they come.

    It does so in the predicting thread, beside the next prediction, or in several threads, by the time that it takes.

    Args:
        pipeline: Of the loaded model.
        finish: Called with each chunk and its items, which have their reply or failure; one at a time.
        pending: Keeps a chunk's outputs, so that a run that is killed in the next prediction does not lose them. What
            it cannot keep is finished before the next prediction.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        finish: Callable[[Chunk, list[Item]], _Finished],
        pending: PendingOutputs | None,
    ) -> None:
        self._pipeline = pipeline
        self._finish = finish
        self._pending = pending
        self._beside: ThreadPoolExecutor | None = None
        self._waiters: ThreadPoolExecutor | None = None
        self._under_way: Future[_Finished] | None = None
        self._predicted_s: deque[float] = deque(maxlen=_MEASURED)
        self._answered_s: deque[float] = deque(maxlen=_MEASURED)
        self._waited_s: deque[float] = deque(maxlen=_MEASURED)

    def take(self, chunk: Chunk, items: list[Item], predict_s: float) -> Iterator[_Finished]:
        """Answer a chunk whose prediction took so many seconds, or begin to.

        Yields:
            What `finish` returned for the chunks that are done: at most the one before, and this one.
        """
        yield from self.rest()
        self._predicted_s.append(predict_s)
        saved_s = min(_least(self._predicted_s), _least(self._answered_s))
        if saved_s < _WORTH_A_THREAD_S or not (self._pending is None or self._pending.keep(chunk, items)):
            yield self._answer(chunk, items)
            return
        for item in items:  # they are answered beside the next predict, which may write to the same memory
            item.outputs = own_copy(item.outputs)
        if self._beside is None:
            self._beside = ThreadPoolExecutor(1, thread_name_prefix="handlergen-answer")
        self._under_way = self._beside.submit(self._answer, chunk, items)

    def rest(self) -> Iterator[_Finished]:
        """Wait for the chunk that is under way, if one is."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            yield under_way.result()

    def close(self) -> None:
        """End the threads."""
        for pool in (self._beside, self._waiters):
            if pool is not None:
                pool.shutdown()

    def _answer(self, chunk: Chunk, items: list[Item]) -> _Finished:
        started = time.perf_counter()
        if _least(self._waited_s) > _WAITS_S and len(items) > 1:
            if self._waiters is None:
                self._waiters = ThreadPoolExecutor(_THREADS, thread_name_prefix="handlergen-postprocess")
            parts = [items[start::_THREADS] for start in range(min(_THREADS, len(items)))]
            self._waited_s.append(sum(self._waiters.map(self._postprocess, parts)))
        else:
            self._waited_s.append(self._postprocess(items))
        finished = self._finish(chunk, items)
        self._answered_s.append(time.perf_counter() - started)
        return finished

    def _postprocess(self, items: Sequence[Item]) -> float:
        """Postprocess; return the seconds of it in which this thread did not work."""
        started, worked = time.perf_counter(), time.thread_time()
        self._pipeline.postprocess(items)
        return time.perf_counter() - started - (time.thread_time() - worked)


def _least(times: deque[float]) -> float:
    """The least of some seconds; 0 before anything was measured."""
    return min(times, default=0.0)
